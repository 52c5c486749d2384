"""Suites: the tasks that fill each column of a table, and how each protocol runs them."""

import math
import re
from argparse import ArgumentError
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser

from forgetting.errors import UserError
from forgetting.evaluation.naming import refuse_name
from forgetting.model.dtypes import DType
from forgetting.paths import CONFIGS

WeightDType = Literal["auto"] | DType
PROTOCOLS = ("corrected", "published", "token_stop")


@dataclass
class Column:
    """One column of a table.

    Attributes:
        tasks: Names of tasks or groups of the harness; the column is the plain mean over them.
        metric: The task's metric; None takes the first of which more is better.
        filter: The task's filter whose output is scored; None takes its first.
        shots: Few-shot examples; None leaves it to the task.
        fraction: Fraction of the documents, the first ceil(fraction · n) of them, as the harness's `--limit` takes it.
        documents: Number of documents instead of a fraction.
        batch_size: For these tasks alone.
        generation: Changes to the task's generation arguments.
    """

    tasks: list[str]
    metric: str | None = None
    filter: str | None = None
    shots: int | None = None
    fraction: float = 1.0
    documents: int | None = None
    batch_size: int | str | None = None
    generation: dict[str, Any] | None = None

    def limit(self, num_documents: int) -> int | None:
        """Return how many of the first documents are used, as an exact count; None is all of them."""
        if self.documents is not None:
            return min(self.documents, num_documents)
        return None if self.fraction >= 1 else math.ceil(num_documents * self.fraction)


@dataclass
class Suite:
    """A set of columns, as one file of `configs/evaluation/` gives it.

    Attributes:
        name: Of the suite.
        columns: By the table's column names.
        protocol: What was chosen.
        tables: The tables of the paper that it fills.
        seed: Of Python, NumPy, torch and of the choice of few-shot examples; set again before every task.
        batch_size: A number, `auto` or `auto:N`.
        dtype: Of the weights; None is what the run was trained in, else the model's own.
        include_path: Folders with task files; relative to the suite's file.
        data_files: task → split → local file(s), instead of the task's data; relative to the suite's file. The name
            of a task may be a pattern, such as `tydiqa_*`.
        trial: Something was left out: the results are kept apart.
        metadata: Handed to the tasks, as the harness's `--metadata`; relative paths are from the current folder.
    """

    name: str
    columns: dict[str, Column]
    protocol: str = "corrected"
    tables: list[str] = field(default_factory=list)
    seed: int = 42
    batch_size: int | str = "auto"
    dtype: WeightDType | None = None
    include_path: list[str] = field(default_factory=list)
    data_files: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    trial: bool = False

    def files_of(self, task: str) -> dict[str, list[str]] | None:
        """The local files of a task: by its name, else by the first pattern that it matches."""
        if task in self.data_files:
            return self.data_files[task]
        return next((files for pattern, files in self.data_files.items() if fnmatch(task, pattern)), None)

    def only(self, names: list[str]) -> None:
        """Keep only these tasks, and the columns that still have one: a trial, if that leaves something out.

        Raises:
            UserError: One of them is not in the suite.
        """
        own = [task for column in self.columns.values() for task in column.tasks]
        for name in names:
            if name not in own:
                raise UserError(f"The suite {self.name} has no task {name}. It has: {', '.join(own)}.")
        self.trial |= set(own) != set(names)
        for column in self.columns.values():
            column.tasks = [task for task in column.tasks if task in names]
        self.columns = {name: column for name, column in self.columns.items() if column.tasks}


def suite_path(suite: str) -> Path:
    """The file of a suite: of that name in `configs/evaluation/`, or the path itself."""
    return Path(suite) if suite.endswith((".yaml", ".yml")) else CONFIGS / "evaluation" / f"{suite}.yaml"


