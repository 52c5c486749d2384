"""`results.json`: its place, what was finished before, and the columns from the tasks."""

import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

from forgetting.artifacts import complete_or_absent, read_json, write_json
from forgetting.evaluation.suite import Suite
from forgetting.evaluation.tasks import PreparedTask

FORMAT = 1


def results_path(folder: Path, suite: Suite) -> Path:
    """Where the results of a suite are; those of a trial never stand in for it. A `.json` file is taken as it is."""
    return folder if folder.suffix == ".json" else folder / results_name(suite.protocol, suite.trial)


def results_name(protocol: str, trial: bool = False) -> str:
    """The file's name: `results[.<protocol>][.trial].json`."""
    parts = ["results", *([] if protocol == "corrected" else [protocol]), *(["trial"] if trial else [])]
    return ".".join([*parts, "json"])


def partial_path(path: Path) -> Path:
    """Where the tasks that are finished are kept while others still run."""
    return path.with_name(f".{path.stem}.partial.json")


def samples_path(path: Path, protocol: str, task: str) -> Path:
    """Where the records of a task's documents are, beside the results in `path`."""
    folder = "samples" if path.name == results_name(protocol) else f"{path.stem}.samples"
    return path.parent / folder / protocol / f"{task}.jsonl"


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {package: version(package) for package in ("lm_eval", "torch", "transformers", "peft", "datasets")}


def finished_tasks(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of earlier launches by the hash of what they depend on; those that failed are not among them."""
    entries: dict[str, dict[str, Any]] = {}
    for file in (path, partial_path(path)):
        if file.is_file():
            for entry in read_json(file).get("tasks", {}).values():
                if entry.get("status") == "ok" and "identity" in entry:
                    entries[entry["identity"]] = entry
    return entries


def write_records(path: Path, identity: str, records: list[dict[str, Any]], whole: bool) -> None:
    """One line a document: its score, target and answer; with `whole` the document and the prompt, too.

    `identity` says which entry of `results.json` the records belong to.
    """
    with complete_or_absent(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            kept = record if whole else {key: record[key] for key in record if key not in ("doc", "prompt")}
            file.write(json.dumps({"identity": identity[:12], **kept}, ensure_ascii=False, default=_plain) + "\n")


def holds_records(path: Path, identity: str, whole: bool) -> bool:
    """Whether a file holds the records of the entry with this identity, with documents and prompts if `whole`."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8") as file:
        record = json.loads(file.readline())
    return record["identity"] == identity[:12] and (not whole or "prompt" in record)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a task's documents, in the order of the documents."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_partial(path: Path, tasks: dict[str, Any]) -> None:
    """Keep what is finished."""
    write_json(partial_path(path), {"format": FORMAT, "tasks": tasks})


def write_results(
    path: Path, target: dict[str, Any], suite: Suite, prepared: list[PreparedTask], tasks: dict[str, Any],
    settings: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Put the columns together and write `results.json`.

    Args:
        path: Of the file.
        target: What was evaluated, with hashes.
        suite: What was run.
        prepared: Its tasks.
        tasks: Their entries.
        settings: Dtype, batch size and the like.

    Returns:
        What was written.
    """
    columns = {name: _column(name, prepared, tasks) for name in suite.columns}
    values = [column["value"] for column in columns.values()]
    content = {
        "format": FORMAT,
        "target": target,
        "suite": suite.name,
        "protocol": suite.protocol,
        "columns": columns,
        "average": None if None in values else math.fsum(values) / len(values),
        "tasks": tasks,
        "seed": suite.seed,
        "versions": versions(),
        **settings,
        "device": next((entry["device"] for entry in tasks.values() if "device" in entry), None),
        "seconds": round(math.fsum(entry.get("seconds", 0) for entry in tasks.values()), 3),
    }
    write_json(path, content)
    partial_path(path).unlink(missing_ok=True)
    return content


def _column(name: str, prepared: list[PreparedTask], tasks: dict[str, Any]) -> dict[str, Any]:
    """The mean over a column's tasks, in percent. It has no value when one of them failed."""
    mine = [one for one in prepared if one.column == name]
    entries = [tasks[one.name] for one in mine]
    values = [entry["metrics"].get(one.metric) for one, entry in zip(mine, entries, strict=True)]
    errors = [entry["metrics"].get(f"{one.metric}_stderr") for one, entry in zip(mine, entries, strict=True)]
    return {
        "value": None if None in values else 100 * math.fsum(values) / len(values),
        "stderr": None if None in errors else 100 * math.sqrt(math.fsum(error**2 for error in errors)) / len(errors),
        "documents": sum(entry["documents"] for entry in entries),
        "tasks": [one.name for one in mine],
        "metric": mine[0].metric,
    }


def _plain(value: Any) -> Any:
    """NumPy numbers and arrays as JSON knows them."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
