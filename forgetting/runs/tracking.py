"""What Weights & Biases shows of a run besides its curves: its inputs, its selection, a table of tokens, its cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from forgetting.artifacts import read_json
from forgetting.method.data import ForgettingData
from forgetting.method.scores import score_histogram
from forgetting.model.backbone import load_tokenizer
from forgetting.runs.run import Run
from forgetting.weights_and_biases import cost_summary, recorded_config, wandb_options, wandb_run

NUM_SAMPLED = 300
"""Rows of the table of tokens."""

CONTEXT = 12
"""Tokens before a sampled one that the table shows."""


class WandbRecord(Callback):
    """Adds to a run at Weights & Biases what no step logs, and ends it with the training.

    The run is ended here and not with the process, since `table --run` trains one run after the other in a process.

    Args:
        run: What is logged.
        data: Its data, once set up.
        logger: Logs its steps.
        artifacts: Upload the adapter.
    """

    def __init__(self, run: Run, data: ForgettingData, logger: WandbLogger, artifacts: bool = False) -> None:
        self.run, self.data, self.logger, self.artifacts = run, data, logger, artifacts

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Provenance is written by now. Each launch logs the selection again: a kill may have taken what one logged."""
        if not trainer.is_global_zero:
            return
        self.logger.experiment.config.update(recorded_config(self.run.folder), allow_val_change=True)
        if self.data.selected is not None:
            self._log_selection()

    def _log_selection(self) -> None:
        import wandb

        scored = self.data.scored
        assert scored is not None, "what is selected is scored"
        experiment = self.logger.experiment
        experiment.summary.update(selection_summary(self.data))
        rows = sampled_tokens(self.data)
        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        histogram = wandb.Histogram(np_histogram=score_histogram(scored.chunks, 64))
        self.logger.log_metrics({"selection/scores": histogram, "selection/tokens": table}, step=0)  # type: ignore[dict-item]

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The cost and the adapter are written by now, if the run is complete."""
        if not trainer.is_global_zero or not self.run.adapter.is_dir():
            return
        self.logger.experiment.summary.update(cost_summary(self.run.folder))
        if self.artifacts:
            metadata = (self.run.provenance() or {}).get("inputs")
            self.logger.experiment.log_artifact(_artifact("adapter", "model", self.run, self.run.adapter, metadata))

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Training has ended."""
        self._finish(trainer, 0)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Training has stopped; the same command resumes the run there, too."""
        self._finish(trainer, 1)

    def _finish(self, trainer: lightning.Trainer, code: int) -> None:
        experiment = self.logger._experiment  # None where nothing was logged: it is not to be started now
        if trainer.is_global_zero and experiment is not None:
            experiment.finish(exit_code=code)
            self.logger._experiment = None


def log_scores(settings: dict[str, Any], run: Run, store: Path, figures: Mapping[str, float], artifacts: bool) -> None:
    """Add to a reference's run at Weights & Biases what scoring took, selection health, and the manifest of its store.

    Args:
        settings: `run.wandb`.
        run: The reference's.
        store: Its score store, complete.
        figures: Of selection health, by name.
        artifacts: Upload the manifest.
    """
    with wandb_run(wandb_options(settings, run.folder, run.id, run.seed)) as logged:
        logged.config.update(recorded_config(run.folder), allow_val_change=True)
        logged.summary.update({**cost_summary(run.folder), **figures})
        if artifacts:
            identity = read_json(store / "manifest.json", dict, ["identity"])["identity"]
            logged.log_artifact(_artifact("scores", "scores", run, store / "manifest.json", identity))


def _artifact(name: str, kind: str, run: Run, path: Path, metadata: dict[str, Any] | None) -> Any:
    """An artifact of a run, a file or a folder; a run trained again makes a new version of it."""
    import wandb

    spelled = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{name}-{run.id}-seed-{run.seed}")
    artifact = wandb.Artifact(spelled[:128], type=kind, metadata=metadata)
    if path.is_dir():
        artifact.add_dir(str(path))
    else:
        artifact.add_file(str(path))
    return artifact


def selection_summary(data: ForgettingData) -> dict[str, int | float]:
    """Counts of a run's selection (tokens, or sequences at that granularity), and its threshold in the score's unit."""
    selected = data.selected
    assert selected is not None, "nothing is selected"
    summary: dict[str, int | float] = {
        "selection/num_positive": int(selected.num_positive), "selection/num_negative": int(selected.num_negative),
    }  # fmt: skip
    if selected.thresholds is not None and np.isfinite(selected.thresholds.positive.value):
        summary["selection/threshold"] = selected.thresholds.positive.value
    return summary


def sampled_tokens(data: ForgettingData, count: int = NUM_SAMPLED) -> list[dict[str, Any]]:
    """Response tokens at equal distances over D_train, with what their label comes from.

    Args:
        data: With a selection.
        count: How many, at most.

    Returns:
        Rows of `example`, `source`, `context` (text before the token), `token`, `label` (positive, negative or
        ignored), `score` and the stored columns, such as `nll_base` and `nll_reference` in nats.
    """
    assert data.scored is not None, "nothing is selected"
    split, stored = data.tokens.split("train"), data.stored("train")
    masks, tokenizer = data.masks(split), load_tokenizer(data.backbone, data.revision)
    sources = data.corpus.split("train")["source"]
    ends = np.cumsum(split.num_targets, dtype=np.int64)
    rows = []
    for position in np.unique(np.linspace(0, ends[-1] - 1, count).astype(np.int64)):
        i = int(np.searchsorted(ends, position, side="right"))
        k = int(position - (ends[i] - split.num_targets[i]))
        ids, place = split.input_ids(i), int(np.flatnonzero(split.response_mask(i))[k])
        positive, negative = (mask[k] for mask in masks(i))
        tokens = stored.example(i)
        rows.append(
            {
                "example": int(split.rows[i]), "source": sources[int(split.rows[i])],
                "context": tokenizer.decode(ids[max(0, place - CONTEXT) : place]),
                "token": tokenizer.decode(ids[place : place + 1]),
                "label": "positive" if positive else "negative" if negative else "ignored",
                "score": float(data.scored.example(i)[1][k]),
                **{name: float(tokens[name][k]) for name in tokens.columns},
            }
        )  # fmt: skip
    return rows
