"""Which tokens are positive and which negative: pure functions of the scores.

The order is the same everywhere: by falling score Q, equal scores in corpus order. A `Cut` is a place in that order; a
token is above it or not. So masks are never stored: a token's side follows from its score and its position.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt

from forgetting.errors import UserError

Granularity = Literal["token", "sequence"]
Chunks = Callable[[], Iterable[np.ndarray]]
"""Gives the scores of the corpus in order, a piece at a time, as often as it is called."""


@dataclass(frozen=True)
class Selection:
    """What makes a token positive, negative or ignored (Taheri et al., TMLR 2026, Eq. 6-7).

    Attributes:
        positive_fraction: ρ, the share that is positive, in (0, 1); or "all", every response token (Full Tokens).
        granularity: Cut the ranking of all response tokens, or of sequences by the mean Q of their response tokens
            (the paper does not say how it scores a sequence; this is our reading).
        forget_fraction: The share, lowest in Q, that is negative; what lies between is ignored (Figure 1b). None: all
            that is not positive is negative. Of tokens, or of sequences at that granularity.
        threshold: Positive is Q > threshold (§4.2 tries 0); `positive_fraction` is None then.
    """

    positive_fraction: float | Literal["all"] | None = 0.7
    granularity: Granularity = "token"
    forget_fraction: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        rho = self.positive_fraction
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
                    'data.positive_fraction is "all", so there is nothing to forget: leave data.forget_fraction out.'
                )
            return
        if not 0 < rho < 1:
            raise UserError(
                f"data.positive_fraction (ρ) is {rho}; it must lie between 0 and 1, both excluded. Use "
                '"all" to learn every response token.'
            )
        if self.forget_fraction is not None and not 0 <= self.forget_fraction <= 1 - rho + 1e-9:
            raise UserError(
                f"data.forget_fraction is {self.forget_fraction}; at ρ = {rho} it must lie in [0, {1 - rho:.6g}], "
                "since a token cannot be learned and forgotten."
            )

    def record(self) -> dict[str, Any]:
        """The values, for a manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Cut:
    """A place in the order of the scores.

    Above it lie the scores over `threshold`, and those equal to it whose position in the corpus is below
    `tie_position`.
    """

    threshold: float
    tie_position: int

    def above(self, score: Float[np.ndarray, " n"], first: int) -> Bool[np.ndarray, " n"]:
        """Which of `score`, whose first element has position `first` in the corpus, lie above the cut."""
        threshold = score.dtype.type(self.threshold)
        ties = np.arange(first, first + len(score)) < self.tie_position
        return (score > threshold) | ((score == threshold) & ties)


ABOVE_ALL = Cut(threshold=float("inf"), tie_position=0)
"""Nothing lies above it."""


