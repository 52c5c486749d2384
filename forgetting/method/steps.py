"""Optimizer steps: which sequences a step holds, how they are divided into micro-batches and distributed over ranks.

One item of the loader is one optimizer step. Every rank draws the same sequences from the run's seed, so each knows the
step's counts before any forward pass, and what the step computes does not depend on how it is divided.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from forgetting.method.masks import Masks
from forgetting.method.objectives import Objective
from forgetting.method.response_tokens import ResponseTokens, Step
from forgetting.method.store import StoredSplit
from forgetting.model.batch import MicroBatch, batch_by_tokens, pad
from forgetting.model.language_model import LanguageModel


@runtime_checkable
class Examples(Protocol):
    """Tokenized examples, as `corpus` gives them."""

    lengths: np.ndarray

    def __len__(self) -> int: ...

    def input_ids(self, i: int) -> np.ndarray:
        """Token ids of an example."""
        ...

    def response_mask(self, i: int) -> np.ndarray:
        """True at the tokens that are targets."""
        ...


@dataclass
class LabeledBatch:
    """A micro-batch and the labels of its response tokens, in the order in which the model returns their nll."""

    inputs: MicroBatch
    positive_mask: Bool[Tensor, " tokens"]
    negative_mask: Bool[Tensor, " tokens"]
    columns: dict[str, Float[Tensor, " tokens"]]
    """Stored columns that the objective asks for."""

    def tokens(
        self,
        nll: Float[Tensor, " tokens"],
        entropy: Float[Tensor, " tokens"] | None = None,
        nll_base: Float[Tensor, " tokens"] | None = None,
    ) -> ResponseTokens:
        """The response tokens with their nll, as an objective sees them; an `nll_base` given replaces a stored one."""
        columns = self.columns if nll_base is None else {**self.columns, "nll_base": nll_base}
        counts = self.inputs.response_mask.sum(1)
        example = torch.arange(len(counts), device=nll.device).repeat_interleave(counts, output_size=len(nll))
        return ResponseTokens(nll, self.positive_mask, self.negative_mask, example, columns, entropy)

    def under(self, model: LanguageModel, objective: Objective) -> ResponseTokens:
        """The response tokens under a model, with everything that an objective reads."""
        base = model.base_nll(self.inputs) if objective.computes_base else None
        if objective.needs_entropy:
            nll, entropy = model(self.inputs, entropy=True)
            return self.tokens(nll, entropy, base)
        return self.tokens(model(self.inputs), None, base)

    def share(self, objective: Objective, tokens: ResponseTokens, step: Step) -> Float[Tensor, ""]:
        """The micro-batch's share of the step's loss."""
        return objective(tokens, step)


@dataclass
class OptimizerStep:
    """A rank's part of an optimizer step, with the counts of the whole step."""

    number: int
    """Its place in the run, from 0. Whoever takes the step compares it with where the run stands."""
    micro_batches: list[LabeledBatch]
    num_positive: int
    num_negative: int
    num_tokens: int
    """Input tokens of the step, without padding."""


