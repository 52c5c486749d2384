"""Time and memory from nothing to the first optimiser step, by size of the corpus; each start in a new process.

Corpus, tokens and scores are there already, as in every run but the first. A share of ρ is taken from the store.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from setting import Shape, adapted, data_module, machine, private_memory, resident, write_backbone, write_source

from forgetting.method.module import FineTuner
from forgetting.method.objectives import Forgetting
from forgetting.method.selection import Selection
from forgetting.method.store import close_store, shard_ranges, write_shard
from forgetting.model.lora import Lora
from forgetting.runs.trainer import Trainer

SMALL = Shape(hidden=64, layers=2, vocab=2000, intermediate=176, heads=2, kv_heads=2)


def prepare(folder: Path, num: int) -> None:
    """Corpus, tokens and a store of random scores."""
    write_backbone(folder / "backbone", SMALL)
    adapted(folder / "backbone").model.save_pretrained(folder / "adapter")
    write_source(folder / "source.jsonl", num + num // 10, SMALL.vocab, (2.5, 0.5, 60), (3.0, 0.7, 150))
    data = data_module(folder / "backbone", folder / "source.jsonl", num, folder / "corpora")
    data.setup("fit")
    counts, generator = data.tokens.split("train").num_targets, np.random.default_rng(0)
    ranges = shard_ranges("train", num, data.shard_size)
    identity = {**data.identity(), "adapter": None}
    for shard in ranges:
        part = counts[shard.first : shard.last]
        base, reference = generator.exponential(2, (2, int(part.sum()))).astype(np.float32)
        write_shard(folder / "scores", shard, identity, part, base, reference)
    close_store(folder / "scores", identity, ranges, {})


class FirstStep(Callback):
    """Notes when the first optimiser step is done."""

    def __init__(self, begun: float) -> None:
        self.begun, self.found = begun, {}

    def on_train_start(self, *_: Any) -> None:
        self.found["to training"] = time.perf_counter() - self.begun

    def on_train_batch_end(self, *_: Any) -> None:
        self.found["to first step done"] = time.perf_counter() - self.begun


def measure(folder: Path, num: int) -> dict[str, float]:
    """Seconds of each part and growth of the process's own memory, libraries already imported."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    begun, cpu = time.perf_counter(), time.process_time()
    first = FirstStep(begun)
    with private_memory() as peak:
        data = data_module(folder / "backbone", folder / "source.jsonl", num, folder / "corpora")
        data.selection, data.store_folder, data.shuffle = Selection(0.7), folder / "scores", True
        data.prepare_data()
        opened = time.perf_counter() - begun
        data.setup("fit")
        cut = time.perf_counter() - begun - opened
        module = FineTuner(
            str(folder / "backbone"), Forgetting(), dtype="float32", lora=Lora(dropout=0.0), adapter=folder / "adapter"
        )
        trainer = Trainer(
            accelerator="cpu", devices=1, precision="32-true", max_steps=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, callbacks=[first],
            default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    return {"open corpus": opened, "store and cut": cut, **first.found, "CPU": time.process_time() - cpu,
            "own memory, MB": peak[0] / 1e6, "resident, MB": resident("VmHWM") / 1e6}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[3_000, 300_000])
    parser.add_argument("--profile", action="store_true", help="print what takes the time")
    parser.add_argument("--one", nargs=2, help="measure one start, from a folder with so many examples")
    options = parser.parse_args()
    if options.one:
        folder, num = Path(options.one[0]), int(options.one[1])
        if options.profile:
            import cProfile

            cProfile.runctx("measure(folder, num)", globals(), locals(), sort="cumtime")
        else:
            print(json.dumps(measure(folder, num)))
        return
    print(machine())
    for num in options.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            begun = time.perf_counter()
            prepare(Path(temporary), num)
            print(f"{num:,} examples; made in {time.perf_counter() - begun:.0f} s")
            for start in ("first", "second"):  # the first start finds the cut, the second reads it
                command = [sys.executable, __file__, "--one", temporary, str(num)]
                if options.profile:
                    subprocess.run([*command, "--profile"], check=True)
                    continue
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found = json.loads(output.splitlines()[-1])
                print(f"  {start}: " + ", ".join(f"{name} {value:,.2f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
