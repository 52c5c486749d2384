"""Where a run logs its steps: `metrics.csv` in its folder, Weights & Biases and Trackio (docs/logging.md)."""

import csv
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from forgetting.artifacts import complete_or_absent, sync
from forgetting.errors import UserError
from forgetting.run_folder import read_metrics
from forgetting.runs.run import Run
from forgetting.weights_and_biases import refuse_wandb_settings, wandb_options

ROWS_AT_ONCE = 50


class MetricsFile(Logger):
    """One row for each logged step, in one CSV file. A resumed run keeps the rows up to where it resumes.

    Rows are appended; only a new column makes the file be written again. The row of the last step is held back, since
    its validation may still add to it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []  # not in the file yet

    @property
    def name(self) -> str:
        """Lightning wants a name."""
        return "metrics"

    @property
    def version(self) -> str:
        """Lightning wants a version."""
        return ""

    @rank_zero_only
    def start_at(self, step: int) -> None:
        """Forget what was logged at or after `step`: it will be logged again."""
        rows = [row for row in self._written() if int(row["step"]) < step]
        self._columns = list(rows[0]) if rows else []
        self._rows = []
        if rows:
            self._write_whole(rows)
        else:
            self.path.unlink(missing_ok=True)

    @rank_zero_only
    def log_again(self, logger: Logger) -> None:
        """Give another logger every row that is in the file: it may have lost some when the run was killed."""
        for row in self._written():
            values = {key: float(value) for key, value in row.items() if key != "step" and value}
            logger.log_metrics(values, step=int(row["step"]))

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration is in fit.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row, or add to the row of this step."""
        assert step is not None, "a row belongs to a step"
        values = {key: value for key, value in metrics.items() if key != "epoch"}
        if self._rows and self._rows[-1]["step"] == step:
            self._rows[-1].update(values)
        else:
            self._rows.append({"step": step, **values})

    @rank_zero_only
    def save(self) -> None:
        """Called after every step; write once enough rows are held."""
        if len(self._rows) > ROWS_AT_ONCE:
            self._append(self._rows[:-1])
            self._rows = self._rows[-1:]

    @rank_zero_only
    def write(self) -> None:
        """Write what was logged so far, and flush it to disk."""
        if self._rows:
            self._append(self._rows)
            self._rows = []
            sync(self.path)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is not written yet."""
        self.write()

    def _append(self, rows: list[dict[str, Any]]) -> None:
        columns = list(dict.fromkeys([*self._columns, *(key for row in rows for key in row)]))
        if columns != self._columns or not self.path.exists():
            before = self._written() if self._columns else []
            self._columns = columns
            self._write_whole([*before, *rows])
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, columns).writerows(rows)

    def _write_whole(self, rows: list[dict[str, Any]]) -> None:
        with complete_or_absent(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)

    def _written(self) -> list[dict[str, Any]]:
        return read_metrics(self.path)


class Trackio(Logger):
    """Logs a run to Trackio, on this machine or in a Space of the Hugging Face hub; give it as `trainer.logger`.

    Args:
        project: Its project there.
        space_id: A Space such as `user/name`; None logs on this machine.
        name: The run's there; the command line fills in `<id>/seed-<n>`.
        group: The run's there; the command line fills in its id without the last part.

    Raises:
        UserError: trackio is not installed.
    """

    def __init__(
        self, project: str = "forgetting", space_id: str | None = None, name: str | None = None,
        group: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        try:
            import_module("trackio")
        except ModuleNotFoundError:
            raise UserError("The logger Trackio needs trackio: pip install trackio.") from None
        self.project, self.space_id, self.group = project, space_id, group
        self._name = name
        self._config: dict[str, Any] = {}
        self._started = False

    @property
    def name(self) -> str | None:
        """The run's name there."""
        return self._name

    @property
    def version(self) -> str:
        """Lightning wants a version."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the run's configuration; it is given when the run begins there."""
        self._config = dict(params)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log a step; the first one begins the run there, or resumes it."""
        trackio: Any = import_module("trackio")
        if not self._started:
            trackio.init(
                project=self.project, name=self._name, group=self.group, space_id=self.space_id, config=self._config,
                resume="allow",
            )  # fmt: skip
            self._started = True
        trackio.log(metrics, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Wait until everything is sent."""
        if self._started:
            import_module("trackio").finish()
            self._started = False


def wandb_logger(settings: dict[str, Any], run: Run) -> WandbLogger:
    """Log a run to Weights & Biases; without a key offline, into the run's folder. A later launch resumes it there.

    Args:
        settings: `project`, `entity`, `group`, `tags`, `mode` and what else `wandb.init` takes; they win over the name,
            the group and the tags that come from the run's id.
        run: What is logged.

    Raises:
        UserError: A setting is unknown.
    """
    refuse_wandb_settings(settings)
    run.folder.mkdir(parents=True, exist_ok=True)
    is_first = getattr(rank_zero_only, "rank", 0) == 0  # the first rank alone logs
    options = wandb_options(settings, run.folder, run.id, run.seed, write_id=is_first)
    return WandbLogger(save_dir=options.pop("dir"), log_model=False, **options)
