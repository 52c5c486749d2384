"""Two models' nll of every response token: one model in memory, its adapter off and on."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from forgetting.method.store import ShardRange
from forgetting.model.batch import MicroBatch, batch_by_tokens, pad
from forgetting.model.language_model import LanguageModel


@dataclass
class ShardWork:
    """What a rank computes in a round: one shard, or nothing but empty batches that keep step with other ranks."""

    shard: ShardRange | None
    micro_batches: list[MicroBatch]
    members: list[list[int]]
    """Positions in the shard of each micro-batch's sequences."""


@dataclass
class ShardScores:
    """Scores of a shard's response tokens, in corpus order."""

    shard: ShardRange
    num_targets: np.ndarray
    nll_base: Float[np.ndarray, " tokens"]
    nll_reference: Float[np.ndarray, " tokens"]


class ScoringDataset(Dataset[ShardWork]):
    """A rank's shards, each cut into micro-batches of similar length.

    In every round each rank takes one shard and as many forward passes as the rank that needs most.

    Args:
        splits: Tokenised splits by name.
        pending: Shards still to be scored, the same list on every rank.
        budget: Padded tokens of a micro-batch, at most.
        rank: This process.
        num_ranks: All of them.
    """

    def __init__(self, splits: dict, pending: list[ShardRange], budget: int, rank: int = 0, num_ranks: int = 1) -> None:
        self.splits = splits
        self.pending = pending
        self.budget = budget
        self.rank = rank
        self.num_ranks = num_ranks

    def __len__(self) -> int:
        return -(-len(self.pending) // self.num_ranks)

    def __getitem__(self, number: int) -> ShardWork:
        if number >= len(self):
            raise IndexError(number)
        shards = self.pending[number * self.num_ranks : (number + 1) * self.num_ranks]
        groups = [batch_by_tokens(self.splits[s.split].lengths[s.first : s.last], self.budget) for s in shards]
        passes = max(len(g) for g in groups)
        shard = shards[self.rank] if self.rank < len(shards) else None
        members = groups[self.rank] if shard is not None else []
        micro_batches = []
        for positions in members:
            assert shard is not None
            split = self.splits[shard.split]
            rows = [shard.first + p for p in positions]
            micro_batches.append(pad([(split.input_ids(i), split.response_mask(i)) for i in rows]))
        empty = passes - len(members)
        return ShardWork(shard, micro_batches + [pad([])] * empty, members + [[] for _ in range(empty)])


@torch.no_grad()
def score_shard(model: LanguageModel, work: ShardWork) -> ShardScores | None:
    """Run both models over a shard (Taheri et al., TMLR 2026, Algorithm 1, stage 2).

    The Trainer runs it in inference mode, except where the model is sharded, which inference mode forbids.

    Returns:
        The scores, or None where there is no shard to score.
    """
    base, reference = [], []
    for batch in work.micro_batches:
        with model.adapter_off():
            base.append(model(batch))
        reference.append(model(batch))
    if work.shard is None:
        return None
    # Micro-batches are sorted by length; put the sequences back in corpus order.
    counts = [batch.response_mask.sum(1).tolist() for batch in work.micro_batches]
    size = work.shard.last - work.shard.first
    columns = [[np.zeros(0, np.float32)] * size, [np.zeros(0, np.float32)] * size]
    for column, pieces in zip(columns, (base, reference), strict=True):
        for values, positions, lengths in zip(pieces, work.members, counts, strict=True):
            if positions:
                parts: tuple[Tensor, ...] = values.float().cpu().split(lengths)
                for position, part in zip(positions, parts, strict=True):
                    column[position] = part.numpy()
    num_targets = np.array([len(part) for part in columns[0]], dtype=np.int64)
    return ShardScores(work.shard, num_targets, np.concatenate(columns[0]), np.concatenate(columns[1]))
