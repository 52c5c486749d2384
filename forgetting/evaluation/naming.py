"""Names of an evaluation's files, and the folder of a model that is no run."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from forgetting.artifacts import inside
from forgetting.errors import UserError
from forgetting.paths import is_local

HUB_ID = r"(?!.*(--|\.\.))\w[\w.-]*(/\w[\w.-]*)?"
"""The hub allows neither `--` nor `..` in a name."""

LONGEST = 100


def results_name(suite: str, protocol: str, trial: bool = False, chat: bool = False) -> str:
    """The results file of a suite under a protocol: `results.<suite>[.<protocol>][.chat][.trial].json`.

    A suite's name has no dot (`refuse_name`), so two of them never share a file.
    """
    parts = ["results", suite, *([] if protocol == "corrected" else [protocol])]
    return ".".join([*parts, *(["chat"] if chat else []), *(["trial"] if trial else []), "json"])


def suites_in(folder: Path, protocol: str, chat: bool = False) -> list[str]:
    """The suites that a folder holds results of, under a protocol, with the chat template or without; trials apart."""
    names = [path.name.split(".")[1] for path in folder.glob("results.*.json")]
    files = {name: folder / results_name(name, protocol, chat=chat) for name in names if name != "json"}
    return sorted(name for name, file in files.items() if file.is_file())


def refuse_name(suite: str, origin: str) -> None:
    """Refuse a suite's name that cannot be part of a file's name.

    Raises:
        UserError: It is empty, too long, or holds something else than letters, digits and `_=+,-`.
    """
    if not re.fullmatch(r"[\w=+,-]+", suite) or len(suite) > LONGEST:
        raise UserError(
            f"{origin}: the suite is called {suite!r}; its results file takes that name, so it must be of letters, "
            f"digits and _=+,- and at most {LONGEST} characters. Put a `name:` into the suite, or rename its file."
        )


def name_of_tasks(tasks: Sequence[str], shots: int | None) -> str:
    """Name the suite of `--tasks` without `--suite`: by its tasks, or by a hash where they do not fit."""
    name = f"tasks={'+'.join(tasks)}" + ("" if shots is None else f",shots={shots}")
    if re.fullmatch(r"[\w=+,-]+", name) and len(name) <= LONGEST:
        return name
    return f"tasks={hashlib.sha256(name.encode()).hexdigest()[:16]}"


def task_path(folder: Path, task: str, identity: str) -> Path:
    """Path of a finished task, next to the results in `folder`: `samples/<task>/<its identity>.jsonl`.

    Raises:
        UserError: The task's name would lead out of the folder.
    """
    return inside(folder / "samples", task) / f"{identity[:16]}.jsonl"


def base_folder(target: str) -> Path:
    """Folder of the results of a model that is no run, below the root of all runs: `base/<name>`.

    A model on the hub is `org--model`. A folder is `folder=` with the path from the current folder, or the absolute
    one where it lies elsewhere: `/` becomes `--`, and a part that would be ambiguous is escaped. Two models have
    one name only if they are one: the hub has neither `--` nor `=` in its names.

    Args:
        target: Hub id or folder.

    Raises:
        UserError: It is neither.
    """
    if not is_local(target):
        if not re.fullmatch(HUB_ID, target):
            raise UserError(
                f"There is no folder {target}, and a model on the hub cannot be called so: an id such as "
                "meta-llama/Llama-3.2-1B, or the path of a folder, was expected."
            )
        return Path("base") / target.replace("/", "--")
    path, here = Path(target).expanduser().resolve(), Path.cwd().resolve()
    parts = path.relative_to(here).parts if path.is_relative_to(here) else ("", *path.parts[1:])
    name = "folder=" + ("--".join(map(_escaped, parts)) if parts else ".")
    if len(name) > 200:  # a file system's limit is 255 bytes
        name = f"{name[:150]}={hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return Path("base") / name


def _escaped(part: str) -> str:
    text = quote(part, safe="")
    return text.replace("-", "%2D") if "--" in text or text.startswith("-") or text.endswith("-") else text
