"""Positive and negative masks of an example's response tokens, from a score and a selection: derived, never stored."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from forgetting.errors import UserError
from forgetting.method.scores import Score, checked
from forgetting.method.selection import Granularity, Selection, Thresholds, find_thresholds, sequence_means
from forgetting.method.store import PROMPTLESS, StoredSplit

Masks = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Positive and negative mask of an example's response tokens."""


@dataclass(frozen=True)
class AllPositive:
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
class ScoredSplit:
    """A split of a store, with the score of each of its response tokens.

    Raises:
        UserError: The score reads a column that is not there.
    """

    stored: StoredSplit
    score: Score

    def __post_init__(self) -> None:
        if missing := [name for name in self.score.columns if name not in self.stored.columns]:
            remedy = (
                "No source of this corpus names its column of known `noise` (docs/corpus.md)."
                if missing == ["noise"]
                else "Score again with --data.promptless true, which keeps what is there."
                if missing == [PROMPTLESS]
                else "Score again with a version that writes it, or choose another data.score."
            )
            raise UserError(
                f"The score {type(self.score).__name__} reads {', '.join(missing)}; the store has "
                f"{', '.join(self.stored.columns)}. {remedy}"
            )

    def chunks(self) -> Iterator[Float[np.ndarray, " tokens"]]:
        """Scores of every response token in corpus order, a shard at a time."""
        for tokens in self.stored.shards():
            yield checked(self.score, tokens)

    def sequence_chunks(self) -> Iterator[Float[np.ndarray, " examples"]]:
        """Mean score of each sequence's response tokens, a shard at a time, in float64."""
        for tokens in self.stored.shards():
            yield sequence_means(checked(self.score, tokens), tokens.num_targets)

    def example(self, index: int) -> tuple[int, Float[np.ndarray, " tokens"]]:
        """Position of an example's first response token among all of the split's, and the scores of its tokens."""
        tokens = self.stored.example(index)
        return tokens.first, checked(self.score, tokens)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all scores: a score's code is not in the configuration, so what it gives names it."""
        hashed = hashlib.sha256()
        for scores in self.chunks():
            hashed.update(np.ascontiguousarray(scores).tobytes())
        return hashed.hexdigest()


class Selected:
    """What a selection makes of a corpus.

    Attributes:
        num_positive: Positive tokens of D_train, or sequences at that granularity.
        num_negative: Negative ones.
        thresholds: Of the whole corpus; None at the scope `example`.

    Args:
        train: D_train with its scores.
        selection: Not "all".

    Raises:
        UserError: A score is not a finite number or depends on more than its example, or nothing is positive: training
            would only unlearn.
    """

    def __init__(self, train: ScoredSplit, selection: Selection) -> None:
        self.train, self.selection = train, selection
        self.thresholds: Thresholds | None = None
        self._refuse_context()
        tokens, sequences = train.stored.num_tokens, len(train.stored)
        if selection.scope == "example":
            counts = [selection.counts(int(number)) for number in train.stored.num_targets()]
            self.num_positive, self.num_negative = (sum(side) for side in zip(*counts, strict=True))
            total = tokens
        else:
            by_token = selection.granularity == "token"
            total = tokens if by_token else sequences
            self.thresholds = find_thresholds(train.chunks if by_token else train.sequence_chunks, total, selection)
            self.num_positive, self.num_negative = self.thresholds.num_positive, self.thresholds.num_negative
        if self.num_positive == 0:
            self._refuse_no_positive(total)

    def masks(self, scored: ScoredSplit) -> Masks:
        """Masks of a split. D_val ranks as if it followed D_train: what equals the threshold there is not selected."""
        if self.thresholds is None:
            return WithinExample(scored, self.selection)
        is_train = scored.stored.name == "train"
        before = (0, 0) if is_train else (len(self.train.stored), self.train.stored.num_tokens)
        return ByThreshold(scored, self.thresholds, self.selection.granularity, *before)

    def _refuse_context(self) -> None:
        """Masks ask for one example at a time: its scores must be those that it has among others."""
        alone, among_others = self.train.example(0)[1], next(self.train.chunks())
        if not np.array_equal(alone, among_others[: len(alone)]):
            raise UserError(
                f"The score {type(self.train.score).__name__} gives the tokens of an example other values alone than "
                "among others. It must depend on the token and its example only: move what it takes over the corpus "
                "(a mean, a rank) into the selection or a constant."
            )

    def _refuse_no_positive(self, total: int) -> None:
        by_threshold = self.selection.threshold is not None
        setting = (
            f"data.threshold {self.selection.threshold}"
            if by_threshold
            else f"data.positive_fraction (ρ) {self.selection.positive_fraction}"
        )
        ranked = "sequences" if self.selection.granularity == "sequence" else "response tokens"
        raise UserError(
            f"At {setting} none of the {total:,} {ranked} of the corpus is positive: training would only unlearn. "
            + ("Lower the threshold." if by_threshold else "Raise ρ, or take a larger corpus.")
        )


@dataclass(frozen=True)
class ByThreshold:
    """Masks by a token's own score, or by the mean score of its sequence.

    Args:
        scored: Scores of the examples.
        thresholds: Of the corpus.
        granularity: Of the ranking.
        sequences_before: Position of the first example in that ranking's corpus order.
        tokens_before: Position of its first response token.
    """

    scored: ScoredSplit
    thresholds: Thresholds
    granularity: Granularity
    sequences_before: int = 0
    tokens_before: int = 0

    def __call__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Positive and negative mask of example `i`."""
        first, score = self.scored.example(i)
        if self.granularity == "token":
            return self.thresholds.masks(score, self.tokens_before + first)
        mean = sequence_means(score, np.array([len(score)]))
        positive, negative = self.thresholds.masks(mean, self.sequences_before + i)
        return np.repeat(positive, len(score)), np.repeat(negative, len(score))


@dataclass(frozen=True)
class WithinExample:
    """Masks by the rank of a token among those of its own example (Lin et al., 2024).

    Args:
        scored: Scores of the examples.
        selection: Gives the fractions.
    """

    scored: ScoredSplit
    selection: Selection

    def __call__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Positive and negative mask of example `i`."""
        score = self.scored.example(i)[1]
        num_positive, num_negative = self.selection.counts(len(score))
        rank = np.empty(len(score), np.int64)
        rank[np.argsort(-score, kind="stable")] = np.arange(len(score))  # equal scores in their order
        return rank < num_positive, rank >= len(score) - num_negative
