"""Paired differences of two rows: over documents and seeds, or over repetitions alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forgetting.evaluation.compare import compare
from forgetting.evaluation.paired_statistics import student_interval
from forgetting.run_folder import is_of_seed
from forgetting.studies.spec import AVERAGE

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """A difference of two rows in one column, with its interval.

    Attributes:
        difference: First row minus second.
        low: Lower end of the 95 % interval; None of one pair, which has none.
        high: Upper end.
        num_positive: Repetitions in which the difference is above 0; None where documents were resampled.
        num_pairs: Repetitions that both rows have.
    """

    difference: float
    low: float | None
    high: float | None
    num_positive: int | None
    num_pairs: int


@dataclass
class Pair:
    """The differences of two rows, one per column; None where it cannot be computed."""

    first: str
    second: str
    differences: list[Difference | None]


def paired_difference(first: Mapping[str, float], second: Mapping[str, float]) -> Difference | None:
    """Mean difference over the repetitions that two rows share, with Student's t interval of the mean.

    Repetitions differ far more from each other than rows do in one of them, so rows are compared in pairs.

    Returns:
        None where no repetition is shared.
    """
    differences = np.array([value - second[name] for name, value in first.items() if name in second], dtype=np.float64)
    if not len(differences):
        return None
    low, high = student_interval(differences, CONFIDENCE) or (None, None)
    return Difference(float(differences.mean()), low, high, int((differences > 0).sum()), len(differences))


def over_documents(
    first: Mapping[str, Path], second: Mapping[str, Path], suite: str, protocol: str
) -> dict[str, Difference]:
    """Differences by column with intervals over evaluation examples and seeds, for rows that share the examples.

    Args:
        first: Folder of results per seed; of a base model its one folder.
        second: The same of the row to subtract.
        suite: Name of the suite.
        protocol: Of the evaluation.

    Raises:
        UserError: Results are missing, damaged, or of other evaluation examples.
    """
    folders = [next(iter(runs.values())) for runs in (first, second)]
    folders = [folder.parent if is_of_seed(folder.name) else folder for folder in folders]
    seeds = list(dict.fromkeys([*first, *second]))
    columns = compare(folders[0], folders[1], protocol, CONFIDENCE, suite=suite, seeds=seeds).columns
    differences = {
        column.name.removeprefix("column "): Difference(column.difference, column.low, column.high, None, column.seeds)
        for column in columns
    }
    return differences | ({AVERAGE: differences["average"]} if "average" in differences else {})
