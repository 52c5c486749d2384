"""What a finished run's folder says about it: for its model card, and for the commands that use its adapter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetting.arguments import read_yaml
from forgetting.artifacts import read_json
from forgetting.errors import UserError
from forgetting.run_folder import read_metrics

INPUTS = ("corpus", "tokens", "tokenizer", "store", "scores", "reference")
"""Inputs of a run that are named by a hash, the base model apart."""


@dataclass(frozen=True)
class RunFacts:
    """A run as its folder has it.

    Attributes:
        folder: Of the run.
        provenance: `provenance.json`.
        settings: `fit.yaml`.
        held_out: The last held-out nll in `metrics.csv` by name (`nll`, `nll_positive`, `nll_negative`), in nats per
            token; empty where there is none.
        steps: Optimizer steps of the run; None where nothing was logged.
    """

    folder: Path
    provenance: dict[str, Any]
    settings: dict[str, Any]
    held_out: dict[str, float]
    steps: int | None

    @property
    def model(self) -> dict[str, Any]:
        """The settings of the model."""
        return self.settings["model"]

    @property
    def data(self) -> dict[str, Any]:
        """The settings of the data."""
        return self.settings["data"]


def read_run(folder: Path) -> RunFacts:
    """Read a run's records.

    Args:
        folder: Of the run (`runs/<experiment>/seed-<n>`), or its `adapter/`.

    Raises:
        UserError: They are missing or damaged.
    """
    if folder.name == "adapter" and (folder.parent / "fit.yaml").is_file():
        folder = folder.parent
    for name in ("provenance.json", "fit.yaml"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is no run: it has no {name}. Give a run's folder, runs/<experiment>/seed-<n>, as `fit` "
                "writes it."
            )
    remedy = f"Move {folder} away and run its `fit` again."
    provenance = read_json(folder / "provenance.json", dict, ("id", "seed", "inputs", "computed"), remedy)
    settings = read_yaml(folder / "fit.yaml")
    if not all(isinstance(settings.get(key), dict) for key in ("model", "data", "trainer")):
        raise UserError(f"{folder / 'fit.yaml'} lacks model, data or trainer: it is damaged. {remedy}")
    rows = read_metrics(folder / "metrics.csv")
    steps = max((int(row["step"]) + 1 for row in rows), default=None)
    return RunFacts(folder, provenance, settings, _held_out(rows), steps)


def _held_out(rows: list[dict[str, str]]) -> dict[str, float]:
    for row in reversed(rows):
        if row.get("validation/nll"):
            named = {key.removeprefix("validation/"): value for key, value in row.items() if "validation/" in key}
            return {name: float(value) for name, value in named.items() if value}
    return {}
