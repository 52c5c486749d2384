"""Batches: padded sequences with their response mask, and the shift between inputs and targets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

PASS_COST = 256
"""Tokens of padding that are worth another forward pass, whose operations take their time however few the tokens."""


@dataclass
class MicroBatch:
    """Sequences padded on the right to the longest.

    Attention is causal, so padding on the right changes nothing to its left: no attention mask is needed, and the id
    used for padding is never looked at. A tokenizer without a padding token needs no new embedding row.
    """

    input_ids: Int[Tensor, "batch time"]
    response_mask: Bool[Tensor, "batch time"]
    """True at the tokens that are targets. Position 0 never is: nothing predicts it."""

    @property
    def num_targets(self) -> int:
        """Response tokens in the batch."""
        return int(self.response_mask.sum())


def pad(sequences: Sequence[tuple[np.ndarray, np.ndarray]]) -> MicroBatch:
    """Put sequences into one batch.

    Args:
        sequences: `(input_ids, response_mask)` of each sequence, both of shape `[time]`. No sequence at all gives a
            batch of one token without a target, which a rank runs to keep step with the others.
    """
    longest = max((len(ids) for ids, _ in sequences), default=1)
    rows = max(len(sequences), 1)
    input_ids = np.zeros((rows, longest), dtype=np.int64)
    response_mask = np.zeros((rows, longest), dtype=np.bool_)
    for row, (ids, mask) in enumerate(sequences):
        input_ids[row, : len(ids)] = ids
        response_mask[row, : len(ids)] = mask
    return MicroBatch(torch.from_numpy(input_ids), torch.from_numpy(response_mask))


def shift(batch: MicroBatch) -> tuple[Bool[Tensor, "batch time"], Int[Tensor, " tokens"]]:
    """Align inputs and targets: the only place that does.

    Returns:
        The positions whose hidden state predicts a response token (the position before each), and those tokens, in
        row-major order: the response tokens of the first sequence, then of the second, and so on.
    """
    predicts = torch.zeros_like(batch.response_mask)
    predicts[:, :-1] = batch.response_mask[:, 1:]
    return predicts, batch.input_ids[:, 1:][batch.response_mask[:, 1:]]


def batch_by_tokens(lengths: Sequence[int] | np.ndarray, budget: int) -> list[list[int]]:
    """Divide sequences into batches of similar length, so that padding and forward passes together cost least.

    Sorted by length, the batches are contiguous. Of all divisions within the budget this is the cheapest, at one cost
    per token, padding included, and `PASS_COST` per batch.

    Args:
        lengths: Tokens of each sequence.
        budget: The most tokens, padding included, of a batch. A longer sequence is a batch of its own.

    Returns:
        Indices into `lengths`, the batch of the longest first.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    descending = np.asarray(lengths, dtype=np.int64)[order]
    count = len(order)
    # Dynamic program, from the shortest sequence to the longest: cost_from[i] is the least cost of the sequences from i
    # on, and size_from[i] the size of the batch that begins there. A batch's first sequence is its longest, to which
    # the others are padded, so each size within the budget has a known cost: its own and that of the rest.
    cost_from, size_from = np.zeros(count + 1), np.zeros(count, dtype=np.int64)
    for first in range(count - 1, -1, -1):
        longest = int(descending[first])
        sizes = np.arange(1, max(1, min(count - first, budget // longest)) + 1)
        costs = PASS_COST + sizes * longest + cost_from[first + sizes]
        best = int(costs.argmin())
        cost_from[first], size_from[first] = costs[best], sizes[best]
    batches, first = [], 0
    while first < count:
        batches.append(order[first : first + size_from[first]].tolist())
        first += size_from[first]
    return batches
