"""LoRA on a frozen backbone, by PEFT, with the paper's values as defaults; its folder, written and read exactly."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from forgetting.artifacts import hash_file, read_json
from forgetting.errors import UserError
from forgetting.model.adapter_folder import CONFIG, SUMS, WEIGHTS, refuse_damaged_adapter, sorted_names
from forgetting.model.backbone import some_tensors

LARGEST = 65_536
"""No layer of a language model is as wide."""

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""The projections that the published code adapts."""


@dataclass
class Lora:
    """Low-rank adaptation (Taheri et al., TMLR 2026, §5.1.3).

    Attributes:
        rank: Rank of the update.
        alpha: The update is scaled by alpha / rank.
        dropout: Dropout on the input of the update.
        target_modules: Names of the linear layers to adapt. None: the seven projections of LLaMA and Qwen where all of
            them exist, else every linear layer inside the decoder (for GPT-Neo its attention and MLP layers).
        modules_to_save: Layers to train in full, such as `lm_head` of a model whose embeddings are not tied.
    """

    rank: int = 64
    alpha: int = 16
    dropout: float = 0.1
    target_modules: list[str] | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= LARGEST:
            raise UserError(f"model.lora.rank is {self.rank}; it must be at least 1, and at most {LARGEST:,}.")
        if self.target_modules == []:
            raise UserError("model.lora.target_modules is empty: name layers, or set it to null for the default.")
        if self.alpha > LARGEST:
            raise UserError(f"model.lora.alpha is {self.alpha}; it must be at most {LARGEST:,}.")
        if self.alpha <= 0:
            raise UserError(
                f"model.lora.alpha is {self.alpha}; it must be above 0: the update is scaled by alpha / rank, so 0 "
                "would train nothing."
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.lora.dropout is {self.dropout}; it must be in [0, 1).")


def add_lora(backbone: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """Put a new adapter on every target; only the adapter trains, in float32 whatever the backbone's dtype.

    AdamW's update of a weight is about the learning rate: in bfloat16, whose spacing near 0.02 is 1e-4, a step of 1e-5
    would be lost to rounding.

    Args:
        backbone: Frozen model.
        lora: Settings.
        seed: Of the adapter's initialization; the global generators are left as they were.

    Raises:
        UserError: A target list matches nothing, or what is trained in full shares its weight with something frozen.
    """
    targets = lora.target_modules or default_targets(backbone)
    missing = unmatched_targets(backbone, targets)
    if isinstance(targets, list) and len(missing) == len(targets):
        raise UserError(
            f"model.lora.target_modules {targets} match no layer of {backbone.name_or_path}. Its linear layers are: "
            f"{', '.join(linear_layers(backbone))}."
        )
    if unknown := unmatched_targets(backbone, lora.modules_to_save or []):
        raise UserError(
            f"model.lora.modules_to_save names {', '.join(unknown)}, which {backbone.name_or_path} has not."
        )
    _refuse_tied(backbone, lora)
    configuration = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets,
        modules_to_save=lora.modules_to_save, task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = get_peft_model(backbone, configuration, autocast_adapter_dtype=True)
        except ValueError as error:
            raise UserError(f"LoRA cannot be put on {backbone.name_or_path}: {error}") from error
    assert isinstance(model, PeftModel)
    return model.train()


def load_lora(backbone: PreTrainedModel, folder: Path, trainable: bool = False) -> PeftModel:
    """Put a saved adapter (a PEFT folder) on the backbone: every tensor of the file, and no other.

    Raises:
        UserError: The folder holds no LoRA, a damaged one, or one of another model; or one that changes the base's own
            weights, so that the base could not be scored with the adapter switched off.
    """
    refuse_damaged_adapter(folder)
    configuration = _lora_config(folder)
    configuration.inference_mode = not trainable
    configuration.base_model_name_or_path = None  # PEFT sets it, and would warn of a change
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: it may be cut short ({error}).") from error
    broken = sorted(name for name, tensor in weights.items() if not tensor.isfinite().all())
    if broken:
        raise UserError(
            f"The adapter in {folder} holds numbers that are not finite, in {some_tensors(broken)}: its training "
            "diverged, or the file is damaged. Train it again."
        )
    try:
        with torch.random.fork_rng():  # PEFT draws an initialization before it is overwritten
            model = get_peft_model(backbone, configuration, autocast_adapter_dtype=True)
        assert isinstance(model, PeftModel)
        refuse_another_models(model, weights, folder)
        set_peft_model_state_dict(model, weights)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"The adapter in {folder} does not fit {backbone.name_or_path}: {error}") from error
    return model.train(trainable)


def _lora_config(folder: Path) -> LoraConfig:
    read_json(folder / CONFIG, keys=["peft_type"], remedy="Save the adapter again.")
    try:
        configuration = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / CONFIG} is no configuration of a PEFT adapter: {error}") from error
    if not isinstance(configuration, LoraConfig):
        raise UserError(f"The adapter in {folder} is of PEFT's kind {configuration.peft_type}; LORA was expected.")
    if configuration.bias != "none" or configuration.init_lora_weights not in (True, False, "gaussian", "orthogonal"):
        raise UserError(
            f"The adapter in {folder} changes the base's own weights (bias {configuration.bias!r}, init_lora_weights "
            f"{configuration.init_lora_weights!r}): without it the base would be another model. Convert it to a plain "
            "LoRA with PEFT (path_initial_model_for_weight_conversion of save_pretrained)."
        )
    return configuration


