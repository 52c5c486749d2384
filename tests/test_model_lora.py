"""An adapter's folder: the same bytes for the same adapter, and nothing put on a model but what was trained on it."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import small_configuration, write_backbone
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from forgetting.artifacts import complete_folder
from forgetting.errors import UserError
from forgetting.model.adapter_folder import adapter_hash
from forgetting.model.backbone import load_backbone
from forgetting.model.batch import pad
from forgetting.model.language_model import LanguageModel
from forgetting.model.lora import Lora, add_lora, load_lora, save_lora

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def base(family: str = "llama", **changes):
    torch.manual_seed(0)
    configuration = small_configuration(family)
    for name, value in changes.items():
        setattr(configuration, name, value)
    return AutoModelForCausalLM.from_config(configuration).requires_grad_(False)


def adapted(family: str = "llama", lora: Lora | None = None) -> PeftModel:
    model = add_lora(base(family), lora or Lora(rank=2, dropout=0.0), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def saved(folder: Path, *arguments) -> Path:
    with complete_folder(folder) as temporary:
        save_lora(adapted(*arguments), temporary)
    return folder


def edited(folder: Path, edit) -> Path:
    """A foreign folder (without sums) whose weights `edit` has changed."""
    weights = load_file(folder / WEIGHTS)
    edit(weights)
    save_file(weights, folder / WEIGHTS)
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    return folder


# --- what is put on a model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize(("family", "lora"), [
    ("llama", Lora(rank=2, dropout=0.0)), ("gpt-neo", Lora(rank=2)), ("qwen2", Lora(rank=2)),
    ("llama-untied", Lora(rank=2, modules_to_save=["lm_head"])),
    ("llama-untied", Lora(rank=2, target_modules=["q_proj", "lm_head"])),
])  # fmt: skip
def test_an_adapter_comes_back_as_it_was_saved(tmp_path, family, lora, trainable):
    folder, expected, backbone = saved(tmp_path / "a", family, lora), adapted(family, lora), base(family)
    torch.manual_seed(7)
    draw = torch.rand(1)
    torch.manual_seed(7)
    found = load_lora(backbone, folder, trainable)
    assert torch.equal(torch.rand(1), draw)  # no draw of others is disturbed
    ours, theirs = (get_peft_model_state_dict(m, save_embedding_layers=False) for m in (found, expected))
    assert ours.keys() == theirs.keys() == load_file(folder / WEIGHTS).keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {m.training for m in found.modules()} == {trainable}
    assert {n for n, p in found.named_parameters() if p.requires_grad} == (
        {n for n, p in expected.named_parameters() if p.requires_grad} if trainable else set()
    )


def test_an_adapter_of_a_bfloat16_base_is_float32(tmp_path):
    folder = saved(tmp_path / "a")
    model = load_lora(base().bfloat16(), folder, trainable=True)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize(("layers", "message"), [(1, "has in addition 14 tensor"), (3, "lacks 14 tensor")])
def test_an_adapter_of_a_deeper_or_shallower_model_is_refused(tmp_path, layers, message):
    folder = saved(tmp_path / "a")
    with pytest.raises(UserError, match=f"does not fit.*{message}.*model.backbone"):
        load_lora(base(num_hidden_layers=layers), folder)


def test_a_tensor_too_few_too_many_or_of_another_rank_is_refused_by_name(tmp_path):
    folder = saved(tmp_path / "a")
    names = sorted(load_file(folder / WEIGHTS))

    def variant(name: str, edit) -> Path:
        return edited(Path(shutil.copytree(folder, tmp_path / name)), edit)

    with pytest.raises(UserError, match=f"lacks 1 tensor.*{names[3]}"):
        load_lora(base(), variant("few", lambda w: w.pop(names[3])))
    with pytest.raises(UserError, match="has in addition 1 tensor.*extra"):
        load_lora(base(), variant("many", lambda w: w.update(extra=torch.ones(1))))
    with pytest.raises(UserError, match=f"other shapes 1 tensor.*{names[0]}"):
        load_lora(base(), variant("rank", lambda w: w.update({names[0]: torch.ones(1, w[names[0]].shape[1])})))
    head = "base_model.model.model.embed_tokens.weight"  # it would replace the base's own without a word
    with pytest.raises(UserError, match=f"has in addition 1 tensor.*{head}"):
        load_lora(base(), variant("head", lambda w: w.update({head: torch.ones(258, 32)})))
    own = base().get_input_embeddings().weight.detach().clone()
    load_lora(base(), variant("copy", lambda w: w.update({head: own})))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_a_number_that_is_not_finite_is_refused_by_name(tmp_path, value):
    folder = saved(tmp_path / "a")
    name = sorted(load_file(folder / WEIGHTS))[5]
    with pytest.raises(UserError, match=f"not finite, in 1 tensor.*{name}"):
        load_lora(base(), edited(folder, lambda w: w[name].view(-1)[3:4].fill_(value)))


def test_an_adapter_without_which_the_base_is_another_is_refused(tmp_path):
    get_peft_model(base(), LoraConfig(target_modules=["q_proj"], bias="all", task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "bias"
    )
    pissa = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM")
    get_peft_model(base(), pissa).save_pretrained(tmp_path / "pissa")
    for name in ("bias", "pissa"):
        with pytest.raises(UserError, match="changes the base's own weights"):
            load_lora(base(), tmp_path / name)
    prefix = PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(base(), prefix).save_pretrained(tmp_path / "prefix")
    with pytest.raises(UserError, match="LORA was expected"):
        load_lora(base(), tmp_path / "prefix")


@pytest.mark.parametrize("content", ["[]", "{}", "3", "", '{"peft_type": "LORA", "r": "many"}', '{"peft_type": "X"}'])
def test_a_configuration_that_is_none_is_refused(tmp_path, content):
    folder = edited(saved(tmp_path / "a"), lambda w: None)
    (folder / CONFIG).write_text(content)
    with pytest.raises(UserError, match=r"adapter_config\.json|does not fit"):
        load_lora(base(), folder)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True}, {"target_modules": "all-linear"}])
def test_foreign_kinds_of_lora_are_read(tmp_path, options):
    foreign = get_peft_model(
        base("llama-untied"), LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options})
    )
    foreign.save_pretrained(tmp_path / "a")
    found = load_lora(base("llama-untied"), tmp_path / "a")
    ours, theirs = get_peft_model_state_dict(found), get_peft_model_state_dict(foreign)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_foreign_folder_with_a_copy_of_the_adapted_head_is_read(tmp_path):
    foreign = get_peft_model(
        base("llama-untied"), LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    )
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        foreign.save_pretrained(tmp_path / "a")
    assert any("base_layer" in name for name in load_file(tmp_path / "a" / WEIGHTS))
    load_lora(base("llama-untied").bfloat16(), tmp_path / "a")
    with pytest.raises(UserError, match=r"has in addition.*base_layer"):
        load_lora(
            base("llama-untied").apply(lambda m: [p.add_(1) for p in m.parameters(recurse=False)]), tmp_path / "a"
        )


# --- what is written -------------------------------------------------------------------------------------------------

SAVE = """
import sys
from pathlib import Path
from forgetting.model.backbone import load_backbone
from forgetting.model.lora import Lora, add_lora, save_lora
folder = Path(sys.argv[2])
folder.mkdir()
lora = Lora(rank=2, target_modules=["up_proj", "q_proj", "o_proj"], modules_to_save=["lm_head", "embed_tokens"])
save_lora(add_lora(load_backbone(sys.argv[1], dtype="float32"), lora, seed=0), folder)
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_and_sha256sum_confirms_them(tmp_path):
    backbone = write_backbone(tmp_path / "backbone", "llama-untied")
    for seed in ("1", "2"):
        command = [sys.executable, "-c", SAVE, str(backbone), str(tmp_path / seed)]
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True, timeout=300
        )
    files = [sorted(p.name for p in (tmp_path / seed).iterdir()) for seed in ("1", "2")]
    assert files[0] == files[1] == ["SHA256SUMS", CONFIG, WEIGHTS]
    for name in files[0]:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "1", check=True)
    PeftModel.from_pretrained(load_backbone(str(backbone), dtype="float32"), str(tmp_path / "1"))  # plain PEFT reads it


