"""Selection health: what a scored corpus says about its selection where nobody knows the noise.

None of these figures says that the score finds noise; docs/health.md says what each is worth, and how that was found
out. All are measured in passes over the store, a shard at a time, in memory that does not grow with the corpus.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, Integer

from forgetting.method.masks import ScoredSplit
from forgetting.method.scores import LossReduction, StoredTokens
from forgetting.method.selection import Selection, find_thresholds, ordered_bits
from forgetting.method.store import StoredSplit

Sources = Callable[[int, int], Sequence[str]]
"""Gives the source of each example of D_train from the first number to the second (excluded)."""

Pairs = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
"""Gives two columns of the same tokens, a chunk at a time, as often as it is called."""

POSITIONS = (0, 1, 4, 16, 64, 256)
"""Where each range of places in a response begins, counted from 0; the last has no end."""

POSITIVE_FRACTION = 0.7
"""ρ in the paper."""

FEW_FIRST_TOKENS = 0.41
"""Of 1 − ρ: where a smaller fraction of first tokens is negative, selection failed in the study of docs/health.md."""

LOW_CORRELATION = 0.026
"""Of Q with nll_base: below it selection failed in that study, and D_ref was noisier than D_train."""


@dataclass(frozen=True)
class MeanLoss:
    """Mean nll of a split's response tokens by the base model and by the reference, in nats per token.

    Neither D_train nor D_val is what the reference was trained on, so both tell what it learned.
    """

    num_tokens: int
    base: float
    reference: float

    @property
    def reduction(self) -> float:
        """By how much the reference's is lower: the mean of Q."""
        return self.base - self.reference


@dataclass(frozen=True)
class Group:
    """Tokens of D_train that share a source, or a range of places in their response."""

    name: str
    num_tokens: int
    num_negative: int

    @property
    def negative_fraction(self) -> float:
        """Fraction of them that is negative."""
        return self.num_negative / self.num_tokens


@dataclass(frozen=True)
class Health:
    """Figures of the score Q and of the tokens that it makes negative at ρ.

    Attributes:
        positive_fraction: ρ.
        train: Mean losses of D_train.
        held_out: Mean losses of D_val; None where the corpus has none.
        positive_score_fraction: Fraction of the tokens of D_train with Q > 0.
        base_correlation: Spearman's correlation of Q with nll_base; None where one of them is constant.
        by_source: The sources of D_train, by name.
        by_position: The ranges of places in a response, in order.
        agreement: Spearman's correlation of Q with that of other references, by their name.
    """

    positive_fraction: float
    train: MeanLoss
    held_out: MeanLoss | None
    positive_score_fraction: float
    base_correlation: float | None
    by_source: tuple[Group, ...]
    by_position: tuple[Group, ...]
    agreement: Mapping[str, float | None] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """The figures that are defined, by name, as loggers take them."""
        figures = {
            "nll_reduction_train": self.train.reduction,
            "nll_reduction": None if self.held_out is None else self.held_out.reduction,
            "positive_score_fraction": self.positive_score_fraction,
            "base_correlation": self.base_correlation,
            **{f"negative_fraction/source/{group.name}": group.negative_fraction for group in self.by_source},
            **{f"negative_fraction/position/{group.name}": group.negative_fraction for group in self.by_position},
            **{f"agreement/{name}": value for name, value in self.agreement.items()},
        }
        return {f"health/{name}": value for name, value in figures.items() if value is not None}

    @property
    def warnings(self) -> list[str]:
        """What went with a selection that fails in the study of docs/health.md, which says why there is no more."""
        warnings = []
        name, losses = ("D_train", self.train) if self.held_out is None else ("D_val", self.held_out)
        if losses.reduction <= 0:
            warnings.append(
                f"the reference did not lower the nll of {name} ({losses.base:.4f}, now {losses.reference:.4f}), on "
                "which it was not trained: its Q says little. Look at its learning rate, epochs and the size of D_ref."
            )
        first, expected = self.by_position[0].negative_fraction, 1 - self.positive_fraction
        if first < FEW_FIRST_TOKENS * expected:
            warnings.append(
                f"of the first tokens of responses {first:.1%} are negative, of all tokens {expected:.1%}: Q may rank "
                "the form of responses, in which the corpus differs from what the base expects, and not their noise."
            )
        if self.base_correlation is not None and self.base_correlation < LOW_CORRELATION:
            warnings.append(
                f"Q hardly follows nll_base (correlation {self.base_correlation:.2f}): the reference did not learn what"
                " the base knows least. Is D_ref as clean as D_train, and large enough?"
            )
        return warnings

    def lines(self) -> list[str]:
        """The figures and the warnings as lines of text."""
        lines = [f"selection health, {self.train.num_tokens:,} response tokens of D_train (docs/health.md):"]
        for name, losses in (("D_val", self.held_out), ("D_train", self.train)):
            if losses is not None:
                lines.append(f"  nll of {name}: base {losses.base:.4f}, reference {losses.reference:.4f}")
        lines.append(f"  Q > 0: {self.positive_score_fraction:.1%} of the tokens")
        agreement = {f"the Q of {name}": value for name, value in self.agreement.items()}
        for name, value in {"nll_base": self.base_correlation, **agreement}.items():
            lines.append(f"  Spearman correlation of Q with {name}: {'none' if value is None else f'{value:.2f}'}")
        for name, groups in (("source", self.by_source), ("place in the response", self.by_position)):
            listed = ", ".join(f"{group.name} {group.negative_fraction:.1%}" for group in groups)
            lines.append(f"  negative at ρ {self.positive_fraction:g}, by {name}: {listed}")
        lines += [f"  warning: {warning}" for warning in self.warnings]
        lines.append(
            "  These figures cannot say whether Q finds noise. To know it: python -m forgetting probe (docs/probe.md)."
        )
        return lines


