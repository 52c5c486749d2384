"""What is loaded is what lies there: every weight and no other, no code, and a hash that says which."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, small_configuration, write_backbone
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    GPT2Config,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
)

from forgetting import artifacts
from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.model.backbone import backbone_identity, load_backbone, load_configuration, load_tokenizer
from forgetting.model.lora import Lora, add_lora, save_lora

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
FAMILIES: dict[str, PretrainedConfig] = {
    **{name: small_configuration(name) for name in ("llama", "llama-untied", "qwen2", "gpt-neo")},
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1),
    "gemma2": Gemma2Config(**SMALL, head_dim=8, query_pre_attn_scalar=8),
    "mistral": MistralConfig(**SMALL),
    "phi3": Phi3Config(**SMALL),
}


def save(folder: Path, family: str = "llama", edit=None, kind=AutoModelForCausalLM, **config) -> Path:
    """A model's folder whose weights `edit` has changed, and whose config.json has other values."""
    kind.from_config(FAMILIES[family]).save_pretrained(folder)
    if edit is not None:
        weights = load_file(folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


# --- the weights are those of the configuration ----------------------------------------------------------------------


@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_loaded_as_it_was_saved(tmp_path, family, shard_size):
    model = AutoModelForCausalLM.from_config(FAMILIES[family])
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "20KB")
    found = load_backbone(str(tmp_path), dtype="float32").state_dict()
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def with_masks(weights):
    """As EleutherAI/gpt-neo-125m has them."""
    weights["transformer.h.0.attn.attention.bias"] = torch.ones(1, 1, 256, 256, dtype=torch.bool)
    weights["transformer.h.0.attn.attention.masked_bias"] = torch.tensor(-1e9)


def as_on_the_hub(weights):
    """As openai-community/gpt2 has them: without the body's prefix, and with masks."""
    for name in [name for name in weights if name.startswith("transformer.")]:
        weights[name.removeprefix("transformer.")] = weights.pop(name)
    weights["h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)


def with_a_copy(weights):
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()


def with_frequencies(weights):
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)


@pytest.mark.parametrize(
    ("family", "edit"),
    [("gpt-neo", with_masks), ("gpt2", as_on_the_hub), ("llama", with_a_copy), ("llama", with_frequencies)],
)
def test_what_older_files_hold_beside_the_weights_is_no_reason_to_refuse_them(tmp_path, family, edit):
    load_backbone(str(save(tmp_path, family, edit)))


def test_a_tied_models_body_alone_is_whole(tmp_path):
    load_backbone(str(save(tmp_path, "llama", kind=AutoModel)))


def lose(name):
    return lambda weights: weights.pop(name)


@pytest.mark.parametrize(("family", "options", "message"), [
    ("llama", {"num_hidden_layers": 3}, r"lack 9 tensor\(s\): model.layers.2.*and 6 more"),
    ("llama", {"num_hidden_layers": 1}, r"have in addition 9 tensor\(s\): model.layers.1"),
    ("llama", {"intermediate_size": 64}, r"in other shapes 6 tensor.*\(32, 48\) instead of \(32, 64\)"),
    ("llama", {"attention_bias": True}, r"lack 8 tensor.*bias"),
    ("llama", {"tie_word_embeddings": False}, r"lack 1 tensor\(s\): lm_head.weight"),
    ("qwen2", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, r"have in addition 6 tensor.*bias"),
    ("llama", {"edit": lose("model.norm.weight")}, r"lack 1 tensor\(s\): model.norm.weight"),
    ("llama-untied", {"kind": AutoModel}, r"lack 1 tensor\(s\): lm_head.weight"),
    ("llama", {"kind": AutoModelForSequenceClassification}, r"have in addition 1 tensor\(s\): score.weight"),
])  # fmt: skip
def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path, family, options, message):
    with pytest.raises(UserError, match=f"are not those of the LlamaForCausalLM in its config.json.*{message}"):
        load_backbone(str(save(tmp_path, family, **options)))


def test_a_folder_with_an_adapter_in_it_is_no_base(tmp_path):
    write_backbone(tmp_path / "a")
    save_lora(add_lora(load_backbone(str(tmp_path / "a")), Lora(rank=2), 0), tmp_path / "a")
    with pytest.raises(UserError, match="holds an adapter.*model.adapter"):
        load_backbone(str(tmp_path / "a"))


# --- what is no model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["[]", "3", "{}", "", '{"model_type": "unheard-of"}', '{"model_type": 3}', "[" * 10**5]
)
def test_a_config_that_is_none_is_refused(tmp_path, content):
    (write_backbone(tmp_path / "a") / "config.json").write_text(content)
    for load in (load_configuration, load_backbone, backbone_identity):
        if load is not backbone_identity or "model_type" not in content:
            with pytest.raises(UserError, match=r"config\.json|could not be loaded"):
                load(str(tmp_path / "a"))


@pytest.mark.parametrize("value", [
    {"hidden_size": "wide"}, {"num_attention_heads": 0}, {"hidden_act": "unheard-of"}, {"quantization_config": 3},
    {"auto_map": 3}, {"hidden_size": 33},
])  # fmt: skip
def test_a_value_that_no_model_has_is_refused(tmp_path, value):
    with pytest.raises(UserError, match="could not be loaded"):
        load_backbone(str(save(tmp_path, **value)))


