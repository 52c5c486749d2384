"""Selection: which tokens are positive and which negative, as pure functions of their scores.

The order is the same everywhere: by falling score, equal scores in corpus order. A `Threshold` is a place in that
order; a token is selected by it or not. So masks are never stored: they follow from a token's score and its position.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt

from forgetting.errors import UserError
from forgetting.method.scores import refuse_not_finite

Granularity = Literal["token", "sequence"]
Scope = Literal["corpus", "example"]
Chunks = Callable[[], Iterable[np.ndarray]]
"""Gives the scores of the corpus in order, a chunk at a time, as often as it is called."""


@dataclass(frozen=True)
class Selection:
    """What makes a token positive, negative or ignored (Taheri et al., TMLR 2026, Eq. 6-7).

    Attributes:
        positive_fraction: ρ, the fraction that is positive, in (0, 1); or "all", every response token.
        granularity: Rank response tokens, or whole sequences by the mean score of their response tokens (the paper
            does not say how it scores a sequence; this is our reading).
        scope: Rank the tokens of the whole corpus (the paper's), or those of each example apart (Lin et al., 2024).
        forget_fraction: The fraction, lowest in score, that is negative; what lies between is ignored (Figure 1b).
            None: all that is not positive is negative. Of tokens, or of sequences at that granularity.
        threshold: Positive is score > threshold (§4.2 tries 0); `positive_fraction` is None then.
    """

    positive_fraction: float | Literal["all"] | None = 0.7
    granularity: Granularity = "token"
    scope: Scope = "corpus"
    forget_fraction: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        rho = self.positive_fraction
        if self.scope == "example" and (self.granularity == "sequence" or self.threshold is not None):
            setting = "data.granularity sequence" if self.threshold is None else f"data.threshold {self.threshold}"
            raise UserError(f"data.scope example ranks the tokens of each example; it excludes {setting}.")
        if self.threshold is not None:
            if not np.isfinite(self.threshold):
                raise UserError(f"data.threshold is {self.threshold}; a finite number was expected.")
            for name in ("positive_fraction", "forget_fraction"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"data.threshold is {self.threshold} and data.{name} is {getattr(self, name)}, which exclude "
                        f"each other: set one of them to null."
                    )
            return
        if rho is None:
            raise UserError('Give data.positive_fraction (ρ, or "all"), or data.threshold.')
        if rho == "all":
            if self.forget_fraction is not None:
                raise UserError(
                    'data.positive_fraction is "all", so there is nothing to unlearn: leave data.forget_fraction out.'
                )
            return
        if not 0 < rho < 1:
            raise UserError(
                f"data.positive_fraction (ρ) is {rho}; it must lie between 0 and 1, both excluded. Use "
                '"all" to train on every response token.'
            )
        if self.forget_fraction is not None and not 0 <= self.forget_fraction <= 1 - rho + 1e-9:
            raise UserError(
                f"data.forget_fraction is {self.forget_fraction}; at ρ = {rho} it must lie in [0, {1 - rho:.6g}], "
                "since a token cannot be both positive and negative."
            )

    def counts(self, total: int) -> tuple[int, int]:
        """How many of `total` are positive, round(ρ · total), and how many negative, round(f · total) or the rest."""
        assert isinstance(self.positive_fraction, float), "no fraction is selected"
        num_positive = round(self.positive_fraction * total)
        if self.forget_fraction is None:
            return num_positive, total - num_positive
        return num_positive, min(round(self.forget_fraction * total), total - num_positive)

    def record(self) -> dict[str, Any]:
        """The values, for a manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Threshold:
    """A place in the order of the scores.

    Selected are the scores over `value`, and those equal to it whose position in the corpus is below `tie_index`.
    """

    value: float
    tie_index: int

    def selects(self, score: Float[np.ndarray, " n"], first: int) -> Bool[np.ndarray, " n"]:
        """Which of `score`, whose first element has position `first` in the corpus, are selected."""
        value = score.dtype.type(self.value)
        before_tie_index = np.arange(first, first + len(score)) < self.tie_index
        return (score > value) | ((score == value) & before_tie_index)


SELECTS_NONE = Threshold(value=float("inf"), tie_index=0)


def sequence_means(
    score: Float[np.ndarray, " tokens"], num_targets: Int[np.ndarray, " examples"]
) -> Float[np.ndarray, " examples"]:
    """Mean score of each sequence's response tokens, in float64: its score in the ranking of sequences.

    Args:
        score: Scores of all response tokens of the sequences, in order.
        num_targets: Response tokens of each, at least one.
    """
    return np.add.reduceat(score.astype(np.float64), np.cumsum(num_targets) - num_targets) / num_targets


def threshold_of_top(chunks: Chunks, num_selected: int) -> Threshold:
    """The threshold that selects exactly the highest `num_selected` scores.

    Exact, and in memory that does not grow with the number of scores: a float's bits, read as an unsigned integer,
    keep its order (after flipping), so the threshold is found 16 bits at a time by counting, in one pass over the
    scores for each 16 bits, without sorting any of them. A last pass finds the tie index among equal scores.
    `np.sort(scores)[-num_selected]` is the same value, in memory and time that grow with the corpus.

    Args:
        chunks: The scores, float32 or float64, in corpus order.
        num_selected: How many to take, between 0 and the number of scores.

    Raises:
        UserError: A score is not a finite number, or there are fewer than `num_selected` scores.
    """
    if num_selected == 0:
        return SELECTS_NONE
    prefix, shift, remaining, dtype = 0, None, num_selected, None
    while shift is None or shift > 0:
        counts = np.zeros(2**16, dtype=np.int64)
        for scores in chunks():
            if dtype is None:
                dtype = scores.dtype
                shift = 8 * dtype.itemsize
            assert shift is not None
            keys = ordered_bits(scores)
            digits = keys >> (shift - 16)
            if shift < 8 * scores.dtype.itemsize:  # only those that share the digits found so far
                digits = digits[(keys >> shift) == prefix] & 0xFFFF
            counts += np.bincount(digits.astype(np.int64), minlength=2**16)
        if shift is None or counts.sum() < remaining:
            raise UserError(f"There are fewer than {num_selected} scores to select from.")
        from_the_top = np.cumsum(counts[::-1])
        place = int(np.searchsorted(from_the_top, remaining))
        remaining -= int(from_the_top[place - 1]) if place else 0
        prefix = (prefix << 16) | (2**16 - 1 - place)
        shift -= 16
    assert dtype is not None
    threshold = _from_ordered_bits(prefix, dtype)
    return Threshold(float(threshold), _tie_index(chunks, threshold, remaining))


def _tie_index(chunks: Chunks, threshold: np.floating[Any], count: int) -> int:
    """Position just after the `count`-th score equal to `threshold`."""
    first = 0
    for scores in chunks():
        ties = np.flatnonzero(scores == threshold)
        if len(ties) >= count:
            return first + int(ties[count - 1]) + 1
        count -= len(ties)
        first += len(scores)
    raise AssertionError("the threshold is one of the scores")


def ordered_bits(scores: np.ndarray) -> UInt[np.ndarray, " n"]:
    """Unsigned integers in the same order as the floats; −0 and 0 are equal."""
    refuse_not_finite(scores)
    unsigned = {4: np.uint32, 8: np.uint64}[scores.dtype.itemsize]
    bits = (scores + scores.dtype.type(0)).view(unsigned)
    top = unsigned(1 << (8 * scores.dtype.itemsize - 1))
    return np.where(bits & top, ~bits, bits | top)


def _from_ordered_bits(key: int, dtype: np.dtype[Any]) -> np.floating[Any]:
    unsigned = {4: np.uint32, 8: np.uint64}[dtype.itemsize]
    top = 1 << (8 * dtype.itemsize - 1)
    bits = key ^ top if key & top else key ^ (2 * top - 1)
    return np.array([bits], dtype=unsigned).view(dtype)[0]


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of a selection in a corpus: `positive` selects the positive, `negative` all but the negative."""

    positive: Threshold
    negative: Threshold
    num_positive: int
    num_negative: int

    def masks(
        self, score: Float[np.ndarray, " n"], first: int
    ) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Positive and negative mask of scores whose first has position `first` in the corpus (disjoint)."""
        return self.positive.selects(score, first), ~self.negative.selects(score, first)


def find_thresholds(chunks: Chunks, count: int, selection: Selection) -> Thresholds:
    """Find a selection's thresholds in a ranking of `count` scores (of tokens or of sequences).

    Exactly round(ρ · count) are positive and, with `forget_fraction` f, exactly round(f · count) negative. There may be
    no negative ones.

    Args:
        chunks: The scores.
        count: How many.
        selection: Of the scope `corpus`.

    Raises:
        UserError: A score is not a finite number.
    """
    if selection.threshold is not None:
        threshold = Threshold(selection.threshold, 0)
        num_positive = 0
        for scores in chunks():
            refuse_not_finite(scores)
            num_positive += int(np.count_nonzero(threshold.selects(scores, 0)))
        return Thresholds(threshold, threshold, num_positive, count - num_positive)
    num_positive, num_negative = selection.counts(count)
    positive = threshold_of_top(chunks, num_positive)
    negative = positive if selection.forget_fraction is None else threshold_of_top(chunks, count - num_negative)
    return Thresholds(positive, negative, num_positive, num_negative)
