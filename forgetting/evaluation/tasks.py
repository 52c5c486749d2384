"""From a suite to the harness's tasks, loaded and checked before any model is."""

import difflib
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from forgetting.artifacts import hash_content
from forgetting.errors import UserError
from forgetting.evaluation.draws import Draws, draws, seed_all
from forgetting.evaluation.suite import Column, Suite
from forgetting.paths import CONFIGS

OWN_TASKS = "evaluation/tasks"
BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}


@dataclass
class PreparedTask:
    """A task with its data, ready to run.

    Attributes:
        name: Of the task; a group of the suite becomes several.
        column: The column that it fills.
        settings: How the column runs it.
        task: The harness's object.
        limit: Number of the first documents that are used; None is all of them.
        num_documents: Number of all documents.
        metric: The metric that fills the column.
        filter: The filter whose output is scored.
        data: Where the documents came from: path, revision, their hash, and that of the documents that few-shot
            examples are drawn from, if there are any.
        draws: Where the random generators stood when it was loaded.
    """

    name: str
    column: str
    settings: Column
    task: ConfigurableTask
    limit: int | None
    num_documents: int
    metric: str
    filter: str
    data: dict[str, Any]
    draws: Draws


def prepare_tasks(suite: Suite, model_arguments: dict[str, Any]) -> list[PreparedTask]:
    """Load every task of a suite with its data, in the suite's order.

    Raises:
        UserError: A task is unknown, its data are missing, or a package that it needs is.
    """
    names = [name for column in suite.columns.values() for name in column.tasks]
    manager = _manager(names, suite.include_path, {**model_arguments, **suite.metadata})
    for name in names:
        if name not in manager.task_index:
            close = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            places = ", ".join(suite.include_path) or "no include path was given"
            raise UserError(
                f"There is no task {name}, neither in the harness nor in the included folders ({places}).{hint}"
            )
    return [
        prepared
        for column_name, column in suite.columns.items()
        for name in column.tasks
        for prepared in _prepare(manager, name, column_name, column, suite.files_of(name), suite.seed)
    ]


def _manager(names: list[str], include_path: list[str], metadata: dict[str, Any]) -> TaskManager:
    """Return the harness's index; that of its own 15,000 task files takes seconds and is read only when needed."""
    for folder in include_path:
        if not Path(folder).is_dir():
            raise UserError(f"The folder of tasks {folder} does not exist.")
    folders = (str(CONFIGS / OWN_TASKS), *include_path)
    manager = TaskManager(include_path=list(folders), include_defaults=False, metadata=metadata)  # pyright: ignore[reportArgumentType]
    known = all(name in manager.task_index for name in names)
    return manager if known else _whole_manager(folders, tuple(sorted(metadata.items())))


@cache
def _whole_manager(folders: tuple[str, ...], metadata: tuple[tuple[str, Any], ...]) -> TaskManager:
    return TaskManager(include_path=list(folders), metadata=dict(metadata))  # pyright: ignore[reportArgumentType]


def _prepare(
    manager: TaskManager, name: str, column_name: str, column: Column, data_files: dict[str, list[str]] | None,
    seed: int,
) -> list[PreparedTask]:  # fmt: skip
    if name == "ifeval" or name.startswith("ifeval_"):
        _require_ifeval()
    overrides = {} if data_files is None else local_data(manager, name, column, data_files)
    spec: Any = {"group": f"local_{name}", "task": [{"task": name, **overrides}]} if overrides else name
    seed_all(seed)
    try:
        loaded = manager.load([spec])["tasks"]
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, DatasetsError) as error:
        raise UserError(_loading_failed(name, error)) from error
    state = draws()
    prepared = []
    for task_name, task in loaded.items():
        assert isinstance(task, ConfigurableTask)
        _set_shots(task, task_name, column)
        if column.generation:
            task.set_config(key="generation_kwargs", value=column.generation, update=True)
        documents = task.eval_docs
        metrics = list(task.aggregation())
        metric = column.metric or next((name for name in metrics if task.higher_is_better()[name]), metrics[0])
        if metric not in metrics:
            raise UserError(
                f"The column {column_name} wants the metric {metric}, but {task_name} has {', '.join(metrics)}."
            )
        filters = [step["name"] for step in task.config.filter_list or [{"name": "none"}]]
        if (column.filter or filters[0]) not in filters:
            raise UserError(
                f"The column {column_name} wants the filter {column.filter}, but {task_name} has {', '.join(filters)}."
            )
        prepared.append(
            PreparedTask(
                name=task_name, column=column_name, settings=column, task=task, limit=column.limit(len(documents)),
                num_documents=len(documents), metric=metric, filter=column.filter or filters[0],
                data=_origin(task, documents), draws=state,
            )
        )  # fmt: skip
    return prepared


