"""`metrics.csv` in the run folder, always; Weights & Biases when the configuration asks for it."""

import csv
import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class MetricsFile(Logger):
    """One row for each logged step, in one CSV file. A resumed run keeps the rows up to where it goes on.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows: list[dict[str, Any]] | None = None
        self._pending = 0

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
        self._rows = []
        if step and self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]
            self._rows = [row for row in rows if int(row["step"]) < step]

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration is in fit.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row, or add to the row of this step."""
        rows = self._rows = self._rows if self._rows is not None else []
        number = len(rows) if step is None else step
        values = {key: value for key, value in metrics.items() if key != "epoch"}
        if rows and rows[-1]["step"] == number:
            rows[-1].update(values)
        else:
            rows.append({"step": number, **values})
        self._pending += 1

    @rank_zero_only
    def save(self) -> None:
        """Called after every step: write now and then."""
        if self._pending >= 50:
            self.write()

    @rank_zero_only
    def write(self) -> None:
        """Write the file whole: columns may have come, and a file is complete or the old one."""
        if not self._rows or not self._pending:
            return
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(temporary, self.path)
        self._pending = 0

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is not written yet."""
        self.write()


def wandb_logger(settings: dict[str, Any], run_id: str, seed: int, folder: Path) -> WandbLogger:
    """A Weights & Biases logger that never asks for anything: without a key it logs offline, into the run folder.

    Args:
        settings: `project`, `entity`, `group`, `tags`, `mode` and what else `wandb.init` takes.
        run_id: The run's id; its name there is `<id>/seed-<n>`, its group the id.
        seed: The run's seed.
        folder: The run's folder.
    """
    options = {"project": "forgetting", "group": run_id, "name": f"{run_id}/seed-{seed}", **settings}
    mode = options.pop("mode", None) or os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
    folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(save_dir=str(folder), mode=mode, log_model=False, **options)


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return path.is_file() and host is not None and netrc.netrc(str(path)).authenticators(host) is not None
    except netrc.NetrcParseError:
        return False
