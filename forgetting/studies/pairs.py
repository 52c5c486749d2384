"""Paired differences of two rows: over documents and seeds, or over repetitions alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from forgetting.evaluation.compare import student_interval

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

    Args:
        first: Value per repetition.
        second: The same of the row to subtract.

    Returns:
        None where no repetition is shared.
    """
    differences = np.array([value - second[name] for name, value in first.items() if name in second], dtype=np.float64)
    if not len(differences):
        return None
    low, high = student_interval(differences, CONFIDENCE) or (None, None)
    return Difference(float(differences.mean()), low, high, int((differences > 0).sum()), len(differences))
