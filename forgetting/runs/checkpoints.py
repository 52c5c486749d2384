"""Checkpoints: when a run writes one, how, and how it is read when the run resumes."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from forgetting.artifacts import complete_or_absent, hash_file, write_text
from forgetting.errors import UserError
from forgetting.runs.signals import leave, signals_of

SUMS = "sha256"
"""File with the hashes of the last ten checkpoints (a process killed before it renames leaves one that never was)."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint next to its target, flushes it and renames it; the one before is kept as `previous.ckpt`.

    Lightning's own writes into the temporary folder and moves the file from there. Where that is another file system,
    moving is copying over the only checkpoint there is.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, whole or not at all.

        Raises:
            UserError: The file system refuses; what was there stays.
        """
        path = Path(path)
        with complete_or_absent(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch's writer gives no OSError
                raise UserError(
                    f"The checkpoint {path} could not be written ({str(error).splitlines()[0]}). Free some space or "
                    "write elsewhere, and run the same command again: the checkpoint before this one is kept."
                ) from error
            _add_sum(path.parent / SUMS, hash_file(temporary))
            if path.exists():
                os.replace(path, path.with_name("previous.ckpt"))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint, compared with its hash."""
        return load_checkpoint(Path(path))


def load_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint, refusing one in which a byte differs from what was written.

    One without hashes next to it is accepted if torch can read it.

    Args:
        path: The file.
        mmap: Leave the tensors in the file.

    Raises:
        UserError: It is cut short, damaged, or no checkpoint.
    """
    sums = path.parent / SUMS
    if sums.is_file() and hash_file(path) not in sums.read_text(encoding="ascii", errors="replace").split():
        raise UserError(_damaged(path, f"its SHA-256 is none of those in {sums}"))
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(_damaged(path, f"{type(error).__name__}: {str(error).splitlines()[0]}")) from error


def steps_in_checkpoint(path: Path) -> int:
    """Optimizer steps done when a checkpoint was written, without loading a tensor.

    Raises:
        UserError: As `load_checkpoint`.
    """
    return int(load_checkpoint(path, mmap=True)["global_step"])


def _add_sum(file: Path, sha256: str) -> None:
    """Note the hash of a checkpoint before it gets its name: no checkpoint exists without its hash."""
    hashes = file.read_text(encoding="ascii", errors="replace").split() if file.is_file() else []
    write_text(file, "\n".join([*hashes[-9:], sha256]) + "\n")


def _damaged(path: Path, reason: str) -> str:
    previous = path.with_name("previous.ckpt")
    remedy = (
        f"Replace it by the one before (mv {previous} {path}) to resume from there"
        if previous.is_file() and previous != path
        else "Remove it to start the run again"
    )
    return f"The checkpoint {path} cannot be read ({reason}): it was cut short or damaged. {remedy}."


class ResumePoint(Checkpoint):
    """Writes the run's one checkpoint: every `every_n_steps`, at the last step, and when the run is asked to end.

    A checkpoint covers a step and the validation that follows it: it is written once that validation is logged, since
    Lightning does not repeat a validation that a stopped run missed.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self._signal: int | None = None
        self._due = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decide whether this step is kept, and keep it unless its validation is still to come."""
        self._signal = signals_of(trainer).agreed()
        done = trainer.global_step
        last = done == trainer.estimated_stepping_batches
        self._due = done % self.every_n_steps == 0 or last or self._signal is not None
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        if not loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The step's validation is logged."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._signal = signals_of(trainer).agreed()
            self._due |= self._signal is not None
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if self._due:
            self._due = False
            trainer.save_checkpoint(self.path, weights_only=False)  # with the optimizer's state
        leave(self._signal)
