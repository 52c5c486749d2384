"""First ρ-step at which each token is positive: all selections of a slider in one number per token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from forgetting.method.scores import refuse_not_finite
from forgetting.method.selection import Selection, sequence_means

STEPS = tuple(step / 100 for step in range(1, 100))
"""The values of ρ that a slider takes."""


@dataclass(frozen=True)
class FirstSteps:
    """Places in the slider's values of ρ; `len(steps)` where there is no such value.

    Attributes:
        positive: First step at which each response token is positive.
        kept: First step at which it is not negative. The same without `forget_fraction`; at a step before `kept` it is
            negative, between the two it is ignored.
    """

    positive: Int[np.ndarray, " tokens"]
    kept: Int[np.ndarray, " tokens"]


def first_steps(
    score: Float[np.ndarray, " tokens"],
    num_targets: Int[np.ndarray, " examples"],
    selection: Selection,
    steps: Sequence[float] = STEPS,
) -> FirstSteps:
    """Find at which ρ each token becomes positive, and at which it stops being negative.

    A token's rank decides: it is positive where more tokens are positive than precede it, by falling score and among
    equal scores in corpus order. So counts at every step are those of `find_thresholds`, without a threshold.

    Args:
        score: Scores of all response tokens, in corpus order.
        num_targets: Response tokens of each example, at least one.
        selection: Its granularity, scope and `forget_fraction`; its ρ is replaced by each step. Where a step's ρ leaves
            less than `forget_fraction`, all that is not positive is negative.
        steps: Values of ρ, rising.

    Raises:
        UserError: A score is not a finite number.
    """
    refuse_not_finite(score)
    counts = _Counts(selection, steps)
    if selection.scope == "example":
        ends = np.cumsum(num_targets)
        parts = [counts.first(_ranks(part), len(part)) for part in np.split(score, ends[:-1])]
        positive, kept = (np.concatenate(side) for side in zip(*parts, strict=True))
    elif selection.granularity == "sequence":
        means = sequence_means(score, num_targets)
        positive, kept = (np.repeat(side, num_targets) for side in counts.first(_ranks(means), len(means)))
    else:
        positive, kept = counts.first(_ranks(score), len(score))
    return FirstSteps(positive, kept)


def _ranks(score: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Place of each score in the order by falling score; equal scores keep the order of the corpus."""
    ranks = np.empty(len(score), dtype=np.int64)
    ranks[np.argsort(-score, kind="stable")] = np.arange(len(score))
    return ranks


class _Counts:
    """How many are positive and negative at each step, by `Selection.counts`."""

    def __init__(self, selection: Selection, steps: Sequence[float]) -> None:
        self._forget_fraction = selection.forget_fraction
        plain = replace(selection, positive_fraction=steps[0], forget_fraction=None, threshold=None)
        self._selections = [replace(plain, positive_fraction=rho) for rho in steps]

    def first(self, ranks: Int[np.ndarray, " n"], total: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """First step at which each rank is positive, and first at which it is not negative."""
        num_positive = np.array([selection.counts(total)[0] for selection in self._selections])
        positive = np.searchsorted(num_positive, ranks, side="right")
        if self._forget_fraction is None:
            return positive, positive
        num_negative = np.minimum(round(self._forget_fraction * total), total - num_positive)
        return positive, np.searchsorted(total - num_negative, ranks, side="right")


def counts_by_step(
    first: Int[np.ndarray, " tokens"], group: Int[np.ndarray, " tokens"], num_groups: int, num_steps: int = len(STEPS)
) -> Int[np.ndarray, "groups steps"]:
    """Count, at every step and in every group, the tokens whose first step is reached.

    Args:
        first: First step of each token, up to `num_steps`, which is never.
        group: Group of each token: its source, say, or its place in the response.
        num_groups: How many groups there are.
        num_steps: How many steps there are.
    """
    flat = np.bincount(group.astype(np.int64) * (num_steps + 1) + first, minlength=num_groups * (num_steps + 1))
    return flat.reshape(num_groups, num_steps + 1).cumsum(axis=1)[:, :num_steps]
