"""First ρ-step at which each token is positive: all selections of a slider in one number per token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from forgetting.method.scores import refuse_not_finite
from forgetting.method.selection import Selection, sequence_means

STEPS = tuple(step / 100 for step in range(1, 100))
"""The values of ρ that every slider takes."""


def slider_steps(selection: Selection, num_positive: int, num_ranked: int) -> tuple[list[float], int]:
    """Values of ρ of a slider, and the place of the experiment's own among them, which may be no hundredth.

    Args:
        selection: Of the experiment. A threshold is the ρ that selects as many.
        num_positive: Tokens, or sequences at that granularity, that it makes positive.
        num_ranked: Tokens or sequences in all.
    """
    rho = selection.positive_fraction
    own = rho if isinstance(rho, float) else num_positive / num_ranked
    steps = sorted({*STEPS, own})
    return steps, steps.index(own)


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
        steps: Values of ρ, rising; 1 is every token.

    Raises:
        UserError: A score is not a finite number.
    """
    refuse_not_finite(score)
    counts = _Counts(selection, steps)
    if selection.scope == "example":
        ends = np.cumsum(num_targets)
        parts = [counts.first(ranks(part), len(part)) for part in np.split(score, ends[:-1])]
        positive, kept = (np.concatenate(side) for side in zip(*parts, strict=True))
    elif selection.granularity == "sequence":
        means = sequence_means(score, num_targets)
        positive, kept = (np.repeat(side, num_targets) for side in counts.first(ranks(means), len(means)))
    else:
        positive, kept = counts.first(ranks(score), len(score))
    return FirstSteps(positive, kept)


def ranks(score: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Place of each score in the order by falling score; equal scores keep the order of the corpus."""
    rank = np.empty(len(score), dtype=np.int64)
    rank[np.argsort(-score, kind="stable")] = np.arange(len(score))
    return rank


class _Counts:
    """How many are positive and negative at each step, by `Selection.counts`."""

    def __init__(self, selection: Selection, steps: Sequence[float]) -> None:
        self._forget_fraction = selection.forget_fraction
        plain = replace(selection, positive_fraction=0.5, forget_fraction=None, threshold=None)
        # A threshold below every score selects all, which is no ρ of a selection.
        self._selections = [None if rho == 1 else replace(plain, positive_fraction=rho) for rho in steps]

    def first(self, rank: Int[np.ndarray, " n"], total: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """First step at which each rank is positive, and first at which it is not negative."""
        num_positive = np.array([total if each is None else each.counts(total)[0] for each in self._selections])
        positive = np.searchsorted(num_positive, rank, side="right")
        if self._forget_fraction is None:
            return positive, positive
        num_negative = np.minimum(round(self._forget_fraction * total), total - num_positive)
        return positive, np.searchsorted(total - num_negative, rank, side="right")


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
