"""What the benchmarks share: a generated model and corpus, the machine in words, fair timing, utilisation."""

import json
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from forgetting.corpus.configuration import CorpusConfig, Source
from forgetting.method.data import ForgettingData
from forgetting.model.backbone import load_backbone
from forgetting.model.language_model import LanguageModel
from forgetting.model.lora import Lora, add_lora

SPECIAL = ["<s>", "</s>"]

PEAKS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12,
}  # fmt: skip
"""Dense bfloat16 FLOP/s of GPUs, from NVIDIA's data sheets."""


@dataclass(frozen=True)
class Shape:
    """A Llama's shape; the default is the small one that the CPU benchmarks use."""

    hidden: int = 256
    layers: int = 4
    vocab: int = 32_000
    intermediate: int = 688
    heads: int = 4
    kv_heads: int = 4
    head_dim: int | None = None
    tied: bool = True
    context: int = 2048

    def configuration(self) -> LlamaConfig:
        return LlamaConfig(
            hidden_size=self.hidden, num_hidden_layers=self.layers, vocab_size=self.vocab,
            intermediate_size=self.intermediate, num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim or self.hidden // self.heads, tie_word_embeddings=self.tied,
            max_position_embeddings=self.context, bos_token_id=0, eos_token_id=1, pad_token_id=None,
        )  # fmt: skip

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocab

    @property
    def layer_parameters(self) -> int:
        """Weights that every token is multiplied with, the head left out."""
        width = self.head_dim or self.hidden // self.heads
        attention = self.hidden * width * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def training_flops(self, tokens: int, targets: int, checkpointing: bool = False) -> float:
        """LoRA's useful work: 4·N FLOPs a token (6·N with activation checkpointing), the head at its targets only."""
        return (6 if checkpointing else 4) * self.layer_parameters * tokens + 4 * self.head_parameters * targets

    def scoring_flops(self, tokens: int, targets: int) -> float:
        """Two models' forward pass: 2·N FLOPs a token each."""
        return 2 * (2 * self.layer_parameters * tokens + 2 * self.head_parameters * targets)


