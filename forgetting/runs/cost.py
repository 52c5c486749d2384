"""The cost of training, over all launches of a run."""

import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from forgetting.machine import device_name, peak_memory_bytes
from forgetting.method.module import FineTuner
from forgetting.run_folder import record_cost


class Cost(Callback):
    """What `fit` takes: seconds and tokens of the steps that the adapter is made from, over all launches.

    The clock runs from the first step, with the waiting for data and without validation. It is kept in the checkpoint:
    steps that a kill undid are not counted, and those of earlier launches are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds, self.tokens, self.launches = 0.0, 0, 0
        self._mark = 0.0

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"seconds": self.seconds, "tokens": self.tokens, "launches": self.launches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.seconds, self.tokens = state_dict["seconds"], state_dict["tokens"]
        self.launches = state_dict["launches"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The clock starts; the checkpoint, if any, is restored by now."""
        self.launches += 1
        self._mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:  # fmt: skip
        """Count a step, of all ranks together."""
        now = time.perf_counter()
        self.seconds, self._mark = self.seconds + now - self._mark, now
        self.tokens += batch.num_tokens

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave out what validation took."""
        self._mark = time.perf_counter()

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the entry, if the run is complete. It comes before the adapter, whose presence ends the run."""
        assert isinstance(pl_module, FineTuner)
        if trainer.is_global_zero and trainer.global_step >= pl_module.total_steps:
            entry = {"stage": "fit", "seconds": self.seconds, "tokens": self.tokens, "launches": self.launches}
            record_cost(self.folder, {**entry, **machine_record(trainer)}, replace=True)


def machine_record(trainer: lightning.Trainer) -> dict[str, Any]:
    """Device, number of devices and peak memory in bytes, for an entry of `cost.json`."""
    device = trainer.strategy.root_device
    peak = peak_memory_bytes(device)
    return {"device": device_name(device), "num_devices": trainer.world_size, "peak_memory_bytes": peak}
