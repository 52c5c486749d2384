"""What a run was made from, and the refusal to mix it with anything else."""

import platform
from importlib.metadata import version
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from forgetting.artifacts import read_json
from forgetting.errors import UserError
from forgetting.model.backbone import backbone_identity
from forgetting.run import Run
from forgetting.training.data import ForgettingData
from forgetting.training.module import FineTuner


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    names = ("forgetting", "torch", "lightning", "transformers", "peft", "datasets")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def provenance(run: Run, data: ForgettingData, module: FineTuner) -> dict[str, Any]:
    """What `provenance.json` of a run says: every input by its hash."""
    store, sides = data.store, data.sides
    return {
        "format": 1, "id": run.id, "seed": run.seed, "config_hash": run.config_hash, "computed": run.computed,
        "inputs": {
            **common_inputs(data, module),
            "adapter": module.adapter_hash,
            "store": None if store is None else store.hash,
            "reference": None if store is None else store.identity["adapter"],
        },
        "sides": None if sides is None else {"num_positive": sides.num_positive, "num_negative": sides.num_negative},
        "unmatched_targets": module.unmatched_targets,
        "versions": versions(),
    }  # fmt: skip


def common_inputs(data: ForgettingData, module: FineTuner) -> dict[str, Any]:
    """The inputs that every command on a run depends on."""
    return {
        "corpus": data.corpus.content_hash, "tokens": data.tokens.content_hash,
        "base": backbone_identity(module.backbone, module.revision),
    }  # fmt: skip


def refuse_other_inputs(run: Run, inputs: dict[str, Any], trainer: lightning.Trainer) -> None:
    """Refuse to go on with a run whose inputs have changed. Every rank calls it and every rank raises.

    Raises:
        UserError: What the run was made from is not what is there now.
    """
    message = None
    if trainer.is_global_zero and run.provenance_file.is_file():
        before = read_json(run.provenance_file)["inputs"]
        for name, now in inputs.items():
            was = before.get(name)
            if (was["hash"] != now["hash"]) if name == "base" else (was != now):
                message = (
                    f"{run.folder} holds a run made from another {name} ({was} there, {now} now): going on would mix "
                    "the two. Move the folder away, or give another --run.root."
                )
                break
    # One rank reads the file; if it alone raised, the others would wait for it.
    message = trainer.strategy.broadcast(message)
    if message is not None:
        raise UserError(message)


class InputCheck(Callback):
    """Before a finished run is scored or validated: what it was trained on is what is there now.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Before scoring."""
        self._check(trainer, pl_module)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Before validating."""
        self._check(trainer, pl_module)

    def _check(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(module, FineTuner)
        assert isinstance(data, ForgettingData)
        refuse_other_inputs(self.run, common_inputs(data, module), trainer)
