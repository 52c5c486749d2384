"""A run that is asked to end (SIGTERM, SIGUSR1) ends between two passes, on all ranks at the same one."""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from forgetting.artifacts import is_alive

PARENT = "FORGETTING_PARENT"


class Signals(_SignalConnector):
    """Notes that the run shall end, and does nothing else inside the handler.

    Lightning's own handler broadcasts there while another rank may be in the middle of an all-reduce: both then wait
    forever. On SLURM it also writes a checkpoint of its own and lets the job be queued again; here a job that is
    submitted again resumes from the run's one checkpoint.
    """

    received: int | None = None

    def register_signal_handlers(self) -> None:
        """Install the handlers; Lightning restores what was there before when a stage ends."""
        self.received = None
        self._original_handlers = self._get_current_signal_handlers()
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._register_signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        launcher: Any = self.trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(number)  # to the processes that this one started

    def agreed(self) -> int | None:
        """The signal, if any rank has received one. All ranks call it at the same place."""
        if self.trainer.world_size == 1:
            return self.received
        asked = self.trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)
        return (self.received or signal.SIGTERM) if asked else None


def signals_of(trainer: Trainer) -> Signals:
    """The signal handlers of this package's Trainer."""
    signals = trainer._signal_connector
    assert isinstance(signals, Signals), "use forgetting.runs.trainer.Trainer"
    return signals


def leave(number: int | None) -> None:
    """End the process with the status that a shell shows for a signal; None does nothing."""
    if number is not None:
        sys.exit(128 + number)


def leave_with_parent() -> None:
    """Let a rank end when the process that started it is gone, whatever it is waiting for.

    Lightning starts the other ranks of a node before they have found each other. When the first one is ended there, by
    a signal or an error, they would wait for it for half an hour.
    """
    parent = int(os.environ.get(PARENT, os.getpid()))
    if "LOCAL_RANK" in os.environ and parent != os.getpid():
        threading.Thread(target=_end_after, args=(parent, os.getppid() == parent), daemon=True).start()
    os.environ[PARENT] = str(os.getpid())


def _end_after(parent: int, is_ours: bool) -> None:
    # It may be gone before we come to look: then we are another process's child already.
    while os.getppid() == parent or (not is_ours and is_alive(parent)):
        time.sleep(1)
    os._exit(128 + signal.SIGTERM)


class LeaveWhenAsked(Callback):
    """Ends `score` and `validate` between two forward passes: what they write is complete or absent anyway.

    `fit` is ended by `ResumePoint`, which writes a checkpoint first.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before every forward pass: a shard of a large model takes a quarter of an hour."""
        signals = signals_of(trainer)
        # The ranks of a sharded model make every pass together; others do not wait for each other.
        sharded = pl_module.device_mesh is not None
        pl_module.language_model.register_forward_pre_hook(  # type: ignore[union-attr,operator]
            lambda *_: leave(signals.agreed() if sharded else signals.received)
        )

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Look after every batch of `validate`; inside `fit` the validation is finished first."""
        if trainer.state.fn != "fit":
            leave(signals_of(trainer).agreed())
