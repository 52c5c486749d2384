"""LoRA on a frozen backbone, by PEFT, with the paper's values as defaults."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from forgetting.artifacts import hash_content, hash_file
from forgetting.errors import UserError

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
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"model.lora.rank is {self.rank}; it must be at least 1.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.lora.dropout is {self.dropout}; it must be in [0, 1).")


def add_lora(backbone: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """Put a fresh adapter on every target; only the adapter trains, in float32 whatever the backbone's dtype.

    AdamW's update of a weight is about the learning rate: in bfloat16, whose spacing near 0.02 is 1e-4, a step of 1e-5
    would be lost to rounding.

    Args:
        backbone: Frozen model.
        lora: Settings.
        seed: Of the adapter's initialisation; the global generators are left as they were.

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
    return model


def load_lora(backbone: PreTrainedModel, folder: Path, trainable: bool = False) -> PeftModel:
    """Put a saved adapter (a PEFT folder) on the backbone.

    Raises:
        UserError: The folder holds no adapter, or one of another model's shapes.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no PEFT adapter: {name} is missing.")
    try:
        return PeftModel.from_pretrained(backbone, str(folder), is_trainable=trainable, autocast_adapter_dtype=True)
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"The adapter in {folder} does not fit {backbone.name_or_path}: {error}") from error


def adapter_hash(folder: Path) -> str:
    """Hash of a PEFT folder: its configuration and its weights."""
    files = ("adapter_config.json", "adapter_model.safetensors")
    return hash_content([[name, hash_file(folder / name)] for name in files])


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
