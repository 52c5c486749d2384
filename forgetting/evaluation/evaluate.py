"""Evaluate one target on one suite: task after task, each kept as soon as it is finished."""

import os
import time
from pathlib import Path
from typing import Any

import torch

from forgetting.errors import UserError
from forgetting.evaluation.harness import bars_wanted, device_name, load_model, run_task, silence, task_identity
from forgetting.evaluation.results import (
    finished_tasks,
    holds_records,
    results_path,
    samples_path,
    versions,
    write_partial,
    write_records,
    write_results,
)
from forgetting.evaluation.suite import Suite
from forgetting.evaluation.target import find_target
from forgetting.evaluation.tasks import PreparedTask, prepare_tasks
from forgetting.evaluation.tracking import append_cost, log_table, wandb_settings
from forgetting.model.backbone import load_configuration


def evaluate(
    name: str, suite: Suite, output: Path | None = None, revision: str | None = None, device: str | None = None,
    merge: bool = False, whole_samples: bool = False, fresh: bool = False, quiet: bool = False,
    wandb: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate a target; tasks that an earlier launch finished with the same settings are not run again.

    Args:
        name: Run folder, model folder or hub id.
        suite: What to run.
        output: Folder or `.json` file for the results.
        revision: Of a hub model.
        device: None is the accelerator if there is one.
        merge: Add the adapter into the weights first.
        whole_samples: Keep documents and prompts beside scores and answers.
        fresh: Run finished tasks again.
        quiet: Hide the harness's progress bars.
        wandb: Settings of Weights & Biases; None takes those of the run, if it has any.

    Returns:
        What was written to `results.json`.

    Raises:
        UserError: Something is missing (before the model is loaded), or a task failed (after everything was written).
    """
    start = time.perf_counter()
    quiet = quiet or not bars_wanted()
    target = find_target(name, revision)
    if merge and target.adapter is None:
        raise UserError(f"There is no adapter to merge in {name}; leave --merge out.")
    load_configuration(target.base, target.revision)
    dtype = suite.dtype or target.dtype
    model_arguments = target.model_arguments(dtype)
    with silence(quiet):
        prepared = prepare_tasks(suite, model_arguments)
    description: dict[str, Any] = target.describe() | {"merged": merge}
    path = results_path(output or target.folder, suite)
    adapter = description["adapter"] and description["adapter"]["hash"]
    context = {"base": description["base"]["hash"], "adapter": adapter, "dtype": dtype, "merge": merge}
    context |= {"versions": versions()}
    earlier = {} if fresh else finished_tasks(path)

    model = None
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0  # of the processes that share the work, the one that writes
    tasks: dict[str, Any] = {}
    for number, one in enumerate(prepared, start=1):
        identity = task_identity(one, suite, context)
        records_file = samples_path(path, suite.protocol, one.name)
        label = f"[{number}/{len(prepared)}] {one.name}"
        if identity in earlier and holds_records(records_file, identity, whole_samples):
            tasks[one.name] = earlier[identity]
            if first:
                print(f"{label}: {_summary(one, tasks[one.name])} (kept)", flush=True)
            continue
        if model is None:
            with silence(quiet):
                model = load_model(model_arguments, suite, device, merge)
        try:
            outcome = run_task(model, one, suite, quiet)
        except Exception as error:
            if model.world_size > 1:  # the other processes wait for this one: stop them all
                raise
            outcome = _failure(one, error), []
        one.task._instances = None
        if outcome is None or not first:
            continue
        entry, records = outcome
        tasks[one.name] = entry | {"identity": identity}
        if entry["status"] == "ok":
            write_records(records_file, identity, records, whole_samples)
        write_partial(path, tasks)
        print(f"{label}: {_summary(one, entry)}", flush=True)
    if not first:
        return {}
    settings = {
        "dtype": dtype or "auto",
        "batch_size": suite.batch_size,
        "model_arguments": model_arguments,
    }
    content = write_results(path, description, suite, prepared, tasks, settings)
    if model is not None:
        append_cost(path.parent, time.perf_counter() - start, device_name(model))
    if wandb_options := wandb or wandb_settings(target.folder):
        log_table(wandb_options, path.parent, content)
    average = content["average"]
    print(f"average {average:.2f} → {path}" if average is not None else f"no average → {path}", flush=True)
    failed = [one.name for one in prepared if tasks[one.name]["status"] != "ok"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(prepared)} tasks failed: {', '.join(failed)} ({tasks[failed[0]]['error']}). "
            f"The others are in {path}; the same command runs only the failed ones again."
        )
    return content


def _failure(prepared: PreparedTask, error: Exception) -> dict[str, Any]:
    """A failed task has no metrics: it is not a 0."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {
        "status": "failed", "error": f"{type(error).__name__}: {error}", "metrics": {}, "documents": 0,
        "documents_total": prepared.num_documents, "metric": prepared.metric, "data": prepared.data,
    }  # fmt: skip


def _summary(prepared: PreparedTask, entry: dict[str, Any]) -> str:
    if entry["status"] != "ok":
        return f"failed: {entry['error']}"
    value, error = entry["metrics"][prepared.metric], entry["metrics"].get(f"{prepared.metric}_stderr")
    number = "no value" if value is None else f"{100 * value:.2f}" + (f" ± {100 * error:.2f}" if error else "")
    documents = entry["documents"]
    share = "" if documents == entry["documents_total"] else f" of {entry['documents_total']}"
    return f"{prepared.metric} {number}, {documents}{share} documents, {entry['seconds']:.1f} s"
