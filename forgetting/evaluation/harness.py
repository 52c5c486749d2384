"""Running one task of the harness: model loaded once from paths, everything else fresh for each task."""

import contextlib
import inspect
import io
import logging
import math
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model
from lm_eval.evaluator import evaluate
from lm_eval.utils import set_torch_seed

from forgetting.artifacts import hash_content, hash_file
from forgetting.errors import UserError
from forgetting.evaluation.suite import Suite
from forgetting.evaluation.tasks import PreparedTask


def load_model(model_arguments: dict[str, str], suite: Suite, device: str | None, merge: bool) -> LM:
    """Let the harness load a model from paths; with several processes (`accelerate launch`) each loads its own.

    Args:
        model_arguments: The harness's `model_args`.
        suite: For the batch size.
        device: Such as `cuda:1` or `cpu`; None is the accelerator if there is one.
        merge: Add the adapter into the weights.

    Raises:
        UserError: It cannot be loaded.
    """
    device = device or default_device()
    settings = {"batch_size": usable_batch_size(suite.batch_size, device), "device": device}
    try:
        model = get_model("hf").create_from_arg_obj(dict(model_arguments), settings)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"The harness could not load {model_arguments}: {error}") from error
    if merge:
        model._model = model._model.merge_and_unload()  # pyright: ignore[reportAttributeAccessIssue]
    return model


def default_device() -> str:
    """The accelerator if there is one; the harness itself would insist on CUDA."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def usable_batch_size(batch_size: int | str, device: str) -> int | str:
    """`auto` finds the largest batch by running out of memory, which a CPU does not survive: there it is 8."""
    return 8 if str(batch_size).startswith("auto") and device == "cpu" else batch_size


def task_identity(prepared: PreparedTask, suite: Suite, context: dict[str, Any]) -> str:
    """A hash of everything that a task's numbers depend on: by it a finished task is known again."""
    return hash_content(
        {
            "context": context,
            "configuration": task_configuration(prepared),
            "data": prepared.data["hash"],
            "limit": prepared.limit,
            "filter": prepared.filter,
            "seed": suite.seed,
            "batch_size": str(prepared.settings.batch_size or suite.batch_size),
        }
    )


def task_configuration(prepared: PreparedTask) -> dict[str, Any]:
    """The task's configuration without what only says where it came from; functions by name and source file."""
    configuration = asdict(prepared.task.config)
    for key in ("metadata", "dataset_kwargs"):
        configuration.pop(key)
    return {key: _by_content(value) for key, value in configuration.items()}


def _by_content(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _by_content(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_by_content(one) for one in value]
    if callable(value):
        file = inspect.getsourcefile(inspect.unwrap(value)) if inspect.isfunction(value) else None
        return [getattr(value, "__qualname__", str(type(value))), hash_file(Path(file)) if file else None]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def run_task(
    model: LM, prepared: PreparedTask, suite: Suite, quiet: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Run one task as a launch of its own would: seeds, batch sizes and requests start afresh.

    Args:
        model: Of `load_model`.
        prepared: The task.
        suite: For seed and batch size.
        quiet: Hide the harness's progress bars.

    Returns:
        The task's entry in `results.json` and its documents' records; None in all processes but the first.
    """
    start = time.perf_counter()
    random.seed(suite.seed)
    np.random.seed(suite.seed)
    set_torch_seed(suite.seed)
    prepared.task.set_fewshot_seed(suite.seed)
    _set_batch_size(model, prepared.settings.batch_size or suite.batch_size)
    loaded: Any = {"tasks": {prepared.name: prepared.task}}
    with silence(quiet):
        output = evaluate(model, loaded, limit=prepared.limit, log_samples=True)
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
        "metric": prepared.metric,
        "device": device_name(model),
        "seconds": round(time.perf_counter() - start, 3),
    }
    return entry, _records(content["samples"][prepared.name], prepared.filter)


def device_name(model: Any) -> str:
    """The name of the accelerator, or `cpu`."""
    device = model.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


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


@contextlib.contextmanager
def silence(quiet: bool):
    """Keep the harness's notes, and with `quiet` all bars, off the terminal; the harness's warnings need no `quiet`."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR if quiet else logging.WARNING)
    if quiet:
        datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stderr(io.StringIO()) if quiet else contextlib.nullcontext():
            yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


def bars_wanted() -> bool:
    """Whether there is someone to look at progress bars."""
    return sys.stderr.isatty()
