"""What a run leaves in its folder: where it came from, what it cost, its adapter, its scores."""

import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from peft import PeftModel
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from forgetting.artifacts import complete_folder, complete_or_absent, read_json, write_json
from forgetting.errors import UserError
from forgetting.lock import locked
from forgetting.machine import device_name, peak_memory_bytes
from forgetting.method.data import ForgettingData
from forgetting.method.module import FineTuner
from forgetting.method.scoring import ScoringData, ShardScores, ShardWork
from forgetting.method.store import ScoreStore, ShardRange, close_store, write_shard
from forgetting.model.backbone import backbone_identity
from forgetting.model.lora import save_lora
from forgetting.run_folder import record_cost
from forgetting.runs.estimate import estimate
from forgetting.runs.metrics import MetricsFile
from forgetting.runs.provenance import (
    all_inputs,
    checkpoint_identity,
    launch,
    provenance,
    refuse_other_inputs,
    training_versions,
)
from forgetting.runs.run import Run

LOOK_AHEAD = 1000
"""Steps whose micro-batches are looked at to tell what memory the largest will take."""


class Cost(Callback):
    """What `fit` takes: seconds and tokens of the steps that the adapter is made from, over all launches.

    The clock runs from the first step, with the waiting for data and without validation. It is kept in the checkpoint:
    steps that a kill undid are not counted, and those of earlier launches are.

    Args:
        folder: The run's.
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
            record_cost(self.folder, {**entry, **_machine(trainer)}, replace=True)


def _machine(trainer: lightning.Trainer) -> dict[str, Any]:
    device = trainer.strategy.root_device
    peak = peak_memory_bytes(device)
    return {"device": device_name(device), "num_devices": trainer.world_size, "peak_memory_bytes": peak}


class RunRecord(Callback):
    """Writes a run's folder: provenance at the start, the adapter at the end (its presence means: complete).

    Args:
        run: The run.
        config_text: The whole configuration, for `fit.yaml`.
        metrics: The run's metrics file.
        module: What is trained.
        data: What it is trained on.
    """

    def __init__(
        self, run: Run, config_text: str, metrics: MetricsFile, module: FineTuner, data: ForgettingData
    ) -> None:
        self.run = run
        self.config_text = config_text
        self.metrics = metrics
        self.module, self.data = module, data

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Everything is loaded and nothing is trained yet: say what this run is made from."""
        made_from = provenance(self.run, self.data, self.module)
        refuse_other_inputs(self.run, made_from["inputs"], trainer)
        if trainer.is_global_zero:
            self.run.folder.mkdir(parents=True, exist_ok=True)
            before = self.run.provenance() or {"launches": []}
            launches = [*before["launches"], launch(trainer, self.data, self.module)]
            with complete_or_absent(self.run.folder / "fit.yaml") as temporary:
                temporary.write_text(self.config_text, encoding="utf-8")
            write_json(self.run.provenance_file, {**made_from, "launches": launches})
            for logger in trainer.loggers:
                logger.log_hyperparams(yaml.safe_load(self.config_text))
            print(preflight(trainer, self.module, self.data), flush=True)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The checkpoint, if any, is restored by now."""
        self.metrics.start_at(trainer.global_step)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say whose it is. What was logged up to a checkpoint is on disk when the checkpoint is."""
        checkpoint["run"] = checkpoint_identity(self.run, all_inputs(self.data, self.module))
        self.metrics.write()

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse the checkpoint of another run, and to resume this one where an input has changed."""
        refuse_other_inputs(self.run, all_inputs(self.data, self.module), trainer)
        ours, theirs = checkpoint_identity(self.run, all_inputs(self.data, self.module)), checkpoint.get("run") or {}
        odd = [name for name in ours if theirs.get(name) != ours[name]]
        if odd:
            raise UserError(
                f"The checkpoint {trainer.ckpt_path} is of another run than {self.run.folder}: "
                + "; ".join(f"{name} is {theirs.get(name)!r} there, {ours[name]!r} here" for name in odd)
                + ". Leave --ckpt_path out; to start from another run's adapter give it as model.adapter."
            )

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the adapter as a plain PEFT folder."""
        if trainer.global_step < self.module.total_steps:
            return  # interrupted: the checkpoint says where to resume
        save_adapter(self.module, self.run.adapter, trainer.is_global_zero)


