"""Numbers of a run other than its evaluation: a metric of its training, the minutes of a stage, detection of noise."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from forgetting.studies.agreement import is_trained
from forgetting.studies.results import RunFolders
from forgetting.studies.spec import Column

if TYPE_CHECKING:
    from forgetting.studies.noise import Detection


class Measures:
    """Reads them from the folders of finished runs.

    Args:
        runs: Where the runs are.
    """

    def __init__(self, runs: RunFolders) -> None:
        self.runs = runs
        self.devices: set[str] = set()
        self._detections: "dict[Path, Detection | None]" = {}

    def value(self, folder: Path, column: Column) -> float | None:
        """The number of a run in a column; None where the run is not finished or does not have it.

        Raises:
            UserError: A file that it is read from is damaged.
        """
        if not is_trained(folder):
            return None
        match column.kind:
            case "metric":
                return self.runs.metric(folder, column.key)
            case "cost":
                entries = self.runs.costs(folder, column.key)
                self.devices |= {entry["device"] for entry in entries}
                return math.fsum(entry["seconds"] for entry in entries) / 60 if entries else None
            case "noise":
                detection = self._detection(folder)
                return None if detection is None else detection.measure(column.key)
            case _:
                raise ValueError(f"{column.name} is a column of the suite")

    @property
    def facts(self) -> list[str]:
        """Notes on the numbers."""
        return [f"Minutes on {', '.join(sorted(self.devices))}."] if self.devices else []

    def _detection(self, folder: Path) -> "Detection | None":
        if folder not in self._detections:
            from forgetting.studies.noise import detect  # it imports torch, which a plain table does not need

            self._detections[folder] = detect(folder, self.runs.root)
        return self._detections[folder]
