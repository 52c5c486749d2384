"""Writing a score store: a shard as soon as it is scored, the manifest at the end."""

import time
from contextlib import ExitStack
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback

from forgetting.artifacts import read_json, write_json
from forgetting.errors import UserError
from forgetting.lock import locked
from forgetting.method.module import FineTuner
from forgetting.method.scoring import ScoringData, ShardScores, ShardWork
from forgetting.method.store import ScoreStore, ShardRange, close_store, write_shard
from forgetting.model.backbone import backbone_identity
from forgetting.run_folder import record_cost
from forgetting.runs.cost import machine_record
from forgetting.runs.provenance import training_versions


class ScoreWriter(Callback):
    """Writes each shard as it is scored, and what it took next to the shards: an interrupted store adds up."""

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
            took["tokens"] += sum(int(alone.response_mask.sum()) for alone in batch.promptless)
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
            close_store(folder, scoring.identity, scoring.shards, record, scoring.columns)
            files = [_cost_file(folder, shard) for shard in scoring.shards]
            costs = [read_json(file, dict, ["seconds", "tokens"]) for file in files if file.is_file()]
            total = {name: sum(cost[name] for cost in costs) for name in ("seconds", "tokens")}
            assert module.adapter is not None
            record_cost(module.adapter.parent, {"stage": "score", **total, **machine_record(trainer)}, replace=True)


def _is_complete(folder: Path) -> bool:
    try:
        ScoreStore.open(folder)
    except UserError:
        return False
    return True


def _cost_file(store: Path, shard: ShardRange) -> Path:
    return store / "cost" / f"{shard.file}.json"