def distribute(lengths: Sequence[int] | np.ndarray, budget: int, num_ranks: int) -> list[list[list[int]]]:
    """Divide sequences into micro-batches by a token budget and distribute these over ranks, equally many to each.

    With several ranks the budget shrinks to a rank's share of the tokens, so that no rank is idle. Ranks that come
    short get empty micro-batches: sharded strategies need the same number of forward passes everywhere.

    Returns:
        For each rank its micro-batches, each a list of indices into `lengths`.
    """
    share = -(-int(np.sum(lengths)) // num_ranks)
    groups = batch_by_tokens(lengths, min(budget, max(share, 1)))
    groups.sort(key=lambda group: -len(group) * int(lengths[group[0]]))
    rounds = -(-len(groups) // num_ranks)
    groups += [[] for _ in range(rounds * num_ranks - len(groups))]
    # Back and forth over the ranks, from the largest: the sums come out nearly equal.
    ranks: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    for number in range(rounds):
        dealt = groups[number * num_ranks : (number + 1) * num_ranks]
        for rank, group in enumerate(dealt if number % 2 == 0 else reversed(dealt)):
            ranks[rank].append(group)
    return ranks


class StepDataset(Dataset[OptimizerStep]):
    """Builds a rank's part of a step from the indices of its sequences.

    Args:
        examples: Tokenized examples.
        masks: Gives an example's positive and negative mask.
        budget: Padded tokens of a micro-batch, at most.
        rank: This process.
        num_ranks: All of them.
        stored: Gives the stored columns that the objective asks for; None where it asks for none.
        columns: Their names.
    """

    def __init__(
        self,
        examples: Examples,
        masks: Masks,
        budget: int,
        rank: int = 0,
        num_ranks: int = 1,
        stored: StoredSplit | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        self.examples = examples
        self.masks = masks
        self.budget = budget
        self.rank = rank
        self.num_ranks = num_ranks
        self.stored, self.columns = stored, columns

    def __getitem__(self, step: tuple[int, Sequence[int]]) -> OptimizerStep:
        """Build a step from its number and its sequences, as `StepSampler` gives them."""
        number, indices = step
        masks = self.labels(indices)
        lengths, parts = self._parts(indices)
        return OptimizerStep(
            number=number,
            micro_batches=[self.part(indices, masks, places) for places in parts],
            num_positive=int(sum(positive.sum() for positive, _ in masks)),
            num_negative=int(sum(negative.sum() for _, negative in masks)),
            num_tokens=int(lengths.sum()),
        )

    def labels(self, indices: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Positive and negative mask of each sequence of a step."""
        return [self.masks(i) for i in indices]

    def part(
        self, indices: Sequence[int], masks: Sequence[tuple[np.ndarray, np.ndarray]], places: Sequence[int]
    ) -> LabeledBatch:
        """The micro-batch of the sequences at some places of a step."""
        return self.micro_batch([indices[k] for k in places], [masks[k] for k in places])

    def largest(self, indices: Sequence[int]) -> int:
        """Padded tokens of the largest micro-batch of a step."""
        lengths, parts = self._parts(indices)
        return max(len(part) * max((int(lengths[k]) for k in part), default=0) for part in parts)

    def _parts(self, indices: Sequence[int]) -> tuple[np.ndarray, list[list[int]]]:
        """Lengths of a step's sequences, and this rank's micro-batches as positions among them."""
        lengths = self.examples.lengths[np.asarray(indices)]
        return lengths, distribute(lengths, self.budget, self.num_ranks)[self.rank]

    def micro_batch(self, indices: Sequence[int], masks: Sequence[tuple[np.ndarray, np.ndarray]]) -> LabeledBatch:
        """Sequences and their labels as one padded batch; none at all give an empty one."""
        sequences = [(self.examples.input_ids(i), self.examples.response_mask(i)) for i in indices]
        empty = np.zeros(0, np.bool_)
        positive, negative = zip(*masks, strict=True) if masks else ((empty,), (empty,))
        tokens = [] if self.stored is None else [self.stored.example(i) for i in indices]
        nothing = np.zeros(0, np.float32)
        return LabeledBatch(
            pad(sequences),
            torch.from_numpy(np.concatenate(positive)),
            torch.from_numpy(np.concatenate(negative)),
            {name: torch.from_numpy(np.concatenate([nothing, *(t[name] for t in tokens)])) for name in self.columns},
        )


class StepSampler(Sampler[tuple[int, list[int]]]):
    """Draws the sequences of every optimizer step of an epoch; resumes where the run stands.

    The order is a permutation drawn from the run's seed and the epoch, the same on every rank, so a resumed run sees
    the sequences that it would have seen.

    Args:
        num_examples: Sequences in the corpus.
        batch_size: Sequences in a step; the last step of an epoch may hold fewer.
        seed: The run's seed; None keeps the order of the corpus.
        steps_done: Gives the number of optimizer steps done when an epoch's iterator is made. A loader with workers
            draws ahead, and its first iterator may be made before a checkpoint is restored: this must be where the run
            *will* stand. Each step carries its number, so that a wrong answer cannot go unnoticed.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int | None, steps_done: Callable[[], int]) -> None:
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.seed = seed
        self.steps_done = steps_done

    def __len__(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """The sequences of an epoch in the order in which they are taken."""
        if self.seed is None:
            return np.arange(self.num_examples)
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_examples)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        """The number of each step in the run, and its sequences."""
        epoch, done = divmod(self.steps_done(), len(self))
        order = self.order(epoch)
        for step in range(done, len(self)):
            yield epoch * len(self) + step, order[step * self.batch_size : (step + 1) * self.batch_size].tolist()
