"""Files and folders that are complete or absent, and the hashes by which one artifact names another.

Every artifact of a run goes through here: what is written appears whole under its name or not at all, what is read is
of the shape that is expected, and what a manifest names by hash is checked against its bytes.
"""

import glob
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from forgetting.errors import UserError

SETTLED_NS = 2_000_000_000
"""A file modified less than this ago may change again within the clock's resolution: its hash is not remembered."""

REMEDY = "Remove it and make it again."


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it becomes `path`, on failure it is removed.

    The file is flushed to disk before the rename, so a crash leaves the old file or the new one, never half of one.
    What a killed process left of an earlier try is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def complete_folder(folder: Path, named_by_content: bool = True) -> Iterator[Path]:
    """Yield a temporary folder next to `folder`; on success it becomes `folder`, on failure it is removed.

    Args:
        folder: The folder.
        named_by_content: Where another process was faster, its folder stays and ours is removed: the two are the same.
            Otherwise its folder stays, and that is an error.

    Raises:
        UserError: The folder was made by another process and may hold something else, or it cannot be replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(folder)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        try:
            os.rename(temporary, folder)
        except OSError as error:
            if not folder.is_dir():
                raise
            if not named_by_content:
                raise UserError(
                    f"{folder} cannot be replaced ({error.strerror}): another process made it in the meantime, or it "
                    "is a link or a mount. It is left as it is; give another name, or that of a new folder in it."
                ) from None
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A name next to `path` that says whose it is; leftovers of this host's dead processes are removed."""
    host = socket.gethostname()
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        maker, _, number = left.name.removeprefix(f".{path.name}.").removesuffix(".partial").rpartition("~")
        name, _, process = maker.rpartition("~")
        if number and name == host and process.isdigit() and not is_alive(int(process)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{host}~{os.getpid()}~{uuid.uuid4().hex[:12]}.partial")


def is_alive(process: int) -> bool:
    """Tell whether a process of this number runs on this host."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, complete or not at all."""
    with complete_or_absent(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, complete or not at all. NaN is refused: it is not JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_yaml(path: Path, content: Any) -> None:
    """Write `content` as YAML in the order of its keys, complete or not at all."""
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def read_json(path: Path, expected: type = dict, keys: Iterable[str] = (), remedy: str = REMEDY) -> Any:
    """Read JSON of a known shape.

    Args:
        path: The file.
        expected: `dict` or `list`.
        keys: What a dict holds at least.
        remedy: What to do where the file is not what it should be.

    Raises:
        UserError: The file is missing, no valid JSON (cut short, say), or of another shape.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): it may be cut short or damaged. {remedy}") from None
    if not isinstance(content, expected):
        raise UserError(
            f"{path} holds a JSON {_kind(content)} where {_kind(expected())} was expected: it is damaged, or was not "
            f"written by this program. {remedy}"
        )
    if missing := [key for key in keys if key not in content]:
        raise UserError(
            f"{path} lacks {', '.join(missing)}: it is damaged, or was written by another version of this program. "
            f"{remedy}"
        )
    return content


def _kind(content: Any) -> str:
    return {dict: "object", list: "array", str: "string", bool: "boolean"}.get(type(content), "number or null")


def write_manifest(path: Path, content: dict[str, Any]) -> None:
    """Write a manifest, with a hash of its own content, so that a change of it is noticed too."""
    write_json(path, {**content, "hash": hash_content(content)})


def verify_manifest(path: Path, content: dict[str, Any], remedy: str) -> None:
    """Compare a manifest that was read with the hash of its own content, which is taken out.

    Raises:
        UserError: It is not as `write_manifest` wrote it.
    """
    if content.pop("hash", None) != hash_content(content):
        raise UserError(f"{path} was changed or damaged since it was written. {remedy}")


def refuse_another(folder: Path, what: str, settings: Mapping[str, Any]) -> None:
    """Refuse a folder that is there but was made with other settings, or changed since.

    Args:
        folder: With a manifest that has `settings` and the `files` by their hashes.
        what: It should hold, for messages.
        settings: That it should have been made with.

    Raises:
        UserError: It is no such folder, or another, or something in it was changed.
    """
    remedy = f"Remove the {what} (rm -r {folder}) to make it again, or write to another folder."
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{folder} is there, but it is no {what}: it has no manifest.json. Move it away.")
    manifest = read_json(path, dict, ("settings", "files"), remedy)
    if manifest["settings"] != settings:
        raise UserError(f"{folder} holds a {what} that was made with other settings or by another version. {remedy}")
    verify_manifest(path, manifest, remedy)
    refuse_changed(folder, manifest["files"], remedy)


def hashes_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by relative path."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hash_file(file) for file in files}


def inside(root: Path, name: str) -> Path:
    """`root / name`, refused where it would lie outside of `root`: names come from configurations and from files.

    Raises:
        UserError: The name is empty, absolute, or climbs out.
    """
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise UserError(f"{name!r} is no name of something inside {root}: it must be relative and without '..'.")
    return root / name


def hash_content(content: Any) -> str:
    """SHA-256 of JSON-serializable `content`, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes; remembered, so that a file which has not been touched since is not read again.

    "Not touched" means the same size, inode and times of modification and of change, to the nanosecond. What is
    remembered lies in the user's cache folder; losing it loses nothing but time.
    """
    path = path.resolve()
    stat = path.stat()
    state = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
    memory = _cache() / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):  # absent, unreadable or cut short: hash again
        remembered = json.loads(memory.read_text(encoding="utf-8"))
        if remembered["state"] == state:
            return str(remembered["sha256"])
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > SETTLED_NS:
        with suppress(OSError):  # no room or no permission: nothing is lost but time
            write_json(memory, {"path": str(path), "state": state, "sha256": sha256})
    return sha256


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forgetting" / "hashes"


def refuse_changed(folder: Path, files: Mapping[str, str], remedy: str) -> None:
    """Compare files with the hashes that a manifest has for them.

    Args:
        folder: Where they lie.
        files: SHA-256 by relative path.
        remedy: What to do where one differs.

    Raises:
        UserError: A file is missing, or its bytes are not those that were written.
    """
    for name, sha256 in files.items():
        path = inside(folder, name)
        if not path.is_file():
            raise UserError(f"{path} is missing. {remedy}")
        if hash_file(path) != sha256:
            raise UserError(f"{path} was changed or damaged since it was written: its SHA-256 is another. {remedy}")