def test_the_hash_is_of_what_is_computed(tmp_path):
    folder = saved(tmp_path / "a")
    before, configuration = adapter_hash(folder), json.loads((folder / CONFIG).read_text())

    def hash_with(**changes) -> str:
        (folder / CONFIG).write_text(json.dumps({**configuration, **changes}, indent=7))
        return adapter_hash(folder)

    targets = configuration["target_modules"]
    assert len(targets) == 7
    assert hash_with(target_modules=targets[::-1], base_model_name_or_path="elsewhere", inference_mode=False) == before
    assert hash_with(target_modules=targets[1:]) != before
    assert hash_with(lora_alpha=17) != before
    edited(folder, lambda w: next(iter(w.values())).add_(1))
    assert hash_with() != before


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_flipped_bit_is_refused(tmp_path, name):
    folder = saved(tmp_path / "a")
    content = bytearray((folder / name).read_bytes())
    content[-40] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} was changed or damaged.*sha256sum"):
        load_lora(base(), folder)
    (folder / "SHA256SUMS").write_text("")
    with pytest.raises(UserError, match="has no sum of"):
        load_lora(base(), folder)


def test_the_head_that_is_adapted_is_not_written_but_what_is_trained_in_full_is(tmp_path):
    targets = saved(tmp_path / "a", "llama-untied", Lora(rank=2, target_modules=["q_proj", "lm_head"]))
    assert not any("base_layer" in name for name in load_file(targets / WEIGHTS))
    full = saved(tmp_path / "b", "llama-untied", Lora(rank=2, modules_to_save=["lm_head"]))
    assert "base_model.model.lm_head.weight" in load_file(full / WEIGHTS)


def test_a_file_that_the_system_refuses_is_the_systems_error(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # the card fits, the weights do not
    try:
        with pytest.raises(OSError, match=WEIGHTS) as caught, complete_folder(tmp_path / "a") as temporary:
            save_lora(adapted(lora=Lora(rank=16)), temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test_another_error_of_the_writer_stays(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise SafetensorError("a dtype it does not know")

    monkeypatch.setattr(PeftModel, "save_pretrained", fail)
    with pytest.raises(SafetensorError):
        save_lora(adapted(), tmp_path)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "message"), [
    ({"alpha": 0}, "alpha is 0"), ({"alpha": -16}, "alpha is -16"), ({"rank": 0}, "rank is 0"),
    ({"dropout": 1.0}, "dropout is 1.0"), ({"dropout": -0.1}, "dropout is -0.1"),
    ({"dropout": float("nan")}, "dropout is nan"),
])  # fmt: skip
def test_settings_that_train_nothing_or_uphill_are_refused(settings, message):
    with pytest.raises(UserError, match=f"model.lora.{message}"):
        Lora(**settings)


def test_a_fresh_adapter_is_in_training_mode_and_stays_so():
    model = LanguageModel(adapted()).model
    assert {module.training for module in model.modules()} == {True}
    with torch.no_grad():
        assert LanguageModel(adapted())(pad([])).shape == (0,)
