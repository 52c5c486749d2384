"""A small experiment in a folder, and a callback that kills it in the middle."""

import csv
import json
import os
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback

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


def metrics(run: Path = RUN) -> list[dict[str, str]]:
    """The rows of metrics.csv without what a clock measured."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name != "train/tokens_per_second"} for row in rows]


def adapter_bytes(run: Path = RUN) -> bytes:
    """The trained weights."""
    return (run / "adapter/adapter_model.safetensors").read_bytes()
