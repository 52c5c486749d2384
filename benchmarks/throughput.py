"""Fine-tuning end to end: this project's Trainer against TRL's SFTTrainer at its best setting, taking turns in one run.

The same model, tokens, order, adapter, optimiser and precision for both; losses of every step are compared.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loops
import torch
from datasets import Dataset
from lightning.pytorch.callbacks import Callback
from setting import (
    SHAPES,
    Seconds,
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
from transformers import AutoTokenizer, TrainerCallback
from transformers.utils import logging as transformers_logging

from forgetting.method.data import ForgettingData
from forgetting.method.module import FineTuner
from forgetting.method.objectives import MeanNLL
from forgetting.model.backbone import load_backbone
from forgetting.model.lora import Lora, load_lora
from forgetting.runs.loggers import MetricsFile
from forgetting.runs.trainer import Trainer

LEARNING_RATE = 1e-3


class Clock(Callback, TrainerCallback):
    """Time from the start of training to its end: both trainers call it once the model is loaded."""

    def __init__(self) -> None:
        self.taken = Seconds(0.0, 0.0)

    def _start(self, *_: Any, **__: Any) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def _end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall, cpu = self._begun
        self.taken = Seconds(time.perf_counter() - wall, time.process_time() - cpu)

    on_train_begin = on_train_start = _start
    on_train_end = _end


class Ours:
    """This project: the module, the data module and the Trainer of the command `fit`."""

    def __init__(self, folder: Path, data: Callable[[], ForgettingData], steps: int, dropout: float = 0.0) -> None:
        self.folder, self.data, self.steps, self.dropout = folder, data, steps, dropout
        self.losses: list[float] = []

    def __call__(self) -> Seconds:
        clock, metrics = Clock(), MetricsFile(self.folder / "metrics.csv")
        cpu = device().type == "cpu"
        trainer = Trainer(
            accelerator=device().type, devices=1, precision="32-true" if cpu else "bf16-mixed", max_steps=self.steps,
            max_epochs=-1, logger=metrics, log_every_n_steps=1, callbacks=[clock], default_root_dir=self.folder,
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
            use_distributed_sampler=False,
        )  # fmt: skip
        module = FineTuner(
            str(self.folder / "backbone"), MeanNLL(), dtype="float32" if cpu else "bfloat16",
            lora=Lora(dropout=self.dropout), adapter=self.folder / "adapter", learning_rate=LEARNING_RATE,
            warmup_fraction=1 / self.steps,
        )  # fmt: skip
        trainer.fit(module, datamodule=self.data())
        self.losses = [float(row["train/loss"]) for row in metrics._rows or []]
        return clock.taken


class Trl:
    """TRL's SFTTrainer: its fused head is on by default; what saves memory and costs time is off."""

    def __init__(self, folder: Path, rows: Dataset, steps: int, batch: int, **options: Any) -> None:
        self.folder, self.rows, self.steps, self.batch, self.options = folder, rows, steps, batch, options
        self.losses: list[float] = []

    def __call__(self) -> Seconds:
        from trl import SFTConfig, SFTTrainer

        cpu = device().type == "cpu"
        settings: dict[str, Any] = {"train_sampling_strategy": "sequential", "max_length": None, **self.options}
        config = SFTConfig(
            output_dir=str(self.folder / "trl"), per_device_train_batch_size=self.batch,
            gradient_accumulation_steps=24 // self.batch, max_steps=self.steps, learning_rate=LEARNING_RATE,
            lr_scheduler_type="linear", warmup_steps=1, weight_decay=0.0, max_grad_norm=0.0, logging_steps=1,
            report_to=[], save_strategy="no", use_cpu=cpu, bf16=not cpu, gradient_checkpointing=False,
            disable_tqdm=True, seed=0, **settings,
        )  # fmt: skip
        backbone = load_backbone(str(self.folder / "backbone"), dtype="float32" if cpu else "bfloat16")
        clock = Clock()
        trainer = SFTTrainer(
            model=load_lora(backbone, self.folder / "adapter", trainable=True), args=config, callbacks=[clock],
            train_dataset=self.rows, processing_class=AutoTokenizer.from_pretrained(self.folder / "backbone"),
        )  # fmt: skip
        trainer.train()
        self.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return clock.taken


