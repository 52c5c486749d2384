"""Running one task of the harness: model loaded once from paths, everything else fresh for each task."""

import contextlib
import io
import logging
import math
import re
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file

from forgetting.artifacts import hash_content
from forgetting.errors import UserError
from forgetting.evaluation.draws import Draws, draws, put_back, seed_all
from forgetting.evaluation.identity import task_configuration
from forgetting.evaluation.suite import Suite
from forgetting.evaluation.tasks import PreparedTask
from forgetting.machine import device_name
from forgetting.model.adapter_folder import WEIGHTS
from forgetting.model.lora import refuse_another_models
from forgetting.progress import Clock


class FourBitModel(HFLM):
    """A model quantized as it is loaded: transformers 5 takes no `load_in_4bit`, which the harness hands on."""

    def __init__(self, bnb_4bit_quant_type: str, bnb_4bit_compute_dtype: str, **arguments: Any) -> None:
        self._quantization = {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": bnb_4bit_quant_type,
            "bnb_4bit_compute_dtype": bnb_4bit_compute_dtype,
        }  # fmt: skip
        super().__init__(**arguments)

    def _get_config(self, *arguments: Any, **options: Any) -> None:
        super()._get_config(*arguments, **options)  # pyright: ignore[reportAttributeAccessIssue]
        # By this the harness quantizes.
        self.config.quantization_config = self._quantization  # pyright: ignore[reportAttributeAccessIssue]


def _refuse_not_finite(model: Any) -> None:
    """Refuse weights that are no numbers: such a model still gives a choice to every question, and so a score."""
    broken = [name for name, weight in model._model.named_parameters() if not torch.isfinite(weight).all()]
    if broken:
        raise UserError(
            f"The model holds numbers that are not finite, in {len(broken)} tensor(s) such as {broken[0]}: its "
            "training diverged, or a file is damaged. There is nothing to evaluate."
        )


def load_model(model_arguments: dict[str, Any], suite: Suite, device: str, merge: bool) -> tuple[LM, Draws]:
    """Let the harness load a model from paths; with several processes (`accelerate launch`) each loads its own.

    Returns:
        The model, and the states of the random generators after it was loaded.

    Raises:
        UserError: It cannot be loaded.
    """
    settings = {"batch_size": usable_batch_size(suite.batch_size, device), "device": device}
    arguments = dict(model_arguments)
    kind = FourBitModel if arguments.pop("load_in_4bit", False) else get_model("hf")
    seed_all(suite.seed)
    try:
        model = kind.create_from_arg_obj(arguments, settings)
    except (OSError, ValueError, RuntimeError, ImportError, LookupError, TypeError) as error:
        raise UserError(f"The harness could not load {model_arguments}: {error}") from error
    _refuse_not_finite(model)
    if "peft" in model_arguments:
        folder = Path(model_arguments["peft"])
        loaded: Any = model
        refuse_another_models(loaded._model, load_file(folder / WEIGHTS), folder)
    state = draws()
    if merge:
        model._model = model._model.merge_and_unload()  # pyright: ignore[reportAttributeAccessIssue]
    return model, state


def usable_device(device: str | None) -> str:
    """`device`, or the accelerator if there is one; the harness itself would insist on CUDA.

    Raises:
        UserError: It is no device, or not of this machine.
    """
    if device is None:
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device {device} is no device; cpu, mps, cuda or cuda:<n> was expected.") from None
    if asked.type == "cpu" or (asked.type == "mps" and torch.backends.mps.is_available()):
        return device
    count = torch.cuda.device_count() if asked.type == "cuda" and torch.cuda.is_available() else 0
    if (asked.index or 0) >= count:
        known = ["cpu", *(["mps"] if torch.backends.mps.is_available() else []), *(f"cuda:{n}" for n in range(count))]
        raise UserError(f"--device {device} is not on this machine. It has: {', '.join(known)}.")
    return device


def usable_batch_size(batch_size: int | str, device: str) -> int | str:
    """`auto` finds the largest batch by running out of memory, which a CPU does not survive: there it is 8."""
    return 8 if str(batch_size).startswith("auto") and device == "cpu" else batch_size


