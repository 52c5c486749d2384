"""Scoring with two models, end to end: `Trainer.score` into a store, against plain loops with full logits.

Numbers are compared token by token. Then the cost a token from 1,000 to 64,000 short examples.
"""

import argparse
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import loops
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from setting import (
    SHAPES,
    Seconds,
    Shape,
    adapted,
    alternate,
    data_module,
    device,
    machine,
    peak_flops,
    ratio,
    summary,
    write_backbone,
    write_source,
)

from forgetting.method.module import FineTuner
from forgetting.method.objectives import MeanNLL
from forgetting.method.store import ScoreStore
from forgetting.model.lora import Lora
from forgetting.runs.trainer import Trainer


class Start(Callback):
    """When scoring starts: the model is loaded, nothing is computed."""

    def on_predict_start(self, *_: Any) -> None:
        self.at = time.perf_counter(), time.process_time()


def score(folder: Path, num: int, budget: int | None, max_length: int = 2048) -> Seconds:
    """Score a corpus anew, from the loaded model to the closed store."""
    shutil.rmtree(folder / "scores", ignore_errors=True)
    start = Start()
    trainer = Trainer(
        accelerator=device().type, devices=1, precision="32-true" if device().type == "cpu" else "bf16-mixed",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=folder, callbacks=[start],
    )  # fmt: skip
    dtype = "float32" if device().type == "cpu" else "bfloat16"
    module = FineTuner(
        str(folder / "backbone"), MeanNLL(), dtype=dtype, adapter=folder / "adapter", lora=Lora(dropout=0.0)
    )
    data = data_module(folder / "backbone", folder / "source.jsonl", num, folder / "corpora", budget, max_length)
    data.store_folder = folder / "scores"
    trainer.score(module, datamodule=data)
    wall, cpu = start.at
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def versus_loops(shape: Shape, num: int, rounds: int, budgets: list[int]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_backbone(folder / "backbone", shape)
        model = adapted(folder / "backbone").to(device())
        model.model.save_pretrained(folder / "adapter")
        if device().type == "cuda":
            model = model.bfloat16()
        write_source(folder / "source.jsonl", num + 8, shape.vocab)
        data = data_module(folder / "backbone", folder / "source.jsonl", num, folder / "corpora")
        data.setup("fit")
        split = data.tokens.split("train")
        tokens, targets = int(split.lengths.sum()), int(split.num_targets.sum())
        print(f"{num} examples, {tokens:,} tokens, {targets:,} of them scored by two models")
        found: dict[str, np.ndarray] = {}

        def loop(name: str, batch_size: int) -> None:
            found[name] = loops.score(model, split, batch_size)

        contenders: dict[str, Any] = {
            "ours": lambda: score(folder, num, None),
            **{f"ours, budget {b}": lambda b=b: score(folder, num, b) for b in budgets},
            "loop, batches of 6": lambda: loop("batches", 6),
            "loop, one at a time": lambda: loop("single", 1),
        }
        seconds = alternate(contenders, rounds)
        summary(seconds, tokens, shape.scoring_flops(tokens, targets), peak_flops())
        for name in seconds:
            if name.startswith("loop"):
                print(f"ours / {name}: {ratio(seconds[name], seconds['ours'])}")
        store = ScoreStore.open(folder / "scores").split("train")
        ours = np.stack([store.nll_base, store.nll_reference])
        for name, theirs in found.items():
            print(f"largest difference from {name}: {np.abs(ours - theirs).max():.1e} nats")


def linear_cost(sizes: list[int]) -> None:
    """Short examples and a small model, so that what is not the model's arithmetic would show."""
    shape = Shape(hidden=64, layers=2, vocab=2000, intermediate=176, heads=2, kv_heads=2)
    print("cost of scoring by size of the corpus (hidden 64, vocabulary 2,000)")
    for num in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_backbone(folder / "backbone", shape)
            adapted(folder / "backbone").model.save_pretrained(folder / "adapter")
            write_source(folder / "source.jsonl", num + num // 10, shape.vocab, (1.8, 0.5, 20), (1.8, 0.5, 20))
            data = data_module(folder / "backbone", folder / "source.jsonl", num, folder / "corpora")
            data.setup("fit")
            tokens = int(data.tokens.split("train").lengths.sum())
            taken = score(folder, num, None)
            print(f"  {num:>7,} examples {tokens:>9,} tokens {taken.wall:>7.1f} s, CPU {taken.cpu:>6.1f} s = "
                  f"{1e6 * taken.cpu / tokens:6.1f} µs a token", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="the large ones are for a GPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--examples", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--micro-batch-tokens", type=int, nargs="*", default=[], help="also try these for ours")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000, 4_000, 16_000, 64_000])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    print(f"{machine()}, {options.threads} thread(s)")
    if options.examples:
        versus_loops(SHAPES[options.shape], options.examples, options.rounds, options.micro_batch_tokens)
    if options.sizes:
        linear_cost(options.sizes)


if __name__ == "__main__":
    main()
