"""Finished tasks: each in one file of its own, with the records of its documents, so that no launch loses another's."""

import hashlib
import json
from pathlib import Path
from typing import Any

from forgetting.artifacts import complete_or_absent
from forgetting.errors import UserError


def write_task(path: Path, entry: dict[str, Any], records: list[dict[str, Any]], whole: bool) -> None:
    """Write a finished task: a line with its entry in the results file, then one line per document.

    The two are one file, so they always belong together, also where two launches finish the same task at once.

    Args:
        path: Of `task_path`.
        entry: With the task's `identity`.
        records: Score, target and answer of each document, with the document and the prompt.
        whole: Keep document and prompt, too.
    """
    kept = records if whole else [{k: v for k, v in record.items() if k not in ("doc", "prompt")} for record in records]
    lines = "".join(json.dumps(record, ensure_ascii=False, default=_plain) + "\n" for record in kept)
    head = {"entry": entry, "sha256": _hash(entry, lines)}
    with complete_or_absent(path) as temporary:
        temporary.write_text(json.dumps(head, ensure_ascii=False) + "\n" + lines, encoding="utf-8", newline="\n")


def read_task(path: Path, identity: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The entry of a finished task and its documents' records, in the order of the documents.

    Raises:
        UserError: The file is missing, damaged, or of a task with another identity.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing.")
    damaged = UserError(f"{path} is damaged: it is empty, cut short or changed.")
    try:
        first, _, lines = path.read_text(encoding="utf-8").partition("\n")
        head = json.loads(first)
        entry = head["entry"]
        if head["sha256"] != _hash(entry, lines):
            raise damaged
        if entry["identity"] != identity:
            raise UserError(f"{path} is of another evaluation.")
        return entry, [json.loads(line) for line in lines.split("\n")[:-1]]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise damaged from None


def finished_task(path: Path, identity: str, whole: bool) -> dict[str, Any] | None:
    """The entry of a task that an earlier launch finished; None where it must be run (again).

    Args:
        path: Of `task_path`.
        identity: Of the task.
        whole: Documents and prompts are needed, too.
    """
    try:
        entry, records = read_task(path, identity)
    except UserError:  # missing or damaged: running it again makes it whole
        return None
    return entry if not whole or all("prompt" in record for record in records) else None


def _hash(entry: dict[str, Any], lines: str) -> str:
    text = json.dumps(entry, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(f"{text}\n{lines}".encode()).hexdigest()


def _plain(value: Any) -> Any:
    """NumPy numbers and arrays as JSON knows them."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