def run_task(
    model: LM,
    loaded: Draws,
    prepared: PreparedTask,
    suite: Suite,
    settings: dict[str, Any],
    quiet: bool,
    chat: bool = False,
    bars: io.StringIO | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Run one task as a launch of its own would: seeds, batch sizes and requests start afresh.

    Args:
        model: As `load_model` gives it.
        loaded: The states of the random generators after that.
        prepared: The task.
        suite: What it belongs to.
        settings: For its entry.
        quiet: Keep progress bars and the libraries' warnings off the terminal.
        chat: Prompts are in the tokenizer's chat template and few-shot examples are turns of the conversation: what the
            harness's command line makes of `--apply_chat_template`.
        bars: Gets what is kept off the terminal.

    Returns:
        The task's entry in the results file and its documents' records; None in all processes but the first.
    """
    start = time.perf_counter()
    put_back(prepared.draws, loaded)
    prepared.task.set_fewshot_seed(suite.seed)
    _set_batch_size(model, prepared.settings.batch_size or suite.batch_size)
    tasks: Any = {"tasks": {prepared.name: prepared.task}}
    with silence(quiet, bars):
        output = evaluate(
            model, tasks, limit=prepared.limit, log_samples=True, apply_chat_template=chat, fewshot_as_multiturn=chat
        )
    if output is None:
        return None
    content: dict[str, Any] = dict(output)
    entry = {
        "status": "ok",
        "error": None,
        "metrics": _metrics(content["results"][prepared.name], prepared.filter),
        "documents": content["n-samples"][prepared.name]["effective"],
        "documents_total": prepared.num_documents,
        "shots": content["n-shot"].get(prepared.name, 0),
        "version": content["versions"].get(prepared.name),
        "config_hash": hash_content(task_configuration(prepared)),
        "data": prepared.data,
        "settings": settings,
        "metric": prepared.metric,
        "device": device_name(torch.device(str(model.device))),
        "seconds": round(time.perf_counter() - start, 3),
    }
    return entry, _records(content["samples"][prepared.name], prepared.filter)


def _set_batch_size(model: Any, batch_size: int | str) -> None:
    value = str(usable_batch_size(batch_size, str(model.device)))
    model.batch_sizes = {}
    if value.startswith("auto"):
        model.batch_size_per_gpu, _, schedule = value.partition(":")
        model.batch_schedule = float(schedule or 1)
    else:
        model.batch_size_per_gpu = int(value)


def _metrics(results: dict[str, Any], filter_name: str) -> dict[str, float | None]:
    """`acc,none` → `acc`; the outputs of other filters keep their full name. What is no finite number is None."""
    metrics = {}
    for key, value in results.items():
        name, separator, filter_key = key.partition(",")
        if separator:
            number = float(value) if isinstance(value, (int, float, np.number)) else math.nan
            metrics[name if filter_key == filter_name else key] = number if math.isfinite(number) else None
    return metrics


def _records(samples: list[dict[str, Any]], filter_name: str) -> list[dict[str, Any]]:
    records = [
        {
            "document": sample["doc_id"],
            "hash": sample["doc_hash"],
            "target": sample["target"],
            "answer": sample["filtered_resps"],
            "metrics": {name: sample[name] for name in sample["metrics"]},
            "doc": sample["doc"],
            "prompt": [next(iter(arguments)) for arguments in sample["arguments"]],
        }
        for sample in samples
        if sample["filter"] == filter_name
    ]
    return sorted(records, key=lambda record: record["document"])


NOISY = ("lm_eval", "transformers", "datasets", "huggingface_hub")
"""Loggers of libraries that warn while the harness works."""


class BarAsLines(io.StringIO):
    """Where the harness's bar goes without a terminal: its numbers become a line every half minute.

    Args:
        what: What the line begins with.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what, self._clock = what, Clock()

    def write(self, text: str) -> int:
        """Print what a bar says when it is due, such as `loglikelihood requests: 12% 12/100 [00:31<03:47, 2.6s/it]`."""
        numbers = re.sub(r"\s*\|.*\|\s*", " ", text).strip().removeprefix("Running ")
        if re.search(r"\d+/\d+ \[", numbers) and self._clock.is_due():
            print(f"{self._what}: {numbers}", flush=True)
        return len(text)


@contextlib.contextmanager
def silence(quiet: bool, bars: io.StringIO | None = None):
    """Keep the harness's notes off the terminal; with `quiet` also its bars (into `bars`) and libraries' warnings."""
    loggers = [logging.getLogger(name) for name in (NOISY if quiet else NOISY[:1])]
    levels, has_bars = [logger.level for logger in loggers], datasets.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR if quiet else logging.WARNING)
    if quiet:
        datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stderr(bars or io.StringIO()) if quiet else contextlib.nullcontext():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if has_bars:
            datasets.enable_progress_bars()
