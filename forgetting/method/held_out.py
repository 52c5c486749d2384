"""Held-out nll: micro-batches of D_val, labeled where a store has scored it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from forgetting.method.steps import Examples, LabeledBatch, StepDataset


@dataclass
class HeldOutBatch:
    """A micro-batch of D_val, with the counts of the whole of it: of a side without tokens there is no mean."""

    batch: LabeledBatch
    num_positive: int
    num_negative: int


class HeldOutDataset(Dataset[HeldOutBatch]):
    """A rank's micro-batches of D_val.

    Args:
        examples: Tokenized D_val.
        masks: Positive and negative mask of each example.
        groups: Examples of each micro-batch; an empty group gives an empty batch.
        is_scored: Whether the masks come from scores: else D_val has no sides to report.
    """

    def __init__(
        self,
        examples: Examples,
        masks: Sequence[tuple[np.ndarray, np.ndarray]],
        groups: list[list[int]],
        is_scored: bool,
    ) -> None:
        self.groups, self.masks = groups, masks
        self.steps = StepDataset(examples, masks.__getitem__, budget=1)
        counted = masks if is_scored else ()
        self.num_positive, self.num_negative = (sum(int(pair[side].sum()) for pair in counted) for side in (0, 1))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> HeldOutBatch:
        group = self.groups[number]
        batch = self.steps.micro_batch(group, [self.masks[i] for i in group])
        return HeldOutBatch(batch, self.num_positive, self.num_negative)