def selection_health(
    train: StoredSplit,
    held_out: StoredSplit | None,
    sources: Sources,
    positive_fraction: float = POSITIVE_FRACTION,
    others: Mapping[str, StoredSplit] | None = None,
) -> Health:
    """Measure a scored corpus.

    Args:
        train: Scores of D_train.
        held_out: Scores of D_val, if there is one.
        sources: Of the examples of D_train.
        positive_fraction: ρ, in (0, 1), of a selection of tokens in the whole corpus.
        others: D_train as other references score it, by their name.

    Raises:
        UserError: A score is not a finite number, or ρ is out of range.
    """
    scored = ScoredSplit(train, LossReduction())
    selection = Selection(positive_fraction)
    thresholds = find_thresholds(scored.chunks, train.num_tokens, selection)
    by_source, negative_by_source = Counter[str](), Counter[str]()
    by_position, negative_by_position = np.zeros((2, len(POSITIONS)), dtype=np.int64)
    num_above_zero, first_example = 0, 0
    for tokens, scores in zip(train.shards(), scored.chunks(), strict=True):
        num_above_zero += int(np.count_nonzero(scores > 0))
        _, is_negative = thresholds.masks(scores, tokens.first)
        bins = position_bins(tokens.num_targets)
        by_position += np.bincount(bins, minlength=len(POSITIONS))
        negative_by_position += np.bincount(bins[is_negative], minlength=len(POSITIONS))
        num_negative = np.add.reduceat(is_negative, np.cumsum(tokens.num_targets) - tokens.num_targets, dtype=np.int64)
        names = sources(first_example, first_example + len(tokens.num_targets))
        for name, count, negative in zip(names, tokens.num_targets, num_negative, strict=True):
            by_source[name] += int(count)
            negative_by_source[name] += int(negative)
        first_example += len(tokens.num_targets)
    return Health(
        positive_fraction=positive_fraction,
        train=mean_loss(train),
        held_out=None if held_out is None else mean_loss(held_out),
        positive_score_fraction=num_above_zero / train.num_tokens,
        base_correlation=spearman(lambda: ((_score(tokens), tokens["nll_base"]) for tokens in train.shards())),
        by_source=tuple(Group(name, by_source[name], negative_by_source[name]) for name in sorted(by_source)),
        by_position=tuple(
            Group(name, int(count), int(negative))
            for name, count, negative in zip(position_names(), by_position, negative_by_position, strict=True)
            if count
        ),
        agreement={name: _agreement(train, other) for name, other in (others or {}).items()},
    )


def _score(tokens: StoredTokens) -> np.ndarray:
    return LossReduction()(tokens)


def _agreement(train: StoredSplit, other: StoredSplit) -> float | None:
    """Spearman's correlation of two references' Q; their stores may be cut into shards of different sizes."""

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        theirs, left = other.shards(), np.zeros(0, np.float32)
        for tokens in train.shards():
            while len(left) < len(tokens):
                left = np.concatenate([left, _score(next(theirs))])
            yield _score(tokens), left[: len(tokens)]
            left = left[len(tokens) :]

    return spearman(pairs)


def mean_loss(split: StoredSplit) -> MeanLoss:
    """Mean nll of a split by both models."""
    sums = np.zeros(2)
    for tokens in split.shards():
        sums += [tokens[name].sum(dtype=np.float64) for name in ("nll_base", "nll_reference")]
    base, reference = sums / split.num_tokens
    return MeanLoss(split.num_tokens, float(base), float(reference))


def position_bins(num_targets: Int[np.ndarray, " examples"]) -> Integer[np.ndarray, " tokens"]:
    """The range in `POSITIONS` of each response token, by its place in its response.

    Args:
        num_targets: Response tokens of each example.
    """
    starts = np.cumsum(num_targets) - num_targets
    places = np.arange(int(num_targets.sum())) - np.repeat(starts, num_targets)
    return np.searchsorted(POSITIONS, places, side="right") - 1


def position_names() -> list[str]:
    """Names of the ranges, counted from 1 as a reader counts: 1, 2–4, ..., 257 and on."""
    ends = [*POSITIONS[1:], None]
    return [
        f"{start + 1} and on" if end is None else str(end) if end == start + 1 else f"{start + 1}–{end}"
        for start, end in zip(POSITIONS, ends, strict=True)
    ]


def spearman(pairs: Pairs) -> float | None:
    """Spearman's rank correlation of two float32 columns, equal values sharing their mean rank.

    In memory that does not grow with the columns: values are first cut to 8 significant bits (the upper half of a
    float32), so ranks come from 2¹⁶ counters. It is the exact correlation of the cut values; values within 1 % of each
    other count as equal, which moves it by less than a thousandth where they are spread as losses are.

    Returns:
        The correlation; None where a column is constant.
    """
    counts = np.zeros((2, 2**16), dtype=np.int64)
    for chunk in pairs():
        for column, values in enumerate(chunk):
            counts[column] += np.bincount(_upper_half(values), minlength=2**16)
    total = int(counts[0].sum())
    # Mean rank of the tokens in each counter, less the mean of all ranks.
    ranks = np.cumsum(counts, axis=1) - counts / 2 - total / 2
    variances = (counts * ranks**2).sum(axis=1)
    if not variances.all():
        return None
    covariance = sum(float((ranks[0][_upper_half(a)] * ranks[1][_upper_half(b)]).sum()) for a, b in pairs())
    return float(covariance / np.sqrt(variances.prod()))


def _upper_half(values: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    return (ordered_bits(values) >> 16).astype(np.int64)
