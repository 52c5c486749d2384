"""Provenance: everything that a run was made from, and the refusal to mix it with anything else."""

import platform
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from forgetting.artifacts import hash_content
from forgetting.errors import UserError
from forgetting.machine import device_name, versions
from forgetting.method.data import ForgettingData
from forgetting.method.module import FineTuner
from forgetting.model.backbone import backbone_identity
from forgetting.runs.run import Run

FORMAT = 2


def training_versions() -> dict[str, str]:
    """Versions of Python and of the packages that train and score."""
    return {"python": platform.python_version(), **versions("forgetting", "lightning")}


def provenance(run: Run, data: ForgettingData, module: FineTuner) -> dict[str, Any]:
    """Everything that a run is made from, every input by its hash."""
    selected = data.selected
    return {
        "format": FORMAT, "id": run.id, "seed": run.seed, "config_hash": run.config_hash, "computed": run.computed,
        "inputs": all_inputs(data, module),
        "selected": None if selected is None else {
            "num_positive": selected.num_positive, "num_negative": selected.num_negative,
        },
        "unmatched_targets": module.unmatched_targets,
    }  # fmt: skip


def launch(trainer: lightning.Trainer, data: ForgettingData, module: FineTuner) -> dict[str, Any]:
    """Where and how a launch of a run computes. It changes digits at most, such as which draws dropout makes."""
    return {
        "versions": training_versions(), "device": device_name(trainer.strategy.root_device),
        "num_processes": trainer.world_size, "strategy": type(trainer.strategy).__name__,
        "micro_batch_tokens": data.token_budget,
        "activation_checkpointing": module.activation_checkpointing, "compile": module.compile_decoder,
        "attention": module.attention,
    }  # fmt: skip


def common_inputs(data: ForgettingData, module: FineTuner) -> dict[str, Any]:
    """The inputs that every command on a run depends on."""
    return {
        "corpus": data.corpus.content_hash, "tokens": data.tokens.content_hash,
        "base": backbone_identity(module.backbone, module.revision), "tokenizer": data.tokenizer_hash,
    }  # fmt: skip


def all_inputs(data: ForgettingData, module: FineTuner) -> dict[str, Any]:
    """The inputs of training."""
    store = data.store
    return {
        **common_inputs(data, module),
        "adapter": module.adapter_hash,
        "store": None if store is None else store.hash,
        "scores": None if data.scored is None else data.scored.hash,
        "reference": None if store is None else store.identity["adapter"],
    }


def checkpoint_identity(run: Run, inputs: dict[str, Any]) -> dict[str, Any]:
    """The identity of the run that a checkpoint belongs to."""
    hashes = {**inputs, "base": inputs["base"]["hash"]}  # whatever the base is called
    return {"id": run.id, "seed": run.seed, "config_hash": run.config_hash, "inputs": hash_content(hashes)}


def refuse_other_inputs(run: Run, inputs: dict[str, Any], trainer: lightning.Trainer) -> None:
    """Refuse to resume a run whose inputs have changed. Every rank calls it and every rank raises.

    Raises:
        UserError: What the run was made from is not what is there now.
    """
    message = _other_inputs(run, inputs) if trainer.is_global_zero else None
    # One rank reads the file; if it alone raised, the others would wait for it.
    message = trainer.strategy.broadcast(message)
    if message is not None:
        raise UserError(message)


def _other_inputs(run: Run, inputs: dict[str, Any]) -> str | None:
    try:
        record = run.provenance()
    except UserError as error:
        return str(error)
    if record is None:
        return None
    for name, current in inputs.items():
        recorded = record["inputs"].get(name)
        same = recorded == current
        if name == "base":  # whatever the base model is called
            same = isinstance(recorded, dict) and recorded.get("hash") == current["hash"]
        if not same:
            return (
                f"{run.folder} holds a run made from another {name} ({recorded} there, {current} now): resuming would "
                "mix the two. Move the folder away, or give another --run.root."
            )
    return None


class InputCheck(Callback):
    """Before a finished run is scored or validated: what it was trained on is what is there now."""

    def __init__(self, run: Run, module: FineTuner, data: ForgettingData) -> None:
        self.run, self.module, self.data = run, module, data

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Before scoring."""
        refuse_other_inputs(self.run, common_inputs(self.data, self.module), trainer)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Before validating."""
        refuse_other_inputs(self.run, common_inputs(self.data, self.module), trainer)