def _set_shots(task: ConfigurableTask, name: str, column: Column) -> None:
    """Set the number of few-shot examples as `--num_fewshot` does; refuse where that would keep a task's own 0."""
    fixed = task.get_config("num_fewshot")
    if column.shots is None:
        if fixed is None:
            task.set_config(key="num_fewshot", value=0)
    elif fixed == 0 and column.shots > 0:
        raise UserError(f"The task {name} fixes its few-shot examples at 0; the suite asks for {column.shots}.")
    elif fixed != 0:
        task.set_config(key="num_fewshot", value=column.shots)


def local_data(manager: TaskManager, name: str, column: Column, data_files: dict[str, list[str]]) -> dict[str, Any]:
    """The changes to a task's configuration that make it read local files instead of its own data.

    Raises:
        UserError: The files are of an unknown or of several kinds, or the split that is evaluated is not among them.
    """
    configuration = manager.task_index[name].cfg or {}
    if configuration.get("task") != name:
        raise UserError(
            f"data_files.{name}: {name} is a group; give the files of its tasks, and list these in the suite."
        )
    suffixes = {Path(file).suffix for files in data_files.values() for file in files}
    builders = {BUILDERS.get(suffix, "") for suffix in suffixes}
    if len(builders) != 1 or "" in builders:
        raise UserError(
            f"data_files.{name}: files of one kind ({', '.join(BUILDERS)}) were expected, not "
            f"{', '.join(sorted(suffixes))}."
        )
    evaluated = configuration.get("test_split") or configuration.get("validation_split")
    needed = {str(evaluated)}
    if column.shots:
        needed.add(str(configuration.get("fewshot_split") or configuration.get("training_split") or evaluated))
    if missing := needed - set(data_files):
        raise UserError(
            f"data_files.{name} gives {', '.join(data_files)}, but the task also needs its split {sorted(missing)[0]}."
        )
    builder = builders.pop()
    arguments: dict[str, Any] = {"data_files": data_files}
    if "custom_dataset" in configuration or builder == configuration.get("dataset_path"):
        arguments = {**configuration.get("dataset_kwargs", {}), **arguments}
    elif suffixes == {".tsv"}:
        arguments["sep"] = "\t"
    absent = [
        split
        for split in ("training_split", "validation_split", "test_split", "fewshot_split")
        if configuration.get(split) is not None and configuration[split] not in data_files
    ]
    return {"dataset_path": builder, "dataset_name": None, "dataset_kwargs": arguments, **dict.fromkeys(absent)}


def _origin(task: ConfigurableTask, documents: Any) -> dict[str, Any]:
    """Record of the documents' source, with the commit that the hub answered with."""
    split = task.config.test_split or task.config.validation_split
    shots = task.get_config("num_fewshot")
    checksums = getattr(getattr(task.dataset.get(split), "info", None), "download_checksums", None) or {}
    commits = sorted({match for url in checksums for match in re.findall(r"hf://datasets/[^@]+@([0-9a-f]{40})/", url)})
    return {
        "path": task.config.dataset_path,
        "name": task.config.dataset_name,
        "split": split,
        "revision": commits[0] if commits else None,
        "hash": hash_content([str(document) for document in documents]),
        "demonstrations": hash_content([str(document) for document in task.sampler.df]) if shots else None,
    }


def _require_ifeval() -> None:
    missing = [
        package for package in ("langdetect", "immutabledict", "nltk") if importlib.util.find_spec(package) is None
    ]
    if missing:
        raise UserError(
            f"IFEval needs packages that are not installed ({', '.join(missing)}). Install the harness's extra: "
            "pip install 'lm-eval[ifeval]'"
        )
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        raise UserError(
            "IFEval needs NLTK's sentence splitter punkt_tab, which is not on this machine. Fetch it where there is a "
            "connection: python -m nltk.downloader punkt_tab (then copy ~/nltk_data, or set NLTK_DATA)."
        ) from None


def _loading_failed(name: str, error: BaseException) -> str:
    text = " ".join(str(error).split())
    message = f"The data of the task {name} could not be loaded: {type(error).__name__}: {text}."
    if "Dataset scripts are no longer supported" in text:
        return f"{message} datasets ≥ 4 runs no loading scripts: point the task at local files with data_files."
    if "offline" in text.lower() or isinstance(error, ConnectionError):
        return f"{message} Without a connection, point the task at local files: data_files.{name}.<split> in the suite."
    return message
