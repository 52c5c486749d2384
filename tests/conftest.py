"""Small real components, made on the spot: a byte-level tokenizer and models of a few thousand parameters."""

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # which removes what processes leave that tests kill
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="forgetting-tests-")  # of remembered hashes

import shutil
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    GPTNeoConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from forgetting.cli import EXPECTED_WARNINGS

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors, but for those that the command line hides from its users, too."""
    for message in EXPECTED_WARNINGS:
        config.addinivalue_line("filterwarnings", f"ignore:{message}")


def pytest_collection_finish() -> None:
    """What processes are forked from starts before any test changes the environment that its imports read."""
    if "processes" in sys.modules:
        forkserver.ensure_running()


SPECIAL = ["<s>", "</s>"]


def byte_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: every text is its UTF-8 bytes. `bos` puts `<s>` in front, as Llama's does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def small_configuration(family: str) -> PretrainedConfig:
    """Configurations of a few thousand parameters: Llama (tied), Qwen2 (biased projections), GPT-Neo, untied Llama."""
    shared = {"vocab_size": 258, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    llama = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    match family:
        case "llama":
            return LlamaConfig(**llama, **shared, tie_word_embeddings=True)
        case "llama-untied":
            return LlamaConfig(**llama, **shared, tie_word_embeddings=False)
        case "qwen2":
            return Qwen2Config(**llama, **shared, tie_word_embeddings=True)
        case "gpt-neo":
            return GPTNeoConfig(
                **shared, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48, max_position_embeddings=256,
                attention_types=[[["global", "local"], 1]], window_size=16, resid_dropout=0.0, embed_dropout=0.0,
                attention_dropout=0.0,
            )  # fmt: skip
        case _:
            raise ValueError(family)


def write_backbone(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    """A transformers folder: a random model of `family` and the byte-level tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(small_configuration(family))
        for parameter in model.parameters():  # wider than the usual initialization, so that tokens differ in nll
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("backbone") / "llama")


@pytest.fixture(scope="session")
def scored_experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small experiment, its trained reference and its scores. Tests take a copy: `work`."""
    from small_experiment import REFERENCE, write_experiments

    from forgetting.cli import main

    folder = tmp_path_factory.mktemp("scored")
    write_experiments(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config", REFERENCE])
        main(["score", "--config", REFERENCE])
    return folder


@pytest.fixture
def scored_work(scored_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the scored experiment, to be in and to change."""
    folder = tmp_path / "work"
    shutil.copytree(scored_experiment, folder)
    monkeypatch.chdir(folder)
    return folder