def load_suite(name: str, protocol: str = "corrected") -> Suite:
    """Read a suite under one protocol.

    Args:
        name: Of a file in `configs/evaluation/`, or the path of another.
        protocol: One of `PROTOCOLS`. Its section under `protocols:` changes `fraction` and single columns.

    Raises:
        UserError: There is no such suite or protocol, or the file is not a suite.
    """
    path = suite_path(name)
    if not path.is_file():
        known = sorted(file.stem for file in (CONFIGS / "evaluation").glob("*.yaml"))
        raise UserError(f"There is no suite {name}. Known: {', '.join(known)}; or give the path of a YAML file.")
    content = read_mapping(path)
    changes = content.pop("protocols", None) or {}
    if not isinstance(changes, dict):
        raise UserError(f"{path}: protocols is {changes!r}; a mapping from a protocol to its changes was expected.")
    if protocol not in PROTOCOLS or (protocol != "corrected" and protocol not in changes):
        known = ", ".join(["corrected", *(key for key in changes if key != "corrected")])
        raise UserError(f"The suite {path} has no protocol {protocol}. It has: {known}.")
    suite = _parse_suite(path, content, changes.get(protocol) or {})
    suite.protocol = protocol
    suite.include_path = [str(path.parent / folder) for folder in suite.include_path]
    return suite


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: It is missing, no YAML, or no mapping.
    """
    if not path.is_file():
        raise UserError(f"The file {path} does not exist.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is empty or no mapping.")
    return content


def absolute_files(data_files: dict[str, Any], origin: Path) -> dict[str, dict[str, list[str]]]:
    """Make the paths of a `data_files` section absolute, from the folder of the file that holds it.

    Raises:
        UserError: It is not a mapping task → split → file(s), or a file is missing.
    """
    result: dict[str, dict[str, list[str]]] = {}
    if not isinstance(data_files, dict):
        raise UserError(f"{origin}: data_files must map tasks to splits, such as `boolq: {{validation: boolq.jsonl}}`.")
    for task, splits in data_files.items():
        if not isinstance(splits, dict):
            raise UserError(f"{origin}: data_files.{task} must map splits to files, such as `validation: boolq.jsonl`.")
        for split, files in splits.items():
            if not isinstance(files, (str, list)) or not all(isinstance(name, str) for name in files):
                raise UserError(f"{origin}: data_files.{task}.{split} is {files!r}; a file or a list was expected.")
            names = [files] if isinstance(files, str) else list(files)
            paths = [(origin.parent / name).expanduser().resolve() for name in names]
            for file in paths:
                if not file.is_file():
                    raise UserError(f"{origin}: data_files.{task}.{split} names {file}, which does not exist.")
            result.setdefault(task, {})[split] = [str(file) for file in paths]
    return result


def _parse_suite(path: Path, content: dict[str, Any], changes: dict[str, Any]) -> Suite:
    if not isinstance(changes, dict):
        raise UserError(f"{path}: what a protocol changes must be a mapping with fraction and columns.")
    unknown = set(changes) - {"fraction", "columns"}
    if unknown:
        raise UserError(f"{path}: a protocol can change fraction and columns, not {', '.join(sorted(unknown))}.")
    columns = content.get("columns")
    if not isinstance(columns, dict) or not columns:
        raise UserError(f"The suite {path} has no columns.")
    changed = changes.get("columns") or {}
    for name, column in [*columns.items(), *(changed.items() if isinstance(changed, dict) else [("columns", changed)])]:
        if not isinstance(column, dict | None):
            raise UserError(f"{path}: the column {name} is {column!r}; a mapping with its `tasks` was expected.")
    if extra := set(changed) - set(columns):
        raise UserError(f"{path}: a protocol changes the column {sorted(extra)[0]}, which the suite does not have.")
    merged = {}
    for name, column in columns.items():
        shared = {"fraction": changes["fraction"]} if "fraction" in changes else {}
        merged[name] = {"tasks": [], **(column or {}), **shared, **(changed.get(name) or {})}
    data_files = absolute_files(content.pop("data_files", None) or {}, path)
    suite = _parse(str(path), {"name": path.stem, **content, "data_files": data_files, "columns": merged})
    check_suite(suite, str(path))
    return suite


def check_suite(suite: Suite, origin: str) -> None:
    """Refuse a suite that cannot be evaluated.

    Raises:
        UserError: A name that files cannot have, a column without a task, a fraction, count, seed or batch size outside
            its range, or a task in two columns.
    """
    refuse_name(suite.name, origin)
    if not 0 <= suite.seed < 2**32:
        raise UserError(f"{origin}: the seed is {suite.seed}; it must be in [0, 2³²), as NumPy's generator wants it.")
    if not suite.columns:
        raise UserError(f"{origin}: the suite {suite.name} has no task.")
    for size in (suite.batch_size, *(column.batch_size for column in suite.columns.values())):
        if size is not None and not re.fullmatch(r"[1-9]\d*|auto(:\d+(\.\d+)?)?", str(size)):
            raise UserError(f"{origin}: the batch size is {size}; a number, auto or auto:N was expected.")
    owner: dict[str, str] = {}
    for name, column in suite.columns.items():
        if not column.tasks:
            raise UserError(f"{origin}: the column {name} has no task. Give it one, or remove the column.")
        if not 0 < column.fraction <= 1:
            raise UserError(f"{origin}: the column {name} has fraction {column.fraction}; it must be in (0, 1].")
        if column.documents is not None and column.documents < 1:
            raise UserError(f"{origin}: the column {name} has documents {column.documents}; it must be at least 1.")
        if column.shots is not None and column.shots < 0:
            raise UserError(f"{origin}: the column {name} has shots {column.shots}; it must be at least 0.")
        for task in column.tasks:
            if task in owner:
                raise UserError(f"{origin}: the task {task} is in the columns {owner[task]} and {name}; put it in one.")
            owner[task] = name


def _parse(where: str, content: dict[str, Any]) -> Suite:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--suite", type=Suite)
    try:
        return parser.instantiate(parser.parse_object({"suite": content})).suite
    except ArgumentError as error:
        raise UserError(f"{where} is not a suite:\n{error}") from None
