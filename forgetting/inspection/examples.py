"""What is known of each response token of D_train, and one example of it for a reader."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from forgetting.inspection.pieces import Pieces, token_pieces
from forgetting.inspection.steps import FirstSteps, first_steps, ranks, slider_steps
from forgetting.method.data import ForgettingData
from forgetting.method.selection import sequence_means


@dataclass(frozen=True)
class Example:
    """One example of D_train. Arrays hold one value per response token.

    Attributes:
        number: Its place in D_train.
        source: Its source's name.
        pieces: Text of each of its tokens, the prompt's included.
        response_mask: Which of its tokens are response tokens.
        score: Their scores.
        nll_base: The base model's nll, in nats.
        nll_reference: The reference's.
        rank: Place among all scores of D_train, 1 being the highest.
        noise: 0 where clean, else 1 + a place in the corpus' kinds; None where no noise is known.
        first: Steps of the slider at which they become positive, and stop being negative.
    """

    number: int
    source: str
    pieces: Pieces
    response_mask: Bool[np.ndarray, " time"]
    score: Float[np.ndarray, " tokens"]
    nll_base: Float[np.ndarray, " tokens"]
    nll_reference: Float[np.ndarray, " tokens"]
    rank: Int[np.ndarray, " tokens"]
    noise: UInt8[np.ndarray, " tokens"] | None
    first: FirstSteps

    def states(self, step: int) -> list[str]:
        """`positive`, `negative` or `ignored` for each response token at a step of the slider."""
        return [
            "positive" if positive <= step else "negative" if kept > step else "ignored"
            for positive, kept in zip(self.first.positive, self.first.kept, strict=True)
        ]


class Examples:
    """D_train with its scores and the selections of every step of the slider, in memory.

    Args:
        data: After `setup`, with its store and its selection.
        tokenizer: Of the tokens.

    Attributes:
        score: Of every response token, in corpus order; so are `nll_base`, `nll_reference` and `noise`.
        means: Mean score of each example.
        sources: Source of each example.
        steps: Values of ρ of the slider.
        own_step: Place of the experiment's own selection among them.
        first: First steps of every response token.
    """

    def __init__(self, data: ForgettingData, tokenizer: PreTrainedTokenizerBase) -> None:
        assert isinstance(tokenizer, PreTrainedTokenizerFast)  # as the encoder of the corpus demands
        assert data.scored is not None
        assert data.selected is not None
        stored = data.scored.stored
        self.selection, self.score_name = data.selection, type(data.score).__name__
        self.noise_kinds = data.tokens.noise_kinds
        self.score = np.concatenate(list(data.scored.chunks()))
        self.nll_base, self.nll_reference = stored.column("nll_base"), stored.column("nll_reference")
        self.num_targets = stored.num_targets()
        self.starts = np.cumsum(self.num_targets) - self.num_targets
        self.means = sequence_means(self.score, self.num_targets)
        self.split = data.tokens.split("train")
        self.noise = self.split.noise
        self.sources = np.asarray(data.corpus.split("train")["source"][:])[self.split.rows]
        num_ranked = len(self.split) if self.selection.granularity == "sequence" else len(self.score)
        self.steps, self.own_step = slider_steps(self.selection, data.selected.num_positive, num_ranked)
        self.first = first_steps(self.score, self.num_targets, self.selection, self.steps)
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.split)

    @cached_property
    def rank(self) -> Int[np.ndarray, " tokens"]:
        """Place of every response token among all scores, 1 being the highest."""
        return ranks(self.score) + 1

    def __getitem__(self, number: int) -> Example:
        here = slice(int(self.starts[number]), int(self.starts[number] + self.num_targets[number]))
        return Example(
            number, str(self.sources[number]), token_pieces(self._tokenizer, self.split.input_ids(number).tolist()),
            self.split.response_mask(number), self.score[here], self.nll_base[here], self.nll_reference[here],
            self.rank[here], None if self.noise is None else self.noise[here],
            FirstSteps(self.first.positive[here], self.first.kept[here]),
        )  # fmt: skip

    def target_ids(self) -> Int[np.ndarray, " tokens"]:
        """Vocabulary number of every response token."""
        return np.concatenate([self.split.input_ids(i)[self.split.response_mask(i)] for i in range(len(self))]).astype(
            np.int64
        )

    def names(self, ids: list[int]) -> list[str]:
        """The vocabulary's names of tokens."""
        return [str(name) for name in self._tokenizer.convert_ids_to_tokens(ids)]

    def sample(self, num_examples: int) -> Int[np.ndarray, " chosen"]:
        """Choose evenly over sources and, in each, over mean scores; in corpus order, always the same.

        So a source has the fraction of the sample that it has of the corpus, and every level of score is there.
        """
        order = np.lexsort((self.means, self.sources))
        num_chosen = min(num_examples, len(order))
        middles = (np.arange(num_chosen) + 0.5) * len(order) / num_chosen
        return np.sort(order[middles.astype(np.int64)])

    def sampled(self, num_examples: int) -> Iterator[Example]:
        """The examples of a sample."""
        return (self[int(number)] for number in self.sample(num_examples))
