"""What a run leaves in its folder: where it came from, what it cost, its adapter, its scores."""

import platform
import resource
import shutil
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from peft import PeftModel
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from forgetting.artifacts import read_json, write_json
from forgetting.model.backbone import backbone_identity
from forgetting.run import Run
from forgetting.scores.scoring import ShardScores, ShardWork
from forgetting.scores.store import close_store, write_shard
from forgetting.training.data import ForgettingData
from forgetting.training.estimate import estimate
from forgetting.training.logging import MetricsFile
from forgetting.training.module import FineTuner
from forgetting.training.provenance import provenance, refuse_other_inputs, versions

LOOK_AHEAD = 1000
"""Steps whose micro-batches are looked at to tell what memory the largest will take."""


def device_name(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


class CostRecord(Callback):
    """Adds an entry to `cost.json`: wall time, device, tokens and peak memory of a stage (the form of Table 11).

    Args:
        stage: `fit` or `score`.
        folder: Where the file lies.
    """

    def __init__(self, stage: str, folder: Path) -> None:
        self.stage = stage
        self.path = folder / "cost.json"
        self.tokens = 0
        self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:  # fmt: skip
        """Count a step's tokens."""
        self.tokens += batch.num_tokens

    def on_predict_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: ShardWork, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Count a shard's tokens, padding included."""
        self.tokens += sum(
            b.input_ids.numel() for b, rows in zip(batch.micro_batches, batch.members, strict=True) if rows
        )

    def write(self, trainer: lightning.Trainer) -> None:
        """Add the entry."""
        device = trainer.strategy.root_device
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        entries = read_json(self.path, list) if self.path.is_file() else []
        seconds = time.perf_counter() - self.start
        entry = {
            "stage": self.stage, "seconds": seconds, "device": device_name(device), "num_devices": trainer.world_size,
            "tokens": self.tokens, "peak_memory_bytes": peak,
        }  # fmt: skip
        write_json(self.path, [*entries, entry])


class RunRecord(Callback):
    """Writes a run's folder: provenance at the start, the adapter at the end (its presence means: complete).

    Args:
        run: The run.
        config_text: The whole configuration, for `fit.yaml`.
        metrics: The run's metrics file.
        cost: What the run costs.
    """

    def __init__(self, run: Run, config_text: str, metrics: MetricsFile, cost: CostRecord) -> None:
        self.run = run
        self.config_text = config_text
        self.metrics = metrics
        self.cost = cost

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Everything is loaded and nothing is trained yet: say what this run is made from."""
        assert isinstance(pl_module, FineTuner)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ForgettingData)
        made_from = provenance(self.run, data, pl_module)
        refuse_other_inputs(self.run, made_from["inputs"], trainer)
        if trainer.is_global_zero:
            self.run.folder.mkdir(parents=True, exist_ok=True)
            (self.run.folder / "fit.yaml").write_text(self.config_text, encoding="utf-8")
            write_json(self.run.provenance_file, made_from)
            for logger in trainer.loggers:
                logger.log_hyperparams(yaml.safe_load(self.config_text))
            print(preflight(trainer, pl_module), flush=True)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The checkpoint, if any, is restored by now."""
        self.metrics.start_at(trainer.global_step)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """What was logged up to a checkpoint is on disk when the checkpoint is."""
        self.metrics.write()

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the adapter as a plain PEFT folder."""
        assert isinstance(pl_module, FineTuner)
        if trainer.global_step < pl_module.total_steps:
            return  # interrupted: the checkpoint says where to go on
        save_adapter(pl_module, self.run.adapter, trainer.is_global_zero)
        if trainer.is_global_zero:
            self.cost.write(trainer)


def preflight(trainer: lightning.Trainer, module: FineTuner) -> str:
    """What is about to happen, in one paragraph."""
    trained = sum(p.numel() for p in module.trainable().values())
    total = sum(p.numel() for p in module.language_model.parameters())
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ForgettingData)
    lines = [
        f"{type(module.objective).__name__} on {module.backbone}: {trained:,} of {total:,} parameters are trained, "
        f"{module.total_steps:,} optimiser steps of {data.batch_size} sequences over "
        f"{len(data.tokens.split(data.train_split)):,} examples, {trainer.world_size} process(es), {trainer.precision}"
    ]
    if data.sides is not None:
        ranked = "sequences" if data.selection.granularity == "sequence" else "response tokens"
        lines.append(f"{data.sides.num_positive:,} {ranked} positive, {data.sides.num_negative:,} negative")
    loader: Any = data.train_dataloader()
    steps = list(islice(loader.sampler, LOOK_AHEAD))
    most_tokens = max(loader.dataset.largest(indices) for indices in steps)
    expected = estimate(trainer, module, loader.dataset[steps[0]], most_tokens)
    if expected is not None:
        lines.append(str(expected))
    if module.unmatched_targets:
        lines.append(f"LoRA targets that match no layer of this backbone: {', '.join(module.unmatched_targets)}")
    return "\n".join(lines)


def save_adapter(module: FineTuner, folder: Path, write: bool) -> None:
    """Save the adapter in PEFT's format, complete or not at all. Every rank calls it; one writes.

    Args:
        module: With a loaded model.
        folder: What to make.
        write: Whether this rank writes.
    """
    model = module.language_model.model
    assert isinstance(model, PeftModel)
    state = None
    if module.device_mesh is not None:  # sharded: gather the whole adapter on the first rank
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        state = get_model_state_dict(model, options=options)
    if not write:
        return
    temporary = folder.with_name(".adapter.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(str(temporary), state_dict=state, safe_serialization=True)
    (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    temporary.replace(folder)


class ScoreWriter(Callback):
    """Writes each shard as it is scored, and the manifest at the end."""

    def on_predict_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: ShardScores | None,
        batch: ShardWork, batch_idx: int, dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Write a shard."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if outputs is not None:
            write_shard(
                data.store_folder, outputs.shard, data.store_identity, outputs.num_targets, outputs.nll_base,
                outputs.nll_reference,
            )  # fmt: skip

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Every rank has written its shards."""
        trainer.strategy.barrier("scores")


def finish_store(trainer: lightning.Trainer, module: FineTuner, data: ForgettingData) -> None:
    """Write the manifest of a store whose shards are all there; one process does."""
    if not trainer.is_global_zero:
        return
    assert data.store_folder is not None
    record = {"versions": versions(), "backbone": backbone_identity(data.backbone, data.revision)}
    close_store(data.store_folder, data.store_identity, data.shards(), record)