def refuse_another_models(model: PeftModel, weights: dict[str, Tensor], folder: Path) -> None:
    """Refuse other tensors than the adapter's: PEFT leaves missing ones at their initialization, and drops others."""
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    base = dict(model.named_parameters())
    # PEFT adds a copy of the head or the embeddings where they are adapted. It must be the base's own.
    copies = {
        name
        for name in (weights.keys() - expected.keys()) & base.keys()
        if torch.equal(weights[name].to(base[name]), base[name])
    }
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys() - copies)
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & weights.keys())
        if weights[name].shape != expected[name].shape
    ]
    differences = {"lacks": missing, "has in addition": unexpected, "has in other shapes": shapes}
    if any(differences.values()):
        raise UserError(
            f"The adapter in {folder} does not fit {model.get_base_model().name_or_path}: it "
            + "; it ".join(f"{what} {some_tensors(names)}" for what, names in differences.items() if names)
            + ". Give the base that it was trained on as model.backbone."
        )


def save_lora(model: PeftModel, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write an adapter as a PEFT folder: the same adapter gives the same bytes in every process.

    Call it inside `complete_folder`, which flushes the files and makes the folder appear whole. `SHA256SUMS` lies next
    to PEFT's two files, for `sha256sum --check` and for `load_lora`.

    Args:
        model: The model.
        folder: An existing folder.
        state_dict: The whole adapter of a sharded model, gathered; None takes the model's own.

    Raises:
        OSError: The file system refused a file.
    """
    try:
        # The head's or the embeddings' frozen weights are the base's: they are not part of an adapter.
        model.save_pretrained(str(folder), state_dict=state_dict, save_embedding_layers=False)
    except SafetensorError as error:  # it wraps the system's error in a text
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), str(error), str(folder / WEIGHTS)) from error
        raise
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    # PEFT writes sets in the order of their hashes, which is another in every process.
    configuration = sorted_names(read_json(folder / CONFIG))
    (folder / CONFIG).write_text(json.dumps(configuration, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    sums = "".join(f"{hash_file(folder / name)}  {name}\n" for name in (CONFIG, WEIGHTS))
    (folder / SUMS).write_text(sums, encoding="ascii")


def default_targets(backbone: nn.Module) -> list[str] | str:
    """The seven projections where the backbone has them all, else PEFT's `all-linear` (every layer but the head)."""
    return "all-linear" if unmatched_targets(backbone, PROJECTIONS) else list(PROJECTIONS)


def unmatched_targets(backbone: nn.Module, targets: list[str] | str) -> list[str]:
    """The names in `targets` that no layer of the backbone ends in."""
    if isinstance(targets, str):
        return []
    layers = [name for name, _ in backbone.named_modules()]
    return [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in layers)]


def linear_layers(backbone: nn.Module) -> list[str]:
    """Last names of the backbone's linear layers, each once."""
    kinds = ("Linear", "Conv1D", "Linear4bit")
    names = [name for name, module in backbone.named_modules() if type(module).__name__ in kinds]
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def _refuse_tied(backbone: PreTrainedModel, lora: Lora) -> None:
    """Embeddings and head that share one weight cannot be trained in one place and stay frozen in the other."""
    if not backbone.config.get_text_config().tie_word_embeddings:
        return
    ends = [backbone.get_input_embeddings(), backbone.get_output_embeddings()]
    names = {name.rsplit(".", 1)[-1] for name, module in backbone.named_modules() if module in ends}
    named = names & {*(lora.modules_to_save or []), *(lora.target_modules or [])}
    if named:
        raise UserError(
            f"model.lora names {sorted(named)}, but {backbone.name_or_path} ties its embeddings to its head: the two "
            "would drift apart. Leave them out, or use a backbone whose embeddings are not tied."
        )
