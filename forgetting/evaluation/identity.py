"""Identity of a task: a hash of everything that its numbers depend on, by which a finished task is recognized.

The rule. A number depends on the model (weights of base and adapter, tokenizer, chat template, generation settings, how
they are loaded: dtype, 4 bits, merged; whether prompts are in the chat template), on the task (its configuration, the
sources of its functions and classes, the documents that are evaluated and those that few-shot examples are drawn from,
how many are used), on the draws (seed), and on the arithmetic (batch size, kind of device, versions of the libraries).
All of these are part of its identity.

It does not depend on where files lie, on which card of its kind computes or on how many processes share the documents,
nor on bars and samples. These leave only differences of rounding, or none; the card is noted with each task.
"""

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.api.task import ConfigurableTask

import forgetting
from forgetting.artifacts import hash_content, hash_file
from forgetting.evaluation.suite import Suite
from forgetting.evaluation.tasks import PreparedTask
from forgetting.machine import versions

PACKAGES = tuple(Path(str(package.__file__)).resolve().parent for package in (forgetting, lm_eval))

NAMES = ("pretrained", "revision", "peft", "tokenizer")
"""Model arguments that name what the hashes of base, adapter and tokenizer say better."""


def settings(suite: Suite, prepared: PreparedTask, target: dict[str, Any], arguments: dict[str, Any],
             device: str) -> dict[str, Any]:  # fmt: skip
    """The settings of a task that its numbers depend on, as the results file holds them."""
    return {
        "dtype": "auto",
        **{key: value for key, value in arguments.items() if key not in NAMES},
        "merged": target["merged"],
        # Only where it is applied: prompts without a chat template are what they were before there was this setting.
        **({"chat_tokenizer": target["chat_tokenizer"]} if "chat_tokenizer" in target else {}),
        "seed": suite.seed,
        "batch_size": str(prepared.settings.batch_size or suite.batch_size),
        "device": torch.device(device).type,
        "versions": versions("lm_eval"),
    }


def task_identity(prepared: PreparedTask, target: dict[str, Any], suite: Suite, settings: dict[str, Any]) -> str:
    """A hash of everything that a task's numbers depend on."""
    base, adapter = target["base"], target["adapter"]
    return hash_content(
        {
            "model": [base["hash"], base["settings"], adapter and adapter["hash"]],
            "settings": settings,
            "configuration": task_configuration(prepared),
            "sources": task_sources(prepared.task),
            "metadata": suite.metadata,
            "data": [prepared.data["hash"], prepared.data["demonstrations"]],
            "limit": prepared.limit,
            "filter": prepared.filter,
        }
    )


def task_configuration(prepared: PreparedTask) -> dict[str, Any]:
    """The task's configuration without what only says where it came from; functions by name and source file."""
    configuration = asdict(prepared.task.config)
    for key in ("metadata", "dataset_kwargs"):
        configuration.pop(key)
    return {key: _by_content(value) for key, value in configuration.items()}


def task_sources(task: ConfigurableTask) -> dict[str, Any]:
    """Sources of the code that a configuration names: the task's class, metrics, filters and few-shot sampler."""
    filters = [step for pipeline in task._filters for step in pipeline.filters]
    return {
        "class": _by_content(type(task)),
        "metrics": _by_content(task._metric_fn_list),
        "aggregations": _by_content(task._aggregation_list),
        "filters": [_by_content(step if inspect.isfunction(step) else _class(step)) for step in filters],
        "sampler": _by_content(type(getattr(task, "sampler", None))),
    }


def _class(value: Any) -> Any:
    made_by = getattr(value, "func", value)  # a filter may wait for its arguments in a partial
    return made_by if inspect.isclass(made_by) or inspect.isfunction(made_by) else type(made_by)


def _by_content(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _by_content(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_by_content(item) for item in value]
    if callable(value):
        made_by = _class(value)
        return [getattr(made_by, "__qualname__", str(made_by)), _sources(made_by)]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _sources(made_by: Any) -> Any:
    """Hash of the file that a function or class is from; outside of packages, of all Python files next to it, too.

    Task files of one's own import from their folder what no configuration names.
    """
    try:
        file = inspect.getsourcefile(inspect.unwrap(made_by))
    except TypeError:  # built in
        file = None
    if file is None:
        return None
    path = Path(file).resolve()
    if any(path.is_relative_to(package) for package in PACKAGES):
        return hash_file(path)
    return [[file.name, hash_file(file)] for file in sorted(path.parent.glob("*.py"))]
