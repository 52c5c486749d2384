"""Expected time and memory of an optimizer step, by a forward pass before training."""

import time
from dataclasses import dataclass

import lightning
import torch
from torch import Tensor

from forgetting.method.module import FineTuner
from forgetting.method.steps import OptimizerStep
from forgetting.model.batch import MicroBatch

STEP_TO_FORWARD = 2.1
"""A LoRA step in forward passes: frozen weights need no gradient, so backward is about a second forward pass."""


@dataclass(frozen=True)
class Estimate:
    """Expected seconds of a step and bytes at its largest; None where they cannot be measured beforehand."""

    seconds: float
    weights: int
    training: int
    """The adapter's gradient and AdamW's two moments."""
    activations: int | None

    def __str__(self) -> str:
        parts = {"weights": self.weights, "adapter's gradient and AdamW": self.training}
        if self.activations is None:
            memory = "without activations, which depend on what is computed again"
        else:
            parts["activations"] = self.activations
            memory = "in all"
        listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
        return f"about {self.seconds:.2g} s per step and {sum(parts.values()) / 1e9:.2f} GB {memory} ({listed})"


def estimate(trainer: lightning.Trainer, module: FineTuner, step: OptimizerStep, most_tokens: int) -> Estimate | None:
    """Run the largest micro-batch of a step forward, twice, and look at the second time.

    Args:
        trainer: Set up: the model is where it will train.
        module: With a loaded model.
        step: A step such as those to come, on the CPU.
        most_tokens: Padded tokens of the largest micro-batch to come.

    Returns:
        None for a sharded model, whose ranks would have to do this together.
    """
    if module.device_mesh is not None:
        return None
    batches = [batch.inputs for batch in step.micro_batches]
    largest = max(batches, key=lambda batch: batch.input_ids.numel())
    _held_by_a_forward_pass(trainer, module, largest)  # the first pass also chooses kernels and fills caches
    start = time.perf_counter()
    held = _held_by_a_forward_pass(trainer, module, largest)
    seconds = time.perf_counter() - start
    scale = max(1.0, most_tokens / largest.input_ids.numel())
    padded = sum(batch.input_ids.numel() for batch in batches)
    factor = STEP_TO_FORWARD + (1 if module.activation_checkpointing else 0)
    trained = list(module.trainable().values())
    return Estimate(
        seconds * factor * padded / largest.input_ids.numel(),
        sum(p.nbytes for p in module.language_model.parameters()),
        3 * sum(p.nbytes for p in trained),
        None if module.activation_checkpointing else round(scale * held),
    )


def _held_by_a_forward_pass(trainer: lightning.Trainer, module: FineTuner, batch: MicroBatch) -> int:
    """Bytes that a forward pass keeps for the backward pass, the parameters left out."""
    weights = {p.untyped_storage().data_ptr() for p in module.language_model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    moved = MicroBatch(batch.input_ids.to(module.device), batch.response_mask.to(module.device))
    with (
        trainer.strategy.precision_plugin.forward_context(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        nll = module.language_model(moved)
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
    del nll
    return sum(kept.values())
