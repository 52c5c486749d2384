"""The manifest of a corpus or token folder: what it was made from, what is in it, and the hash of every file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from forgetting.artifacts import hash_content, hash_file, inside, read_json, refuse_changed, verify_manifest
from forgetting.errors import UserError

NAME = "manifest.json"
PREFIXES = {"corpus": "", "tokens": "tokens-"}


def folder_name(kind: str, identity: dict[str, Any]) -> str:
    """The name of a folder of a kind (`corpus` or `tokens`) that is made from `identity`."""
    return PREFIXES[kind] + hash_content(identity)[:12]


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file, for a split's entry in the manifest."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)} for name in sorted(names)
    }


def split_folder(folder: Path, manifest: dict[str, Any], split: str) -> Path:
    """The folder of a split.

    Raises:
        UserError: There is no such split.
    """
    if split not in manifest["splits"]:
        raise UserError(f"{folder} has no split {split!r}; it has {', '.join(manifest['splits'])}.")
    return inside(folder, split)


def read_manifest(folder: Path, kind: str, version: int, command: str) -> dict[str, Any]:
    """Read a folder's manifest and verify it: it is unchanged, the folder is the one it describes, and so is each file.

    Files are hashed once: `hash_file` remembers the hash of a file that has not been touched since.

    Args:
        folder: A corpus or token folder.
        kind: What it is expected to hold, `corpus` or `tokens`.
        version: The expected version of its format.
        command: What makes it again.

    Raises:
        UserError: The manifest or a file is missing, damaged, changed, or another's; how to fix it.
    """
    remedy = f"Remove it (rm -r {folder}) and make it again: {command}."
    if not (folder / NAME).is_file():
        raise UserError(f"{folder} is not a complete {kind}: it has no {NAME}. {remedy}")
    manifest = read_json(folder / NAME, dict, ("kind", "format"), remedy)
    if manifest["kind"] != kind or manifest["format"] != version:
        raise UserError(
            f"{folder} is not a {kind} of format {version} (found {manifest['kind']} of format {manifest['format']}). "
            f"{remedy}"
        )
    verify_manifest(folder / NAME, manifest, remedy)
    if folder.absolute().name != (name := folder_name(kind, manifest["identity"])):
        raise UserError(
            f"{folder} is not what its name says: it was made as {name}. Give it that name again, or move it away."
        )
    for split, entry in manifest["splits"].items():
        refuse_changed(folder, {f"{split}/{name}": file["sha256"] for name, file in entry["files"].items()}, remedy)
    return manifest
