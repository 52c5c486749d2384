"""The loss as the authors' published code takes it: `data.normalization: published` (configs/published.yaml).

Their loop runs micro-batches of two consecutive sequences, takes means inside each, and averages the losses of an
optimizer step's micro-batches. That is another loss than Eq. 8 over the step, but it too is a sum over tokens: a `Pair`
is a set of tokens with counts of its own, wherever a forward pass has them. So passes and ranks are divided as always,
and the loss depends on neither. An objective is given the tokens of one pair at a time, with the counts of that pair.

What else their loop does (docs/deviations.md):

- In Forgetting runs the masks are a position shorter than the padded micro-batch: the sequence that fills it (both,
  where they are of one length) has no label at its last position, normally EOS.
- λ's step is the index of the loader. Each of 4 devices takes a micro-batch at a time, so that of the 12 micro-batches
  of an optimizer step the first four have one λ, the next four the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from forgetting.errors import UserError
from forgetting.method.objectives import Objective
from forgetting.method.response_tokens import ResponseTokens, Step
from forgetting.method.steps import LabeledBatch, StepDataset

SEQUENCES = 2
"""Sequences of a micro-batch of the published loop."""
DEVICES = 4
"""Devices that the published loop runs on, each with a micro-batch of its own at a time."""


def refuse_half_pairs(batch_size: int) -> None:
    """Refuse steps that would cut a pair in two.

    Raises:
        UserError: The number of sequences in a step is odd.
    """
    if batch_size % SEQUENCES:
        raise UserError(
            f"data.batch_size is {batch_size}; data.normalization published takes the loss inside pairs of consecutive "
            "sequences, so an even number was expected. Change one of the two."
        )


@dataclass
class Pair:
    """Those tokens of a pair of sequences that a micro-batch holds, with what an objective is told of the whole pair.

    Attributes:
        place: Of the pair among those of the optimizer step, from 0.
        num_positive: Positive tokens of the pair, also where its other sequence is in another micro-batch or rank.
        num_negative: Negative tokens, likewise.
        index: Positions of its tokens among the micro-batch's response tokens.
        example: Which of its sequences in this micro-batch each token belongs to, from 0.
    """

    place: int
    num_positive: int
    num_negative: int
    index: Int[Tensor, " pair_tokens"]
    example: Int[Tensor, " pair_tokens"]

    def tokens(self, tokens: ResponseTokens) -> ResponseTokens:
        """Its tokens out of the micro-batch's."""
        return ResponseTokens(
            tokens.nll[self.index],
            tokens.positive_mask[self.index],
            tokens.negative_mask[self.index],
            self.example,
            {name: column[self.index] for name, column in tokens.columns.items()},
            None if tokens.entropy is None else tokens.entropy[self.index],
        )


@dataclass
class PublishedBatch(LabeledBatch):
    """A micro-batch whose tokens are normalized inside the pairs that they belong to."""

    pairs: list[Pair]
    """Those with a sequence in this micro-batch."""
    num_pairs: int
    """Of the whole optimizer step."""
    accumulation: int
    """Micro-batches that each device of the published loop accumulates in a full optimizer step."""

    def share(self, objective: Objective, tokens: ResponseTokens, step: Step) -> Float[Tensor, ""]:
        """The micro-batch's share of the mean over the step's pairs."""
        total = tokens.nll[:0].sum()  # a micro-batch without sequences has no pair, and still a backward pass
        for pair in self.pairs:
            seen = replace(
                step,
                number=step.number * self.accumulation + pair.place // DEVICES,
                total=step.total * self.accumulation,
                num_positive=pair.num_positive,
                num_negative=pair.num_negative,
            )
            total = total + objective(pair.tokens(tokens), seen)
        return total / self.num_pairs


class PublishedStepDataset(StepDataset):
    """Builds steps whose micro-batches are normalized inside pairs of consecutive sequences.

    Args:
        batch_size: Sequences of a full step; even.
        drops_last: Drop the last label of the longest sequence of each pair, as in the published Forgetting runs.
        arguments: Of `StepDataset`.
        named: Likewise, by name.
    """

    def __init__(self, batch_size: int, drops_last: bool, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.accumulation = -(-batch_size // (SEQUENCES * DEVICES))
        self.drops_last = drops_last

    def labels(self, indices: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Positive and negative mask of each sequence of a step, without the labels that the published masks lack."""
        masks = super().labels(indices)
        if not self.drops_last:
            return masks
        lengths = [int(self.examples.lengths[i]) for i in indices]
        for k, i in enumerate(indices):
            longest = max(lengths[k - k % SEQUENCES :][:SEQUENCES])  # of its pair
            # A sequence that was truncated outside a response has no target at its last position: it loses none.
            if lengths[k] == longest and self.examples.response_mask(i)[-1]:
                masks[k] = _without_last(*masks[k])
        return masks

    def part(
        self, indices: Sequence[int], masks: Sequence[tuple[np.ndarray, np.ndarray]], places: Sequence[int]
    ) -> LabeledBatch:
        """The micro-batch of the sequences at some places of a step, with the pairs that they belong to."""
        batch = super().part(indices, masks, places)
        sizes = [len(masks[k][0]) for k in places]
        first = np.cumsum([0, *sizes])
        pairs = []
        for place in sorted({k // SEQUENCES for k in places}):
            whole = masks[place * SEQUENCES : (place + 1) * SEQUENCES]
            rows = [row for row, k in enumerate(places) if k // SEQUENCES == place]
            index = np.concatenate([np.arange(first[row], first[row + 1]) for row in rows])
            example = np.repeat(np.arange(len(rows)), [sizes[row] for row in rows])
            num_positive, num_negative = (int(sum(mask.sum() for mask in side)) for side in zip(*whole, strict=True))
            pairs.append(Pair(place, num_positive, num_negative, torch.from_numpy(index), torch.from_numpy(example)))
        num_pairs = -(-len(indices) // SEQUENCES)
        return PublishedBatch(**vars(batch), pairs=pairs, num_pairs=num_pairs, accumulation=self.accumulation)


def _without_last(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks whose last token is of neither."""
    positive, negative = positive.copy(), negative.copy()
    positive[-1] = negative[-1] = False
    return positive, negative
