"""The results file of a suite: its columns from the tasks, and the content of an earlier one."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.artifacts import read_json, write_json
from forgetting.errors import UserError
from forgetting.evaluation.naming import results_name
from forgetting.machine import versions

if TYPE_CHECKING:
    from forgetting.evaluation.suite import Suite
    from forgetting.evaluation.tasks import PreparedTask

FORMAT = 1


def results_path(folder: Path, suite: "Suite", chat: bool = False) -> Path:
    """Path of a suite's results; those of a trial never stand in for it. A `.json` file is taken as it is."""
    return folder if folder.suffix == ".json" else folder / results_name(suite.name, suite.protocol, suite.trial, chat)


def read_results(path: Path, remedy: str) -> dict[str, Any]:
    """Read a results file.

    Raises:
        UserError: It is missing, damaged, or not as `write_results` writes it.
    """
    content = read_json(path, dict, ("format", "suite", "protocol", "target", "columns", "tasks"), remedy)
    columns, tasks = content["columns"], content["tasks"]
    sound = (
        content["format"] == FORMAT
        and all(isinstance(content[key], dict) for key in ("target", "columns", "tasks"))
        and all(isinstance(column, dict) and isinstance(column.get("tasks"), list) for column in columns.values())
        and all(isinstance(task, dict) and {"status", "identity", "metric"} <= set(task) for task in tasks.values())
    )
    if not sound:
        raise UserError(f"{path} is not as `evaluate` writes it: it is damaged, or of another version. {remedy}")
    return content


def earlier_results(path: Path) -> dict[str, Any] | None:
    """Read a results file before it is written again; None where there is none, or a damaged one."""
    try:
        return read_results(path, "")
    except UserError:  # its tasks are kept in files of their own: writing it again loses nothing
        return None


def refuse_another_suite(path: Path, suite: "Suite") -> None:
    """Refuse to replace the results of another suite that happens to have the same name.

    Raises:
        UserError: The file there has no column in common with the suite.
    """
    before = earlier_results(path)
    if before and not set(before["columns"]) & set(suite.columns):
        raise UserError(
            f"{path} holds the results of another suite called {suite.name}, with the columns "
            f"{', '.join(before['columns'])} and not {', '.join(suite.columns)}. Give this suite another `name:`, or "
            "give --output."
        )


def write_results(
    path: Path, target: dict[str, Any], suite: "Suite", prepared: "list[PreparedTask]", tasks: dict[str, Any],
    settings: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Put the columns together and write the results file.

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
        "versions": versions("lm_eval"),
        **settings,
        "device": next((entry["device"] for entry in tasks.values() if "device" in entry), None),
        "seconds": round(math.fsum(entry.get("seconds", 0) for entry in tasks.values()), 3),
    }
    write_json(path, content)
    return content


def differences(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Describe the differences of two results of one suite that their numbers depend on; empty where there are none.

    Tasks that only one of them finished are no difference.
    """
    tasks = before["tasks"]
    changed = [
        name for name, entry in after["tasks"].items()
        if name in tasks and tasks[name]["status"] == "ok" and tasks[name]["identity"] != entry["identity"]
    ]  # fmt: skip
    settings = [
        {key: content.get(key) for key in ("dtype", "batch_size", "seed")}
        | {"chat template": content.get("apply_chat_template", False)}
        | _hashes(content["target"])
        for content in (before, after)
    ]
    changes = [f"{key} {old} → {settings[1][key]}" for key, old in settings[0].items() if old != settings[1][key]]
    if gone := [name for name in before["columns"] if name not in after["columns"]]:
        changes.append(f"columns without {', '.join(gone)}")
        return ", ".join(changes)
    return (", ".join(changes) or f"another {changed[0]}") if changed else ""


def _hashes(target: dict[str, Any]) -> dict[str, Any]:
    parts = {key: target.get(key) for key in ("base", "adapter")}
    short = {key: str(part.get("hash"))[:12] if isinstance(part, dict) else part for key, part in parts.items()}
    return {**short, "merged": target.get("merged")}


def _column(name: str, prepared: "list[PreparedTask]", tasks: dict[str, Any]) -> dict[str, Any]:
    """The mean over a column's tasks, in percent. It has no value when one of them failed."""
    members = [task for task in prepared if task.column == name]
    entries = [tasks[task.name] for task in members]
    values = [entry["metrics"].get(task.metric) for task, entry in zip(members, entries, strict=True)]
    errors = [entry["metrics"].get(f"{task.metric}_stderr") for task, entry in zip(members, entries, strict=True)]
    return {
        "value": None if None in values else 100 * math.fsum(values) / len(values),
        "stderr": None if None in errors else 100 * math.sqrt(math.fsum(error**2 for error in errors)) / len(errors),
        "documents": sum(entry["documents"] for entry in entries),
        "tasks": [task.name for task in members],
        "metric": members[0].metric,
    }