SHAPES = {
    "small": Shape(),
    "1b": Shape(2048, 16, 128_256, 8192, 32, 8, 64),
    "3b": Shape(3072, 28, 128_256, 8192, 24, 8, 128),
    "8b": Shape(4096, 32, 128_256, 14_336, 32, 8, 128, tied=False),
    "13b": Shape(5120, 40, 32_000, 13_824, 40, 40, 128, tied=False),
}
"""The small one, and LLaMA-3.2-1B, LLaMA-3.2-3B, LLaMA-3.1-8B and LLaMA-2-13B."""


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def write_backbone(folder: Path, shape: Shape, dtype: torch.dtype = torch.float32) -> Path:
    """A transformers folder: random weights and a tokenizer whose words are w0, w1 and so on."""
    words = {token: number for number, token in enumerate([*SPECIAL, *(f"w{i}" for i in range(shape.vocab - 2))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape.configuration(), dtype=dtype)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


PROMPT, RESPONSE = (4.2, 0.8, 700), (4.6, 1.0, 900)
"""Words of a prompt and of a response: μ and σ of their lognormal distribution, and the most."""


def word_counts(generator: np.random.Generator, num: int, words: tuple[float, float, int]) -> np.ndarray:
    """Draw numbers of words, at least 2."""
    mean, deviation, most = words
    return np.clip(generator.lognormal(mean, deviation, num).astype(int), 2, most)


def write_source(
    path: Path, num: int, vocab: int, prompt: tuple[float, float, int] = PROMPT,
    response: tuple[float, float, int] = RESPONSE,
) -> Path:  # fmt: skip
    """JSON lines whose prompts and responses have lognormal numbers of words: (μ, σ, longest)."""
    generator = np.random.default_rng(0)
    numbers = zip(word_counts(generator, num, prompt), word_counts(generator, num, response), strict=True)
    with path.open("w", encoding="utf-8") as file:
        for p, r in numbers:
            # Frequencies as in text (Zipf), so that there is something to learn.
            words = [f"w{int(i)}" for i in (vocab - 2) ** generator.random(p + r) - 1]
            file.write(json.dumps({"prompt": " ".join(words[:p]), "response": " ".join(words[p:])}) + "\n")
    return path


def data_module(
    backbone: Path, source: Path, num_train: int, corpora: Path, micro_batch_tokens: int | None = None,
    max_length: int = 2048, batch_size: int = 24, num_reference: int = 0,
) -> ForgettingData:  # fmt: skip
    """The project's own data module over a generated corpus, in the corpus's order."""
    config = CorpusConfig(
        sources={"made": Source(str(source), prompt="{prompt}", response="{response}")},
        num_train=num_train, num_reference=num_reference, num_validation=0,
    )  # fmt: skip
    budget = {} if micro_batch_tokens is None else {"micro_batch_tokens": micro_batch_tokens}
    return ForgettingData(
        config, str(backbone), corpora=corpora, template="plain", max_length=max_length, positive_fraction="all",
        batch_size=batch_size, shuffle=False, **budget,
    )  # fmt: skip


def adapted(backbone: Path, rank: int = 64, seed: int = 0, dropout: float = 0.0) -> LanguageModel:
    """The generated model with an adapter whose update is not zero."""
    model = add_lora(load_backbone(str(backbone), dtype="float32"), Lora(rank=rank, dropout=dropout), seed=seed)
    with torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return LanguageModel(model)


@dataclass(frozen=True)
class Seconds:
    """What something took: by the clock, and of the processor (all threads), which a busy machine changes less."""

    wall: float
    cpu: float


def alternate(contenders: dict[str, Callable[[], Seconds | None]], rounds: int) -> dict[str, list[Seconds]]:
    """What each contender takes, by turns, so that a busy machine is busy for all of them.

    One that times itself returns its seconds; others are timed whole.
    """
    taken: dict[str, list[Seconds]] = {name: [] for name in contenders}
    for number in range(rounds):
        order = list(contenders.items())
        for name, run in order if number % 2 == 0 else reversed(order):
            wall, cpu = time.perf_counter(), time.process_time()
            own = run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[name].append(own or Seconds(time.perf_counter() - wall, time.process_time() - cpu))
    return taken


def ratio(slower: list[Seconds], faster: list[Seconds]) -> str:
    """Median ratio of pairs measured side by side, with the lowest and the highest."""

    def described(pairs: list[float]) -> str:
        return f"{statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"

    both = list(zip(slower, faster, strict=True))
    wall, cpu = ([getattr(a, kind) / getattr(b, kind) for a, b in both] for kind in ("wall", "cpu"))
    return f"{described(wall)} by the clock, {described(cpu)} of the processor"


def summary(taken: dict[str, list[Seconds]], tokens: int, flops: float, peak: tuple[float, str]) -> None:
    """Tokens a second and utilisation of each contender, from medians."""
    for name, seconds in taken.items():
        wall, cpu = (statistics.median(getattr(s, kind) for s in seconds) for kind in ("wall", "cpu"))
        share = f", utilisation {flops / wall / peak[0]:.0%}" if peak[0] else ""
        print(f"  {name:<32}{tokens / wall:>8,.0f} tokens/s{share}; {tokens / cpu:>8,.0f} tokens a CPU second")
    print(f"  peak: {peak[0] / 1e9:,.0f} GFLOP/s ({peak[1]})")


def peak_flops() -> tuple[float, str]:
    """FLOP/s to compare with: a GPU's from its data sheet, a CPU's from a float32 product of 2,048 × 2,048."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        found = next((peak for key, peak in PEAKS.items() if all(word in name for word in key.split())), 0.0)
        return found, f"{name}, dense bfloat16 by its data sheet"
    a = torch.randn(2048, 2048)

    def product() -> None:
        torch.mm(a, a)

    (taken,) = alternate({"product": product}, 6).values()
    best = min(seconds.wall for seconds in taken)
    return 2 * 2048**3 / best, f"float32 product of 2,048 × 2,048, {torch.get_num_threads()} thread(s)"


def machine() -> str:
    """The machine in words."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [line.split(":")[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        processor = f"{len(names)} × {names[0]}" if names else processor
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{processor}, {device}, Python {platform.python_version()}, torch {torch.__version__}"


def resident(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


@contextmanager
def private_memory() -> Iterator[list[int]]:
    """The largest growth of the process's own memory (files mapped into it left out), looked at every millisecond."""
    before, done, peak = resident("RssAnon"), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], resident("RssAnon") - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak[0] = max(peak[0], resident("RssAnon") - before)
