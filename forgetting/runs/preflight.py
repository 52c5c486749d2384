"""What a run will do and take, said before its first step."""

import time
from dataclasses import dataclass
from itertools import islice
from typing import Any

import lightning
import torch
from torch import Tensor

from forgetting.method.data import ForgettingData
from forgetting.method.module import FineTuner
from forgetting.method.objectives import Objective
from forgetting.method.steps import OptimizerStep
from forgetting.model.batch import MicroBatch
from forgetting.model.language_model import LanguageModel

LOOK_AHEAD = 1000
"""Steps whose micro-batches are looked at to tell what memory the largest will take."""


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
    factor = STEP_TO_FORWARD + module.activation_checkpointing + module.objective.computes_base
    trained = list(module.trainable().values())
    return Estimate(
        seconds * factor * padded / largest.input_ids.numel(),
        sum(p.nbytes for p in module.language_model.parameters()),
        3 * sum(p.nbytes for p in trained),
        None if module.activation_checkpointing else round(scale * held),
    )


def _held_by_a_forward_pass(trainer: lightning.Trainer, module: FineTuner, batch: MicroBatch) -> int:
    """Bytes that a forward pass of a run keeps for the backward pass."""
    moved = MicroBatch(batch.input_ids.to(module.device), batch.response_mask.to(module.device))
    with trainer.strategy.precision_plugin.forward_context():
        held = held_for_backward(module.language_model, moved)
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
    return held


def held_for_backward(model: LanguageModel, batch: MicroBatch) -> int:
    """Bytes that a forward pass keeps for the backward pass, the parameters left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, it would hold its own graph: a cycle that nothing frees

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nll = model(batch)
    del nll
    return sum(kept.values())


def _name(objective: Objective) -> str:
    """Its class, and the terms that it has in place of the nll."""
    terms = objective.extra_repr()
    return type(objective).__name__ + (f"({terms})" if terms else "")


def preflight(trainer: lightning.Trainer, module: FineTuner, data: ForgettingData) -> str:
    """What is about to happen, in one paragraph."""
    trained = sum(p.numel() for p in module.trainable().values())
    total = sum(p.numel() for p in module.language_model.parameters())
    lines = [
        f"{_name(module.objective)} on {module.backbone}: {trained:,} of {total:,} parameters are trained, "
        f"{module.total_steps:,} optimizer steps of {data.batch_size} sequences over "
        f"{len(data.tokens.split(data.train_split)):,} examples, {trainer.world_size} process(es), {trainer.precision}"
    ]
    if data.selected is not None:
        ranked = "sequences" if data.selection.granularity == "sequence" else "response tokens"
        score = type(data.score).__name__
        counts = f"{data.selected.num_positive:,} {ranked} positive, {data.selected.num_negative:,} negative"
        lines.append(f"{counts}, by {score}")
        if not data.selected.num_negative:
            lines.append("Nothing is negative: the negative term is 0 at every step, whatever λ.")
    loader: Any = data.train_dataloader()
    steps = list(islice(loader.sampler, LOOK_AHEAD))
    if steps:  # none are left where only the adapter is still to be written
        most_tokens = max(loader.dataset.largest(indices) for _, indices in steps)
        expected = estimate(trainer, module, loader.dataset[steps[0]], most_tokens)
        lines += [] if expected is None else [str(expected)]
    if module.unmatched_targets:
        lines.append(f"LoRA targets that match no layer of this backbone: {', '.join(module.unmatched_targets)}")
    return "\n".join(lines)
