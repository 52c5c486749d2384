"""Scoring (Algorithm 1, stage 2): two models' nll of every response token, by one model, its adapter off and on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from forgetting.errors import UserError
from forgetting.method.data import SCORED, ForgettingData, micro_batch_budget
from forgetting.method.store import COLUMNS, MANIFEST, PROMPTLESS, ScoreStore, ShardRange, has_shard, shard_ranges
from forgetting.model.batch import MicroBatch, batch_by_tokens, pad
from forgetting.model.language_model import LanguageModel

HEADER = 3
"""Tokens before a response that stay when its prompt is left out: the end of the header that announces a response."""


@dataclass
class ShardWork:
    """What a rank computes in a round: one shard, or nothing but empty batches that keep step with other ranks."""

    shard: ShardRange | None
    micro_batches: list[MicroBatch]
    members: list[list[int]]
    """Positions in the shard of each micro-batch's sequences."""
    promptless: list[MicroBatch]
    """The same sequences without their prompts; none where these are not scored."""


@dataclass
class ShardScores:
    """Columns of a shard's response tokens, in corpus order."""

    shard: ShardRange
    num_targets: np.ndarray
    columns: dict[str, Float[np.ndarray, " tokens"]]


class ScoringDataset(Dataset[ShardWork]):
    """A rank's shards, each divided into micro-batches of similar length.

    In every round each rank takes one shard and as many forward passes as the rank that needs most.

    Args:
        splits: Tokenized splits by name.
        pending: Shards still to be scored, the same list on every rank.
        budget: Padded tokens of a micro-batch, at most.
        rank: This process.
        num_ranks: All of them.
        promptless: Also give the sequences without their prompts.
    """

    def __init__(
        self, splits: dict, pending: list[ShardRange], budget: int, rank: int = 0, num_ranks: int = 1,
        promptless: bool = False,
    ) -> None:  # fmt: skip
        self.splits = splits
        self.pending = pending
        self.budget = budget
        self.rank = rank
        self.num_ranks = num_ranks
        self.promptless = promptless

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
        batches = []
        for positions in members:
            assert shard is not None
            split = self.splits[shard.split]
            rows = [shard.first + p for p in positions]
            batches.append([(split.input_ids(i), split.response_mask(i)) for i in rows])
        empty = passes - len(members)
        batches += [[] for _ in range(empty)]
        promptless = [pad([without_prompt(*sequence) for sequence in b]) for b in batches] if self.promptless else []
        return ShardWork(shard, [pad(batch) for batch in batches], members + [[] for _ in range(empty)], promptless)


def without_prompt(
    input_ids: Integer[np.ndarray, "time"], response_mask: Bool[np.ndarray, "time"]
) -> tuple[Integer[np.ndarray, "kept"], Bool[np.ndarray, "kept"]]:
    """A sequence of its responses alone: the first token, and before each response the end of its header, stay."""
    keep = response_mask.copy()
    for distance in range(1, HEADER + 1):
        keep[:-distance] |= response_mask[distance:]
    keep[:1] = True
    return input_ids[keep], response_mask[keep]


class ScoringData(LightningDataModule):
    """The shards that a store still lacks, as the Trainer's `predict` reads them.

    Args:
        data: The corpus and the store's folder.
        made_with: What scores depend on besides the corpus: adapter, dtype, precision.
    """

    def __init__(self, data: ForgettingData, made_with: dict[str, Any]) -> None:
        super().__init__()
        if data.store_folder is None:
            raise UserError("Scoring needs data.store, the folder to write.")
        self.data, self.folder = data, data.store_folder
        self._made_with = made_with
        self.identity: dict[str, Any] = {}
        self.columns: tuple[str, ...] = COLUMNS
        self.shards: list[ShardRange] = []
        self.pending: list[ShardRange] = []

    def prepare_data(self) -> None:
        """Make the corpus and its tokens where they do not exist yet (one process per node)."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Find what the store lacks, before any rank writes: all must come to the same list.

        Raises:
            UserError: The folder holds the scores of something else.
        """
        self.data.setup(stage)
        tokens = self.data.tokens
        self.identity = {**self.data.identity(), **self._made_with}
        self.shards = [s for name in SCORED for s in shard_ranges(name, len(tokens.split(name)), self.data.shard_size)]
        self.columns = (*COLUMNS, PROMPTLESS) if self.data.promptless or _has_promptless(self.folder) else COLUMNS
        self.pending = [s for s in self.shards if not has_shard(self.folder, s, self.identity, self.columns)]

    def predict_dataloader(self) -> DataLoader[ShardWork]:
        """This rank's shards."""
        assert self.trainer is not None, "the Trainer has not taken this data module"
        splits = {name: self.data.tokens.split(name) for name in SCORED}
        budget = micro_batch_budget(self.data.micro_batch_tokens, self.trainer)
        dataset = ScoringDataset(
            splits, self.pending, budget, self.trainer.global_rank, self.trainer.world_size, PROMPTLESS in self.columns
        )
        return DataLoader(dataset, batch_size=None, num_workers=self.data.num_workers)


def _has_promptless(folder: Path) -> bool:
    """Whether a complete store has the column already: it keeps it, whoever scores again."""
    return (folder / MANIFEST).is_file() and PROMPTLESS in ScoreStore.columns_in(folder)


@torch.no_grad()
def score_shard(model: LanguageModel, work: ShardWork) -> ShardScores | None:
    """Run both models over a shard, and the base over it without prompts where that is asked for.

    The Trainer runs it in inference mode, except where the model is sharded, which inference mode forbids.

    Returns:
        The columns, or None where there is no shard to score.
    """
    base, reference, promptless = [], [], []
    for batch in work.micro_batches:
        with model.adapter_off():
            base.append(model(batch))
        reference.append(model(batch))
    for batch in work.promptless:
        with model.adapter_off():
            promptless.append(model(batch))
    if work.shard is None:
        return None
    # Micro-batches are sorted by length; put the sequences back in corpus order.
    counts = [batch.response_mask.sum(1).tolist() for batch in work.micro_batches]
    size = work.shard.last - work.shard.first
    passes = dict(zip(COLUMNS, (base, reference), strict=True)) | ({PROMPTLESS: promptless} if promptless else {})
    columns = {name: [np.zeros(0, np.float32)] * size for name in passes}
    for column, pieces in zip(columns.values(), passes.values(), strict=True):
        for values, positions, lengths in zip(pieces, work.members, counts, strict=True):
            if positions:
                parts: tuple[Tensor, ...] = values.float().cpu().split(lengths)
                for position, part in zip(positions, parts, strict=True):
                    column[position] = part.numpy()
    num_targets = np.array([len(part) for part in columns[COLUMNS[0]]], dtype=np.int64)
    return ShardScores(work.shard, num_targets, {name: np.concatenate(parts) for name, parts in columns.items()})
