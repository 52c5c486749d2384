"""Parts of a run's folder that several rooms read: its seeds, its steps (`metrics.csv`), and the cost of each stage.

`cost.json` holds what Table 11 shows.
"""

import csv
import re
from pathlib import Path
from typing import Any

from forgetting.artifacts import read_json, write_json
from forgetting.errors import UserError
from forgetting.lock import locked

FILE = "cost.json"


def read_costs(folder: Path) -> list[dict[str, Any]]:
    """The entries of a folder; none where nothing has been recorded.

    Raises:
        UserError: The file is not as the stages write it.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    remedy = "Move it away: the times in it are lost, the results are not."
    entries = read_json(path, list, remedy=remedy)
    kinds = {"stage": str, "seconds": (int, float), "device": str}
    for entry in entries:
        if not isinstance(entry, dict) or any(not isinstance(entry.get(k), kind) for k, kind in kinds.items()):
            raise UserError(f"{path} has an entry without {', '.join(kinds)}: it is damaged. {remedy}")
    return entries


def record_cost(folder: Path, entry: dict[str, Any], replace: bool) -> None:
    """Record the cost of a stage.

    Args:
        folder: The run's.
        entry: `stage`, `seconds`, `device`, `tokens` and what else is known.
        replace: The entry covers the whole stage and takes the place of an earlier one; else it is one more launch.
    """
    with locked(folder / ".cost", wait=True):  # fit, score and evaluate of one run may end at the same time
        entries = [kept for kept in read_costs(folder) if not (replace and kept["stage"] == entry["stage"])]
        write_json(folder / FILE, [*entries, entry])


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The complete rows of a `metrics.csv`, in the order of their steps; a killed process may have left half a row.

    Args:
        path: The file; where it is missing there are no rows.

    Returns:
        Values by column, as text; "" where a step has none.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    head, *lines = csv.reader(text[: text.rfind("\n") + 1].splitlines()) if "\n" in text else [[]]
    rows = [dict(zip(head, line, strict=True)) for line in lines if len(line) == len(head)]
    return [row for row in rows if row.get("step", "").isdigit()]


def is_of_seed(name: str) -> bool:
    """Whether a folder's name is that of the run of a seed."""
    return re.fullmatch(r"seed-(0|[1-9][0-9]*)", name) is not None


def seed_folders(experiment: Path) -> list[Path]:
    """The runs in an experiment's folder, in the order of their seeds; what else lies there (`seed-0.old`) is none."""
    runs = [path for path in experiment.glob("seed-*") if is_of_seed(path.name)]
    return sorted((path for path in runs if path.is_dir()), key=lambda path: int(path.name.removeprefix("seed-")))
