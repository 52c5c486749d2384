"""`cost.json` in a run's folder: what each stage took, in the form of the paper's Table 11."""

from pathlib import Path
from typing import Any

from forgetting.artifacts import read_json, write_json
from forgetting.lock import locked

FILE = "cost.json"


def read_costs(folder: Path) -> list[dict[str, Any]]:
    """The entries of a folder; none where nothing has been recorded."""
    path = folder / FILE
    if not path.is_file():
        return []
    entries = read_json(path, list, remedy="Remove it: nothing but the times of its stages is lost.")
    return [entry for entry in entries if isinstance(entry, dict) and "stage" in entry and "seconds" in entry]


def record_cost(folder: Path, entry: dict[str, Any], replace: bool) -> None:
    """Write what a stage took.

    Args:
        folder: The run's.
        entry: `stage`, `seconds`, `device`, `tokens` and what else is known.
        replace: The entry covers the whole stage and takes the place of an earlier one; else it is one more launch.
    """
    with locked(folder / ".cost", wait=True):  # fit, score and evaluate of one run may end at the same time
        entries = [one for one in read_costs(folder) if not (replace and one["stage"] == entry["stage"])]
        write_json(folder / FILE, [*entries, entry])
