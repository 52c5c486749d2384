"""What fits on a GPU, and how long it takes: the tables of docs/hardware.md. No GPU is needed: all of it is estimated.

What a forward pass keeps per token is counted as `fit` counts it before its first step (runs/preflight.py), here on one
and on two layers of the true width on the CPU, and scaled to all layers. Minutes are those that a plan of
experiments/Snakefile adds up (studies/estimate.py).
"""

import argparse
import warnings
from dataclasses import dataclass, replace

import torch
from setting import SHAPES, Shape
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from forgetting.model.batch import MicroBatch
from forgetting.model.language_model import LanguageModel
from forgetting.model.lora import Lora, add_lora
from forgetting.runs.preflight import held_for_backward
from forgetting.studies.estimate import FULL_MINUTES, stage_minutes

MODELS = {"1b": "LLaMA-3.2-1B", "3b": "LLaMA-3.2-3B", "8b": "LLaMA-3.1-8B", "13b": "LLaMA-2-13B"}
GPUS = (24, 48, 80)
FREE = 0.1
"""Fraction of a GPU's memory left to CUDA, the head's tiles and the allocator."""

BUDGETS = (2048, 4096, 8192, 16_384, 32_768)
"""Values of data.micro_batch_tokens; a sequence of the paper's max_length needs the least of them."""

TOKENS = (8, 16)
"""Lengths of which the difference gives what one token keeps."""

STAGES = ("reference", "score", "full", "ignoring", "forgetting")


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step in bfloat16 with the paper's LoRA.

    Attributes:
        weights: Frozen weights.
        adapter: The adapter, its gradient and AdamW's two moments, in float32.
        kept: Per token, kept for the backward pass.
        kept_checkpointing: The same with `model.activation_checkpointing`: each layer's input, and one layer's rest.
    """

    weights: int
    adapter: int
    kept: float
    kept_checkpointing: float

    def total(self, tokens: int, checkpointing: bool) -> float:
        """Bytes with a micro-batch of so many tokens, all of them response tokens."""
        return self.weights + self.adapter + tokens * (self.kept_checkpointing if checkpointing else self.kept)

    def largest(self, gigabytes: float, checkpointing: bool) -> int | None:
        """The largest budget that fits; None where none does."""
        room = (1 - FREE) * gigabytes * 1e9
        return max((tokens for tokens in BUDGETS if self.total(tokens, checkpointing) <= room), default=None)


def counts(shape: Shape, layers: int) -> tuple[int, int, float]:
    """Frozen and trained parameters of some layers, and the bytes that a token keeps; with hardly any vocabulary."""
    configuration = replace(shape, layers=layers, vocab=256).configuration()
    with no_init_weights():
        backbone = AutoModelForCausalLM.from_config(configuration, dtype=torch.bfloat16)
    for parameter in backbone.parameters():
        parameter.detach().zero_()  # what is kept does not depend on the values, and drawing them takes minutes
    model = LanguageModel(add_lora(backbone, Lora(), seed=0))
    held = []
    for tokens in TOKENS:
        ids = torch.randint(256, (1, tokens))
        with torch.autocast("cpu", torch.bfloat16):
            held.append(held_for_backward(model, MicroBatch(ids, torch.ones_like(ids, dtype=torch.bool))))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return sum(p.numel() for p in model.parameters()) - trained, trained, (held[1] - held[0]) / (TOKENS[1] - TOKENS[0])


def memory(shape: Shape) -> Memory:
    """Memory of a model, from one and from two of its layers."""
    one, two = counts(shape, 1), counts(shape, 2)
    frozen, trained, kept = (b - a for a, b in zip(one, two, strict=True))
    embeddings = shape.vocab * shape.hidden * (1 if shape.tied else 2)
    rest = one[2] - kept
    return Memory(
        weights=2 * (shape.layers * frozen + embeddings), adapter=16 * shape.layers * trained,
        kept=shape.layers * kept + rest, kept_checkpointing=shape.layers * 2 * shape.hidden + kept + rest,
    )  # fmt: skip


def memory_row(name: str, memory: Memory) -> str:
    """A row of the first table: GB, and GB per 1,000 tokens."""
    values = memory.weights / 1e9, memory.adapter / 1e9, memory.kept / 1e6, memory.kept_checkpointing / 1e6
    return f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |"


def fit_row(name: str, memory: Memory) -> str:
    """A row of the second table: the largest micro-batch without and with activation checkpointing."""
    cells = []
    for gigabytes in GPUS:
        sizes = [memory.largest(gigabytes, checkpointing) for checkpointing in (False, True)]
        cells.append("; ".join("–" if size is None else f"{size:,}" for size in sizes))
    return f"| {name} | {' | '.join(cells)} |"


def time_row(backbone: str) -> str:
    """A row of the third table: minutes of each stage on four L40S."""
    return f"| `{backbone}` | " + " | ".join(f"{stage_minutes(backbone, stage):.0f}" for stage in STAGES) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    memories = {MODELS[name]: memory(SHAPES[name]) for name in options.models}
    for row in (memory_row, fit_row):
        print("\n".join(row(name, each) for name, each in memories.items()), end="\n\n")
    print("\n".join(time_row(backbone) for backbone in FULL_MINUTES))


if __name__ == "__main__":
    main()
