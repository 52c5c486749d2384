"""The side of each response token of an example, from the cuts of a selection: derived, never stored."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from forgetting.method.selection import Granularity, Sides, sequence_means
from forgetting.method.store import ScoredSplit

SideMasks = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Positive and negative mask of an example's response tokens."""


@dataclass(frozen=True)
class EveryToken:
    """Every response token is positive.

    Args:
        num_targets: Response tokens of each example.
    """

    num_targets: np.ndarray

    def __call__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Positive and negative mask of example `i`."""
        count = int(self.num_targets[i])
        return np.ones(count, np.bool_), np.zeros(count, np.bool_)


@dataclass(frozen=True)
class ByScore:
    """A token's side by its own score, or by the mean score of its sequence.

    Args:
        scored: Scores of the examples.
        sides: The cuts.
        granularity: Of the ranking that was cut.
        sequences_before: Position of the first example in that ranking's corpus order.
        tokens_before: Position of its first response token.
    """

    scored: ScoredSplit
    sides: Sides
    granularity: Granularity
    sequences_before: int = 0
    tokens_before: int = 0

    def __call__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Positive and negative mask of example `i`."""
        first, score = self.scored.example(i)
        if self.granularity == "token":
            return self.sides.masks(score, self.tokens_before + first)
        mean = sequence_means(score, np.array([len(score)]))
        positive, negative = self.sides.masks(mean, self.sequences_before + i)
        return np.repeat(positive, len(score)), np.repeat(negative, len(score))