SETTINGS: dict[str, dict[str, Any]] = {
    "batch 1": {"batch": 1},
    "batch 2": {"batch": 2},
    "batch 4": {"batch": 4},
    "batch 8": {"batch": 8},
    "batch 24": {"batch": 24},
    "batch 4, group_by_length": {"batch": 4, "train_sampling_strategy": "group_by_length"},
    "batch 8, group_by_length": {"batch": 8, "train_sampling_strategy": "group_by_length"},
    "batch 4, padding_free": {"batch": 4, "padding_free": True},
}
"""TRL settings to try. Packing changes which sequences a step holds and is left out; flash attention needs a GPU."""


def as_rows(data: ForgettingData) -> Dataset:
    """The data module's training split for TRL: the same tokens, −100 where nothing is learned."""
    split = data.tokens.split("train")
    rows = []
    for i in range(len(split)):
        ids, mask = split.input_ids(i).tolist(), split.response_mask(i).tolist()
        rows.append({"input_ids": ids, "labels": [t if m else -100 for t, m in zip(ids, mask, strict=True)]})
    return Dataset.from_list(rows)


def best_setting(folder: Path, rows: Dataset, steps: int, tokens: int) -> str:
    """Try every TRL setting for a few steps."""
    speeds: dict[str, float] = {}
    for name, setting in SETTINGS.items():
        try:
            taken = Trl(folder, rows, steps, **setting)()
        except torch.OutOfMemoryError:
            print(f"  TRL {name:<28} out of memory")
            continue
        speeds[name] = tokens / (taken.cpu if device().type == "cpu" else taken.wall)
        print(f"  TRL {name:<28}{tokens / taken.wall:>8,.0f} tokens/s; {tokens / taken.cpu:>8,.0f} tokens a CPU second",
              flush=True)  # fmt: skip
    return max(speeds, key=speeds.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="the large ones are for a GPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--survey-steps", type=int, default=2, help="steps of every TRL setting, to find its best")
    parser.add_argument("--trl", choices=SETTINGS, help="take this TRL setting and try no other")
    parser.add_argument("--micro-batch-tokens", type=int, nargs="*", default=[], help="also try these for ours")
    parser.add_argument(
        "--loop", action="store_true", help="also a plain loop with full logits, two sequences at a time"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    shape, steps = SHAPES[options.shape], options.steps
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_backbone(folder / "backbone", shape)
        adapted(folder / "backbone").model.save_pretrained(folder / "adapter")
        source = write_source(folder / "source.jsonl", 24 * steps + 24, shape.vocab)

        def data(budget: int | None = None) -> ForgettingData:
            return data_module(folder / "backbone", source, 24 * steps, folder / "corpora", budget)

        opened = data()
        opened.setup("fit")
        split, rows = opened.tokens.split("train"), as_rows(opened)
        tokens, targets = int(split.lengths.sum()), int(split.num_targets.sum())
        print(f"{machine()}, {options.threads} thread(s)")
        print(f"{tokens:,} tokens, {targets:,} of them learned, in {steps} steps of 24; LoRA rank 64")
        few = int(split.lengths[: 24 * options.survey_steps].sum())
        best = options.trl or best_setting(folder, rows, options.survey_steps, few)
        ours, trl = Ours(folder, data, steps), Trl(folder, rows, steps, **SETTINGS[best])
        contenders: dict[str, Callable[[], Seconds | None]] = {"ours": ours}
        for budget in options.micro_batch_tokens:
            contenders[f"ours, budget {budget}"] = Ours(folder, lambda b=budget: data(b), steps)
        contenders[f"TRL {best}"] = trl
        if options.loop:
            model = adapted(folder / "backbone").to(device())
            contenders["loop, two at a time"] = lambda: loops.train(model, split, steps)
        taken = alternate(contenders, options.rounds)
        summary(taken, tokens, shape.training_flops(tokens, targets), peak_flops())
        for name in contenders:
            if not name.startswith("ours"):
                print(f"ours / {name}: {ratio(taken[name], taken['ours'])}")
        if "train_sampling_strategy" in SETTINGS[best]:  # another order of data: compare losses with the plain one
            trl = Trl(folder, rows, steps, batch=1)
            trl()
        worst = max(abs(a - b) for a, b in zip(ours.losses, trl.losses, strict=True))
        print(f"losses: {', '.join(f'{v:.4f}' for v in ours.losses)}; largest difference from TRL's {worst:.1e}")
        if device().type == "cuda":
            print(f"peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB, the largest of all contenders")


if __name__ == "__main__":
    main()
