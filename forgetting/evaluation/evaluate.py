"""Evaluate one target on one suite: task after task, each kept as soon as it is finished."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from forgetting.errors import UserError
from forgetting.evaluation.finished import finished_task, write_task
from forgetting.evaluation.harness import BarAsLines, load_model, run_task, silence, usable_device
from forgetting.evaluation.identity import settings, task_identity
from forgetting.evaluation.naming import task_path
from forgetting.evaluation.results import (
    differences,
    earlier_results,
    refuse_another_suite,
    results_path,
    write_results,
)
from forgetting.evaluation.suite import Suite
from forgetting.evaluation.target import find_target
from forgetting.evaluation.tasks import PreparedTask, prepare_tasks
from forgetting.evaluation.tracking import append_cost, log_evaluation
from forgetting.model.backbone import refuse_unfit_weights


def evaluate(
    name: str, suite: Suite, output: Path | None = None, revision: str | None = None, device: str | None = None,
    merge: bool = False, whole_samples: bool = False, fresh: bool = False, quiet: bool = False,
    wandb: dict[str, Any] | None = None, chat: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate a target; tasks that an earlier launch finished with the same settings are not run again.

    Args:
        name: Run folder, model folder or hub id.
        suite: What to run.
        output: Folder or `.json` file for the results.
        revision: Of a hub model.
        device: None is the accelerator if there is one.
        merge: Add the adapter into the weights first.
        whole_samples: Keep documents and prompts next to scores and answers.
        fresh: Run finished tasks again.
        quiet: Hide progress bars and the libraries' warnings.
        wandb: Settings of Weights & Biases; None takes those of the run, if it has any, and resumes it there.
        chat: Write prompts in the tokenizer's chat template, few-shot examples as turns.

    Returns:
        What was written to the results file.

    Raises:
        UserError: Something is missing (before the model is loaded), or a task failed (after everything was written).
    """
    start = time.perf_counter()
    as_lines = not quiet and not sys.stderr.isatty()  # what a bar would show
    quiet = quiet or as_lines
    device = usable_device(device)
    target = find_target(name, revision)
    if merge and (target.adapter is None or target.four_bit):
        reason = "its base is in 4 bits, and merging would round" if target.four_bit else "it has no adapter"
        raise UserError(f"{name} cannot be merged: {reason}. Leave --merge out.")
    if target.four_bit and torch.device(device).type != "cuda":
        raise UserError(
            f"The run {name} was trained on a base in 4 bits (model.four_bit), which needs a CUDA device; this is "
            f"{device}. On the base in 16 bits its numbers would be those of another model."
        )
    with silence(quiet):
        refuse_unfit_weights(target.base, target.revision)
    dtype = suite.dtype or target.dtype
    model_arguments = target.model_arguments(dtype, chat)
    description: dict[str, Any] = target.describe() | {"merged": merge, "four_bit": target.four_bit}
    if chat:
        description["chat_tokenizer"] = target.chat_tokenizer()
    with silence(quiet):
        prepared = prepare_tasks(suite, model_arguments)
    path = results_path(output or target.folder, suite, chat)
    refuse_another_suite(path, suite)
    used = {task.name: settings(suite, task, description, model_arguments, device) for task in prepared}
    identities = {task.name: task_identity(task, description, suite, used[task.name]) for task in prepared}
    files = {name: task_path(path.parent, name, identity) for name, identity in identities.items()}
    # Looked up before anything is run: processes that share the work must not disagree on what is left.
    kept = {} if fresh else {n: finished_task(file, identities[n], whole_samples) for n, file in files.items()}

    model, loaded = None, None
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0  # of the processes that share the work, the one that writes
    tasks: dict[str, Any] = {}
    failures: dict[str, str] = {}
    for number, task in enumerate(prepared, start=1):
        label = f"[{number}/{len(prepared)}] {task.name}"
        if known := kept.get(task.name):
            tasks[task.name] = known | {"metric": task.metric}  # another suite may have finished it for another column
            if first:
                print(f"{label}: {_summary(task, known)} (kept)", flush=True)
            continue
        if model is None or loaded is None:
            with silence(quiet):
                model, loaded = load_model(model_arguments, suite, device, merge)
        try:
            bars = BarAsLines(label) if as_lines and first else None
            outcome = run_task(model, loaded, task, suite, used[task.name], quiet, chat, bars)
        except Exception as error:
            if model.world_size > 1:  # the other processes wait for this one: stop them all
                raise
            outcome = _failure(task, error), []
        task.task._instances = None
        if outcome is None or not first:
            continue
        entry, records = outcome
        entry = tasks[task.name] = entry | {"identity": identities[task.name]}
        print(f"{label}: {_summary(task, entry)}", flush=True)
        if entry["status"] == "ok":
            write_task(files[task.name], entry, records, whole_samples)
        else:
            failures[task.name] = entry["error"]
            earlier = finished_task(files[task.name], identities[task.name], whole=False)
            tasks[task.name] = earlier | {"metric": task.metric} if earlier else entry
    if not first:
        return {}
    if model is not None:
        append_cost(path.parent, time.perf_counter() - start, torch.device(str(model.device)))
    before = earlier_results(path)
    _refuse_to_lose(path, before, tasks, failures)
    summary = {"dtype": dtype or "auto", "batch_size": suite.batch_size, "model_arguments": model_arguments}
    summary["apply_chat_template"] = chat
    content = write_results(path, description, suite, prepared, tasks, summary)
    if before and (what := differences(before, content)):
        print(f"{path} held another evaluation ({what}). It is replaced; its tasks are kept in {path.parent}/samples.")
    log_evaluation(target.folder, path.parent, content, wandb, suite.trial)
    average = content["average"]
    number = "no average" if average is None else f"average {average:.2f}"
    print(f"{number}{' with the chat template' if chat else ''} → {path}", flush=True)
    if failures:
        raise UserError(
            f"{_failed(failures, tasks)}. The others are in {path}; the same command runs only the failed ones again."
        )
    return content


def _refuse_to_lose(path: Path, before: dict[str, Any] | None, tasks: dict[str, Any], failures: dict[str, str]) -> None:
    """Refuse to replace a finished task by one that failed."""
    lost = [
        name
        for name in failures
        if before and tasks[name]["status"] != "ok" and before["tasks"].get(name, {}).get("status") == "ok"
    ]
    if lost:
        raise UserError(
            f"{_failed(failures, tasks)}. {path} holds an earlier evaluation, of other settings, model or data, that "
            f"finished {', '.join(lost)}: it was left as it is. What was finished now is kept; the same command runs "
            "only the failed ones again."
        )


def _failed(failures: dict[str, str], tasks: dict[str, Any]) -> str:
    name, error = next(iter(failures.items()))
    kept = [task for task in failures if tasks[task]["status"] == "ok"]
    note = f"; what an earlier launch finished of {', '.join(kept)} stands" if kept else ""
    return f"{len(failures)} of {len(tasks)} tasks failed: {', '.join(failures)} ({name}: {error}){note}"


def _failure(prepared: PreparedTask, error: Exception) -> dict[str, Any]:
    """Entry of a failed task, which has no metrics: it is not a 0."""
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
    of_all = "" if documents == entry["documents_total"] else f" of {entry['documents_total']}"
    return f"{prepared.metric} {number}, {documents}{of_all} documents, {entry['seconds']:.1f} s"