def quality(nll_base: Float[np.ndarray, " n"], nll_reference: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Q (Taheri et al., TMLR 2026, Eq. 4-5): how far the reference lowers a token's nll, nll_base − nll_reference."""
    return nll_base - nll_reference


def sequence_means(
    score: Float[np.ndarray, " tokens"], num_targets: Int[np.ndarray, " examples"]
) -> Float[np.ndarray, " examples"]:
    """Mean score of each sequence's response tokens, in float64: its score in the ranking of sequences.

    Args:
        score: Scores of all response tokens of the sequences, in order.
        num_targets: Response tokens of each, at least one.
    """
    return np.add.reduceat(score.astype(np.float64), np.cumsum(num_targets) - num_targets) / num_targets


def cut_at(chunks: Chunks, num_above: int) -> Cut:
    """The cut with exactly `num_above` scores above it.

    Exact, and in memory that does not grow with the number of scores: a float's bits, read as an unsigned integer,
    keep its order (after flipping), so the threshold is found 16 bits at a time by counting, in one pass over the
    scores for each 16 bits, without sorting any of them. A last pass finds where among equal scores the cut falls.

    Args:
        chunks: The scores, float32 or float64, in corpus order.
        num_above: How many to take, between 0 and the number of scores.

    Raises:
        UserError: A score is not a finite number, or there are fewer than `num_above` scores.
    """
    if num_above == 0:
        return ABOVE_ALL
    prefix, shift, remaining, dtype = 0, None, num_above, None
    while shift is None or shift > 0:
        counts = np.zeros(2**16, dtype=np.int64)
        for scores in chunks():
            if dtype is None:
                dtype = scores.dtype
                shift = 8 * dtype.itemsize
            assert shift is not None
            keys = _ordered_bits(scores)
            digits = keys >> (shift - 16)
            if shift < 8 * scores.dtype.itemsize:  # only those that share the digits found so far
                digits = digits[(keys >> shift) == prefix] & 0xFFFF
            counts += np.bincount(digits.astype(np.int64), minlength=2**16)
        if shift is None or counts.sum() < remaining:
            raise UserError(f"There are fewer than {num_above} scores to select from.")
        from_the_top = np.cumsum(counts[::-1])
        place = int(np.searchsorted(from_the_top, remaining))
        remaining -= int(from_the_top[place - 1]) if place else 0
        prefix = (prefix << 16) | (2**16 - 1 - place)
        shift -= 16
    assert dtype is not None
    threshold = _from_ordered_bits(prefix, dtype)
    return Cut(float(threshold), _position_of_tie(chunks, threshold, remaining))


def _position_of_tie(chunks: Chunks, threshold: np.floating[Any], count: int) -> int:
    """Position just after the `count`-th score equal to `threshold`."""
    first = 0
    for scores in chunks():
        ties = np.flatnonzero(scores == threshold)
        if len(ties) >= count:
            return first + int(ties[count - 1]) + 1
        count -= len(ties)
        first += len(scores)
    raise AssertionError("the threshold is one of the scores")


def _refuse_not_finite(scores: np.ndarray) -> None:
    """Such a score says nothing about its token, and in a mean nothing about its sequence."""
    broken = int(np.count_nonzero(~np.isfinite(scores)))
    if broken:
        raise UserError(
            f"{broken} scores are not finite numbers: one of the two models gave a token an nll that is none. Score "
            "again, with model.dtype float32 or bfloat16; if it stays so, the base or the reference's adapter is "
            "damaged."
        )


def _ordered_bits(scores: np.ndarray) -> UInt[np.ndarray, " n"]:
    """Unsigned integers in the same order as the floats; −0 and 0 are equal."""
    _refuse_not_finite(scores)
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
class Sides:
    """The cuts that a selection makes in a corpus: above `positive` is learned, not above `negative` is forgotten."""

    positive: Cut
    negative: Cut
    num_positive: int
    num_negative: int

    def masks(
        self, score: Float[np.ndarray, " n"], first: int
    ) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Positive and negative mask of scores whose first has position `first` in the corpus (disjoint)."""
        return self.positive.above(score, first), ~self.negative.above(score, first)


def sides(chunks: Chunks, count: int, selection: Selection) -> Sides:
    """Cut a ranking of `count` scores (of tokens or of sequences) as `selection` says.

    Exactly round(ρ · count) are positive and, with `forget_fraction` f, exactly round(f · count) negative. A negative
    side may be empty.

    Raises:
        UserError: A score is not a finite number, or nothing is positive: training would only forget.
    """
    if selection.threshold is not None:
        found = _by_threshold(chunks, count, selection.threshold)
        setting = f"data.threshold {selection.threshold}"
    else:
        found = _by_share(chunks, count, selection)
        setting = f"data.positive_fraction (ρ) {selection.positive_fraction}"
    if found.num_positive == 0:
        ranked = "sequences" if selection.granularity == "sequence" else "response tokens"
        raise UserError(
            f"At {setting} none of the {count:,} {ranked} of the corpus is positive: training would only forget. "
            + ("Lower the threshold." if selection.threshold is not None else "Raise ρ, or take a larger corpus.")
        )
    return found


def _by_threshold(chunks: Chunks, count: int, threshold: float) -> Sides:
    cut, num_positive = Cut(threshold, 0), 0
    for scores in chunks():
        _refuse_not_finite(scores)
        num_positive += int(np.count_nonzero(cut.above(scores, 0)))
    return Sides(cut, cut, num_positive, count - num_positive)


def _by_share(chunks: Chunks, count: int, selection: Selection) -> Sides:
    assert isinstance(selection.positive_fraction, float), "every token is positive: there is nothing to cut"
    num_positive = round(selection.positive_fraction * count)
    cut = cut_at(chunks, num_positive)
    if selection.forget_fraction is None:
        return Sides(cut, cut, num_positive, count - num_positive)
    num_negative = min(round(selection.forget_fraction * count), count - num_positive)
    return Sides(cut, cut_at(chunks, count - num_negative), num_positive, num_negative)
