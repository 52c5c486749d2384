"""What a step computes does not depend on how it is divided; the order depends on the run's seed alone."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_configuration
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from forgetting.method.objectives import Forgetting, MeanNLL, Objective
from forgetting.method.online import OnlineForgetting, OnlineIgnoring
from forgetting.method.response_tokens import Step
from forgetting.method.steps import StepDataset, StepSampler, distribute
from forgetting.method.terms import SequenceNPO
from forgetting.model.language_model import LanguageModel
from forgetting.model.lora import Lora, add_lora


class Made:
    """Examples of unequal length; the first token of each is never a target."""

    def __init__(self, lengths: list[int], seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.lengths = np.array(lengths, dtype=np.int32)
        self._ids = [generator.integers(2, 258, n).astype(np.int32) for n in lengths]
        self._masks = [generator.random(n) < 0.6 for n in lengths]
        for mask in self._masks:
            mask[0] = False
            mask[-1] = True

    def __len__(self) -> int:
        return len(self.lengths)

    def input_ids(self, i: int) -> np.ndarray:
        return self._ids[i]

    def response_mask(self, i: int) -> np.ndarray:
        return self._masks[i]


class WithoutTargets(Made):
    """The longest example has no target left, so that a micro-batch of it alone has none."""

    def response_mask(self, i: int) -> np.ndarray:
        mask = super().response_mask(i)
        return mask & (len(mask) < self.lengths.max())


def model(family: str = "llama", dtype: torch.dtype = torch.float32) -> LanguageModel:
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(small_configuration(family)).to(dtype).requires_grad_(False)
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    peft_model = add_lora(backbone, Lora(rank=4, dropout=0.0), seed=0)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return LanguageModel(peft_model)


def random_masks(examples: Made, share: float):
    def masks(i: int) -> tuple[np.ndarray, np.ndarray]:
        count = int(examples.response_mask(i).sum())
        positive = np.random.default_rng([7, i]).random(count) < share
        return positive, ~positive

    return masks


def loss_and_gradient(network, dataset: StepDataset, indices: list[int], objective: Objective, num_ranks: int = 1):
    """One optimizer step, as `FineTuner.training_step` takes it; ranks one after another."""
    network.zero_grad()
    total = torch.zeros(())
    for rank in range(num_ranks):
        dataset.rank, dataset.num_ranks = rank, num_ranks
        step = dataset[0, indices]
        for batch in step.micro_batches:
            counts = Step(8, 10, step.num_positive, step.num_negative)
            part = objective(objective.select(batch.under(network, objective), counts), counts)
            part.backward()
            total += part.detach()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.requires_grad])
    return total, gradient


def one_run(kind: type[OnlineIgnoring], **options: Any) -> OnlineIgnoring:
    """Half of the tokens by a threshold of 0, since half of the scores seen were below it."""
    objective = kind(0.5, warmup_fraction=0.0, **options)
    objective.counts[[0, -1]] = 1.0
    return objective


def by_sequence() -> Forgetting:
    """One weight for a response, whose base nll is computed here where there is no store."""
    objective = Forgetting(negative=SequenceNPO())
    objective.computes_base = True
    return objective


OBJECTIVES = [
    MeanNLL(),
    Forgetting(),
    by_sequence(),
    one_run(OnlineIgnoring),
    one_run(OnlineForgetting),
    one_run(OnlineForgetting, scope="example"),
]
CASES = {
    "unequal lengths": (Made([3, 60, 7, 22, 31, 5, 5, 48, 12, 9, 2, 33] * 2), 0.7),
    "no negative token": (Made([9, 14, 30, 4, 11, 8]), 1.0),
    "no positive token": (Made([9, 14, 30, 4, 11, 8]), 0.0),
    "a micro-batch without targets": (WithoutTargets([64, 9, 10, 12, 8, 5]), 0.7),
    "a short last step": (Made([9, 14]), 0.5),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_loss_and_gradient_are_the_same_for_any_division_and_number_of_ranks(case, objective):
    examples, share = CASES[case]
    network, everything = model(), list(range(len(examples)))
    share = 1.0 if objective.selects else share
    dataset = StepDataset(examples, random_masks(examples, share), budget=10**6)
    loss, gradient = loss_and_gradient(network, dataset, everything, objective)
    assert torch.isfinite(loss)
    cuts = [(1, 1), (70, 1), (len(examples) * 22, 1), (10**6, 2), (70, 2), (1, 3)]
    for budget, num_ranks in cuts:
        dataset.budget = budget
        other, other_gradient = loss_and_gradient(network, dataset, everything, objective, num_ranks)
        torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-6)
        assert (other_gradient - gradient).norm() <= 1e-5 * gradient.norm().clamp(min=1e-6)


def test_the_control_normalizing_inside_micro_batches_is_seen():
    examples, share = CASES["unequal lengths"]
    network = model()
    dataset = StepDataset(examples, random_masks(examples, share), budget=70)
    step = dataset[0, list(range(len(examples)))]
    _, gradient = loss_and_gradient(network, dataset, list(range(len(examples))), MeanNLL())
    network.zero_grad()
    for batch in step.micro_batches:
        inside = MeanNLL()(batch.tokens(network(batch.inputs)), Step(8, 10, int(batch.positive_mask.sum()), 0))
        (inside / len(step.micro_batches)).backward()
    other = torch.cat([p.grad.flatten() for p in network.parameters() if p.requires_grad])
    assert (other - gradient).norm() > 1e-2 * gradient.norm()


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 70, 10**6])
def test_the_largest_micro_batch_is_known_without_building_it(budget, num_ranks):
    examples = Made([3, 60, 7, 22, 31, 5])
    for rank in range(num_ranks):
        dataset = StepDataset(examples, random_masks(examples, 0.5), budget, rank, num_ranks)
        built = [batch.inputs.input_ids.numel() for batch in dataset[0, [5, 1, 2, 0]].micro_batches]
        assert max(dataset.largest([5, 1, 2, 0]), 1) == max(built)  # an empty batch has one token of padding


@pytest.mark.parametrize("family", ["llama", "llama-untied", "qwen2", "gpt-neo"])
def test_all_positive_equals_hugging_faces_token_mean(family):
    examples = Made([3, 60, 7, 22, 31, 5])
    network = model(family, torch.float64)
    dataset = StepDataset(examples, random_masks(examples, 1.0), budget=64)
    step = dataset[0, list(range(6))]
    assert len(step.micro_batches) > 1
    with torch.no_grad():
        parts = [
            MeanNLL()(b.tokens(network(b.inputs)), Step(0, 1, step.num_positive, step.num_negative))
            for b in step.micro_batches
        ]
    rows = [(torch.tensor(examples.input_ids(i)).long(), torch.tensor(examples.response_mask(i))) for i in range(6)]
    width = max(len(ids) for ids, _ in rows)
    input_ids, labels = torch.zeros(6, width, dtype=torch.long), torch.full((6, width), -100)
    for row, (ids, mask) in enumerate(rows):
        input_ids[row, : len(ids)] = ids
        labels[row, : len(ids)][mask] = ids[mask]
    theirs = network.causal_lm(input_ids=input_ids, labels=labels).loss
    assert float(sum(parts)) == pytest.approx(theirs.item(), rel=1e-6)


def test_bfloat16_adapters_would_lose_what_adamw_does():
    """Why adapters are float32: a step of the learning rate is below bfloat16's spacing."""
    backbone = AutoModelForCausalLM.from_config(small_configuration("llama")).bfloat16().requires_grad_(False)
    peft_model = add_lora(backbone, Lora(rank=4), seed=0)
    trained = [p for p in peft_model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert {p.dtype for p in peft_model.parameters() if not p.requires_grad} == {torch.bfloat16}
    for dtype, moves in ((torch.float32, True), (torch.bfloat16, False)):
        weight = torch.nn.Parameter(torch.full((8,), 0.5, dtype=dtype))
        optimizer = torch.optim.AdamW([weight], lr=1e-4, weight_decay=0.0)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert bool((weight != 0.5).all()) is moves


@settings(deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=40), st.integers(1, 400), st.integers(1, 9))
def test_every_sequence_is_dealt_out_once_and_ranks_keep_step(lengths, budget, num_ranks):
    ranks = distribute(lengths, budget, num_ranks)
    dealt = sorted(i for rank in ranks for group in rank for i in group)
    assert dealt == list(range(len(lengths)))
    assert len({len(rank) for rank in ranks}) == 1
    for group in (g for rank in ranks for g in rank if len(g) > 1):
        assert len(group) * max(lengths[i] for i in group) <= budget


def test_the_order_follows_the_seed_and_a_resumed_run_goes_on():
    def steps(seed, done):
        numbers, sequences = zip(*StepSampler(10, 4, seed, lambda: done), strict=True)
        assert list(numbers) == list(range(done, 3 * (done // 3 + 1)))
        return list(sequences)

    first = steps(0, 0)
    assert [len(s) for s in first] == [4, 4, 2]
    assert sorted(i for s in first for i in s) == list(range(10))
    assert steps(0, 0) == first != steps(1, 0)
    assert steps(0, 2) == first[2:]
    assert steps(0, 3) != first  # the second epoch has an order of its own
    assert sorted(i for s in steps(0, 3) for i in s) == list(range(10))
    assert steps(None, 0) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
