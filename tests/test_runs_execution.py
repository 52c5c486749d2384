"""Settings that say how a step is computed change nothing in what it computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from forgetting.method.module import FineTuner
from forgetting.method.objectives import MeanNLL, ResponseTokens, Step
from forgetting.method.steps import LabeledBatch, OptimizerStep
from forgetting.model.batch import MicroBatch, pad
from forgetting.model.lora import Lora
from forgetting.runs.preflight import estimate
from forgetting.runs.trainer import Trainer


def batches() -> list[MicroBatch]:
    generator = np.random.default_rng(0)
    shapes = [(20, 9, 14), (33,), (7, 7)]
    return [pad([(generator.integers(2, 258, n).astype(np.int32), np.arange(n) > n // 3) for n in s]) for s in shapes]


def nll_and_gradient(backbone: Path, **options: bool) -> tuple[torch.Tensor, torch.Tensor]:
    module = FineTuner(str(backbone), MeanNLL(), dtype="float32", lora=Lora(rank=4, dropout=0.0), **options)
    module.configure_model()
    module.train()
    with torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in module.trainable().items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    nll = torch.cat([module.language_model(batch) for batch in batches()])
    nll.square().mean().backward()
    gradients = [p.grad for p in module.trainable().values()]
    assert all(gradient is not None for gradient in gradients)
    return nll.detach(), torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def counted_layer_calls(backbone: Path, **options: bool) -> int:
    """How often the first layer runs in a forward and backward pass: twice where it is computed again."""
    module = FineTuner(str(backbone), MeanNLL(), dtype="float32", lora=Lora(rank=4, dropout=0.0), **options)
    module.configure_model()
    module.train()
    calls = []
    norm = next(m for n, m in module.named_modules() if n.endswith("layers.0.input_layernorm"))
    norm.register_forward_hook(lambda *_: calls.append(1))
    module.language_model(batches()[0]).mean().backward()
    return len(calls)


def test_activation_checkpointing_changes_no_number_and_is_on(tiny_llama):
    plain, kept = nll_and_gradient(tiny_llama), nll_and_gradient(tiny_llama, activation_checkpointing=True)
    for a, b in zip(plain, kept, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert counted_layer_calls(tiny_llama) == 1
    assert counted_layer_calls(tiny_llama, activation_checkpointing=True) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_decoder_computes_the_same(tiny_llama):
    plain, compiled = nll_and_gradient(tiny_llama), nll_and_gradient(tiny_llama, compile=True)
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_estimate_counts_what_is_held_and_what_is_trained(tiny_llama):
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    expected = {}
    for rank, size in ((4, 16), (4, 32), (8, 16)):
        module = FineTuner(str(tiny_llama), MeanNLL(), dtype="float32", lora=Lora(rank=rank, dropout=0.0))
        module.configure_model()
        inputs = pad([(np.arange(size, dtype=np.int32) + 2, np.arange(size) > 4)] * 3)
        mask = torch.ones(inputs.num_targets, dtype=torch.bool)
        step = OptimizerStep(0, [LabeledBatch(inputs, mask, ~mask, {})], inputs.num_targets, 0, 3 * size)
        expected[rank, size] = estimate(trainer, module, step, inputs.input_ids.numel())
        trained = sum(p.numel() for p in module.trainable().values())
        assert expected[rank, size].training == 3 * 4 * trained
        assert module.language_model.training is True
    narrow, twice_the_tokens, twice_the_rank = (e.activations for e in expected.values())
    assert twice_the_tokens == pytest.approx(2 * narrow, rel=0.1)
    assert narrow < twice_the_rank < 2 * narrow
    assert "GB in all" in str(expected[4, 16])
    module = FineTuner(str(tiny_llama), MeanNLL(), dtype="float32", activation_checkpointing=True)
    module.configure_model()
    assert "without activations" in str(estimate(trainer, module, step, 16))


class SeenEntropy(MeanNLL):
    """MeanNLL that keeps the tokens it was given."""

    def __init__(self, needs_entropy: bool) -> None:
        super().__init__()
        self.needs_entropy = needs_entropy
        self.seen: list[ResponseTokens] = []

    def forward(self, tokens: ResponseTokens, step: Step) -> torch.Tensor:
        self.seen.append(tokens)
        return super().forward(tokens, step)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:You defined a `validation_step`")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_objective_gets_the_entropy_if_it_needs_it_and_training_is_the_same(tiny_llama, checkpointing):
    inputs = [*batches(), pad([])]  # a rank may come short
    masks = [torch.ones(batch.num_targets, dtype=torch.bool) for batch in inputs]
    labeled = [LabeledBatch(batch, mask, ~mask, {}) for batch, mask in zip(inputs, masks, strict=True)]
    step = OptimizerStep(0, labeled, sum(len(mask) for mask in masks), 0, 90)
    trained, seen = [], []
    for needs_entropy in (False, True):
        objective = SeenEntropy(needs_entropy)
        module = FineTuner(
            str(tiny_llama), objective, dtype="float32", lora=Lora(rank=4), activation_checkpointing=checkpointing
        )
        trainer = Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, max_steps=1,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, DataLoader([step], batch_size=None))
        trained.append(torch.cat([p.detach().flatten() for p in module.trainable().values()]))
        seen.append(objective.seen)
    assert torch.equal(*trained)
    for without, tokens in zip(*seen, strict=True):
        assert without.entropy is None
        assert torch.equal(without.nll, tokens.nll)
        assert tokens.entropy is not None
        assert tokens.entropy.shape == tokens.nll.shape
        assert not tokens.entropy.requires_grad
        # Of 258 tokens, by a model that knows little.
        assert ((tokens.entropy > 1) & (tokens.entropy <= np.log(258) + 1e-5)).all()