def preflight(trainer: lightning.Trainer, module: FineTuner, data: ForgettingData) -> str:
    """What is about to happen, in one paragraph."""
    trained = sum(p.numel() for p in module.trainable().values())
    total = sum(p.numel() for p in module.language_model.parameters())
    lines = [
        f"{type(module.objective).__name__} on {module.backbone}: {trained:,} of {total:,} parameters are trained, "
        f"{module.total_steps:,} optimizer steps of {data.batch_size} sequences over "
        f"{len(data.tokens.split(data.train_split)):,} examples, {trainer.world_size} process(es), {trainer.precision}"
    ]
    if data.selected is not None:
        ranked = "sequences" if data.selection.granularity == "sequence" else "response tokens"
        score = type(data.score).__name__
        counts = f"{data.selected.num_positive:,} {ranked} positive, {data.selected.num_negative:,} negative"
        lines.append(f"{counts}, by {score}")
        if not data.selected.num_negative:
            lines.append("Nothing is negative: the negative term is 0 at every step, whatever λ.")
    loader: Any = data.train_dataloader()
    steps = list(islice(loader.sampler, LOOK_AHEAD))
    if steps:  # none are left where only the adapter is still to be written
        most_tokens = max(loader.dataset.largest(indices) for _, indices in steps)
        expected = estimate(trainer, module, loader.dataset[steps[0]], most_tokens)
        lines += [] if expected is None else [str(expected)]
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
    state: Any = None
    if module.device_mesh is not None:  # sharded: gather the whole adapter on the first rank
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        state = get_model_state_dict(model, options=options)
    if not write:
        return
    trained = module.trainable() if state is None else state
    if broken := [name for name, tensor in trained.items() if not torch.isfinite(tensor).all()]:
        raise UserError(
            f"The run diverged in its last step: {len(broken)} of the adapter's tensors, such as {broken[0]}, hold "
            f"numbers that are not finite. It is not saved. Remove {folder.parent} and lower model.learning_rate, "
            "model.weight_decay or λ."
        )
    with complete_folder(folder) as temporary:
        save_lora(model, temporary, state)


class ScoreWriter(Callback):
    """Writes each shard as it is scored, and what it took next to the shards: an interrupted store adds up.

    Args:
        scoring: What is scored.
    """

    def __init__(self, scoring: ScoringData) -> None:
        self.scoring = scoring
        self._held = ExitStack()
        self._start = 0.0

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """One launch at a time writes; a complete store is not written to, and may lie where nobody can."""
        if self.scoring.pending and trainer.is_global_zero:
            self._held.enter_context(locked(self.scoring.folder))

    def on_predict_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: ShardWork, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """The shard's clock starts."""
        self._start = time.perf_counter()

    def on_predict_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: ShardScores | None,
        batch: ShardWork, batch_idx: int, dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Write a shard."""
        if outputs is not None:
            shard, folder = outputs.shard, self.scoring.folder
            lengths = self.scoring.data.tokens.split(shard.split).lengths[shard.first : shard.last]
            seconds = time.perf_counter() - self._start
            took = {"seconds": seconds / trainer.world_size, "tokens": 2 * int(lengths.sum())}  # two models read it
            write_json(_cost_file(folder, shard), took)
            write_shard(folder, shard, self.scoring.identity, outputs.num_targets, outputs.columns)

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Every rank has written its shards."""
        trainer.strategy.barrier("scores")

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Let go of the store."""
        self._held.close()

    def finish(self, trainer: lightning.Trainer, module: FineTuner) -> None:
        """Write the manifest of a store whose shards are all there, and what it took; one process does."""
        scoring, folder = self.scoring, self.scoring.folder
        with self._held:
            if not trainer.is_global_zero or (not scoring.pending and _is_complete(folder)):
                return
            record = {"versions": training_versions(), "backbone": backbone_identity(module.backbone, module.revision)}
            close_store(folder, scoring.identity, scoring.shards, record)
            files = [_cost_file(folder, shard) for shard in scoring.shards]
            costs = [read_json(file, dict, ["seconds", "tokens"]) for file in files if file.is_file()]
            total = {name: sum(cost[name] for cost in costs) for name in ("seconds", "tokens")}
            assert module.adapter is not None
            record_cost(module.adapter.parent, {"stage": "score", **total, **_machine(trainer)}, replace=True)


def _is_complete(folder: Path) -> bool:
    try:
        ScoreStore.open(folder)
    except UserError:
        return False
    return True


def _cost_file(store: Path, shard: ShardRange) -> Path:
    return store / "cost" / f"{shard.file}.json"
