"""A small experiment in a folder, and processes that are killed in the middle of it."""

import contextlib
import csv
import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import forgetting.runs.trainer_cli  # noqa: F401 - what a fork has to have imported already
from forgetting.cli import main

EXPERIMENT = """
run: {{checkpoint_every_n_steps: 2}}
trainer:
  accelerator: cpu
  devices: 1
  precision: 32-true
  enable_progress_bar: false
  max_epochs: 2
  val_check_interval: 0.5
model:
  backbone: backbone
  dtype: float32
  lora: {{rank: 4}}
  learning_rate: 1.0e-2
  objective: {{class_path: {objective}}}
data:
  corpus:
    sources:
      made: {{path: source.jsonl, prompt: "{{question}}", response: "{{answer}}"}}
    num_train: 40
    num_reference: 16
    num_validation: 8
  max_length: 64
  batch_size: 6
  shard_size: 8
  micro_batch_tokens: 128
  split: {split}
"""
REFERENCE, METHOD = "experiments/tiny/reference.yaml", "experiments/tiny/forgetting.yaml"
RUN = Path("runs/tiny/forgetting/seed-0")
STEPS = 14  # two epochs of 40 sequences, 6 a step


def write_experiments(folder: Path) -> None:
    """A backbone, a source, a reference and a method."""
    from conftest import write_backbone

    write_backbone(folder / "backbone")
    rows = [
        {"question": f"What is {i} plus {i % 7}?", "answer": f"It is {i + i % 7}" + "." * (i % 11)} for i in range(80)
    ]
    (folder / "source.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "experiments/tiny").mkdir(parents=True)
    (folder / REFERENCE).write_text(EXPERIMENT.format(objective="MeanNLL", split="reference"))
    (folder / METHOD).write_text(EXPERIMENT.format(objective="Forgetting", split="train"))


class SignalAt(Callback):
    """Sends this very process a signal when it has done a step, or when a stage of it begins.

    Args:
        number: The signal.
        step: Optimizer steps done.
        rank: The rank that gets it.
        on: `step` (before its checkpoint), `next` (after it, and after its validation), `end` (of training),
            `validation` or `predict`.
    """

    def __init__(self, number: int = 9, step: int = 0, rank: int = 0, on: str = "step") -> None:
        self.number, self.step, self.rank, self.on = number, step, rank, on

    def _send(self, trainer: lightning.Trainer, on: str) -> None:
        if on == self.on and trainer.global_rank == self.rank and trainer.global_step >= self.step:
            os.kill(os.getpid(), self.number)

    def on_train_batch_end(self, trainer, *args, **kwargs) -> None:
        if trainer.global_step == self.step:
            self._send(trainer, "step")

    def on_train_batch_start(self, trainer, *args, **kwargs) -> None:
        if trainer.global_step == self.step:
            self._send(trainer, "next")

    def on_train_end(self, trainer, *args, **kwargs) -> None:
        self._send(trainer, "end")

    def on_validation_batch_end(self, trainer, *args, **kwargs) -> None:
        self._send(trainer, "validation")

    def on_predict_batch_start(self, trainer, *args, **kwargs) -> None:
        self._send(trainer, "predict")


def signal_at(**settings: object) -> list[str]:
    """Options that add a `SignalAt`."""
    options = [f"--trainer.callbacks.{name}={value}" for name, value in settings.items()]
    return ["--trainer.callbacks=small_experiment.SignalAt", *options]


LAUNCHERS = ("SLURM_", "MASTER_", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE", "TORCHELASTIC", "GROUP_")
"""Beginnings of the variables by which a launcher says to a process which rank it is."""


class Forked:
    """The command line in a process of its own, forked from this one, which spares it seconds of imports.

    Args:
        arguments: Of the command line.
        folder: In which it runs.
        keep_output: Keep what it prints for `finish`, instead of printing it here.
        **variables: Of its environment, in which there are none of a launcher but these.
    """

    def __init__(
        self, arguments: Sequence[str], folder: Path = Path(), keep_output: bool = False, **variables: str
    ) -> None:
        self._output = tempfile.TemporaryFile() if keep_output else None  # noqa: SIM115 - closed by finish
        self.pid = os.fork()
        if self.pid == 0:
            self._run(list(arguments), folder, variables)

    def _run(self, arguments: list[str], folder: Path, variables: dict[str, str]) -> None:
        status = 70
        try:
            if self._output is not None:
                os.dup2(self._output.fileno(), 1)
                os.dup2(self._output.fileno(), 2)
                sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
            os.chdir(folder)
            for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
                del os.environ[name]
            os.environ.update(variables)
            rank_zero_only.rank = int(variables.get("LOCAL_RANK", variables.get("SLURM_PROCID", 0)))  # as on import
            main(arguments)
            status = 0
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:  # noqa: BLE001 - whatever it was, the parent's tests must not run on in this process
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def finish(self, timeout: float = 150) -> tuple[int, str]:
        """Its status, or minus the signal that ended it, and what it printed. It is killed when the time is over."""
        deadline = time.monotonic() + timeout
        while (ended := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"after {timeout} s:\n{self._printed()}")
            time.sleep(0.01)
        return os.waitstatus_to_exitcode(ended[1]), self._printed()

    def _printed(self) -> str:
        if self._output is None:
            return ""
        with self._output as output:
            output.seek(0)
            return output.read().decode()


def in_process(arguments: Sequence[str]) -> int:
    """Run the command line in a process of its own: its status, or minus the signal that ended it."""
    return Forked(arguments).finish(500)[0]


def free_port() -> str:
    """A port that nobody listens at."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return str(opened.getsockname()[1])


def on_ranks(arguments: Sequence[str], number: int = 2, folder: Path = Path()) -> list[tuple[int, str]]:
    """Run the command line on several ranks as a launcher would: status and output of each."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NODE_RANK": "0", "WORLD_SIZE": str(number)}
    started = [Forked(arguments, folder, True, **shared, LOCAL_RANK=str(rank)) for rank in range(number)]
    return finish(*started)


def finish(*started: Forked) -> list[tuple[int, str]]:
    """Status and output of each process; none may hang."""
    try:
        return [process.finish() for process in started]
    except TimeoutError:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        raise


def metrics(run: Path = RUN) -> list[dict[str, str]]:
    """The rows of metrics.csv without what a clock measured."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name != "train/tokens_per_second"} for row in rows]


def adapter_bytes(run: Path = RUN) -> bytes:
    """The trained weights."""
    return (run / "adapter/adapter_model.safetensors").read_bytes()