CODE = """
from pathlib import Path
Path({marker!r}).write_text("run")
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Tokenizer
class Own(Config):
    model_type = "own"
class OwnModel(Model):
    config_class = Own
"""
LOAD = """
import sys
from forgetting.errors import UserError
from forgetting.model.backbone import load_backbone, load_configuration, load_tokenizer
for load in (load_configuration, load_backbone, load_tokenizer):
    try:
        load(sys.argv[1])
    except UserError as error:
        assert "custom code is not run" in str(error), error
        print("refused")
"""


def bring_code(folder: Path, marker: Path, **config) -> Path:
    classes = {"AutoConfig": "modeling.Own", "AutoModelForCausalLM": "modeling.OwnModel"}
    write_backbone(folder)
    (folder / "modeling.py").write_text(CODE.format(marker=str(marker)))
    for name, change in (
        ("config.json", {"auto_map": classes, **config}),
        ("tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["modeling.Own", None]}}),
    ):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return folder


@pytest.mark.slow
def test_code_that_a_model_brings_is_not_run_whatever_is_typed(tmp_path):
    folder = bring_code(tmp_path / "a", tmp_path / "marker", model_type="own")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)], input="y\n" * 9, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["refused"] * 3
    assert not (tmp_path / "marker").exists()


def test_a_known_architecture_is_loaded_by_the_librarys_own_code(tmp_path):
    """Phi-3 and Falcon bring code for older versions of transformers, which is not needed."""
    folder = bring_code(tmp_path / "a", tmp_path / "marker")
    assert type(load_backbone(str(folder))).__module__.startswith("transformers.")
    assert not (tmp_path / "marker").exists()


# --- which model it is -----------------------------------------------------------------------------------------------


def test_a_folder_is_known_by_its_content(tmp_path):
    write_backbone(tmp_path / "a")
    write_backbone(tmp_path / "b")
    write_backbone(tmp_path / "c", seed=1)
    hashes = [backbone_identity(str(tmp_path / name))["hash"] for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]
    for name, changes in (
        ("config.json", True),
        ("model.safetensors.index.json", True),
        ("generation_config.json", False),
    ):
        path = tmp_path / "b" / name
        path.write_text((path.read_text() if path.exists() else "{}") + "\n")
        now = backbone_identity(str(tmp_path / "b"))["hash"]
        assert (now != hashes[1]) == changes, name
        hashes[1] = now


def test_the_home_folder_is_the_same_place_by_any_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_backbone(tmp_path / "a")
    hashes = {backbone_identity(name)["hash"] for name in ("~/a", "a", "./a", str(tmp_path / "a"))}
    assert len(hashes) == 1
    assert None not in hashes
    with pytest.raises(UserError, match="no model folder"):
        backbone_identity("~/nothing")


def test_a_model_whose_commit_cannot_be_told_is_refused(monkeypatch):
    monkeypatch.setattr("forgetting.model.backbone.load_configuration", lambda *_: FAMILIES["llama"])
    with pytest.raises(UserError, match="cannot be told"):
        backbone_identity("someone/model")


def test_a_start_reads_the_weights_once_for_their_hash(tmp_path, monkeypatch):
    folder, reads = write_backbone(tmp_path / "a"), []
    digest = artifacts.hashlib.file_digest
    monkeypatch.setattr(artifacts, "SETTLED_NS", -(10**12))  # the files are new
    monkeypatch.setattr(artifacts.hashlib, "file_digest", lambda *a: (reads.append(a[0].name), digest(*a))[1])
    identities = [backbone_identity(str(folder)) for _ in range(4)]
    assert all(identity == identities[0] for identity in identities)
    assert sorted(Path(name).name for name in reads) == ["config.json", "model.safetensors"]


EXPERIMENT = """
run: {root: runs}
trainer: {accelerator: cpu, devices: 1, precision: 32-true, max_epochs: 1, enable_progress_bar: false}
model: {backbone: "~/backbone", dtype: float32, lora: {rank: 2}, objective: {class_path: MeanNLL}}
data:
  corpus:
    sources: {made: {path: source.jsonl, prompt: "{question}", response: "{answer}"}}
    num_train: 4
    num_reference: 4
    num_validation: 2
  max_length: 64
  split: reference
"""


@pytest.mark.slow
def test_a_run_on_a_base_in_the_home_folder_knows_that_it_was_replaced(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_backbone(tmp_path / "backbone")
    rows = [{"question": f"What is {i}?", "answer": str(i)} for i in range(12)]
    Path("source.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("tiny.yaml").write_text(EXPERIMENT)
    main(["fit", "--config", "tiny.yaml"])
    write_backbone(tmp_path / "backbone", seed=1)
    with pytest.raises(UserError, match="another base"):
        main(["validate", "--config", "tiny.yaml"])


def test_the_tokenizer_needs_no_weights(tmp_path):
    (write_backbone(tmp_path / "a") / "model.safetensors").unlink()
    assert load_tokenizer(str(tmp_path / "a")).get_vocab() == byte_tokenizer().get_vocab()
