"""Local files of a source: their order and format."""

import glob
from pathlib import Path

from forgetting.corpus.configuration import Source
from forgetting.corpus.values import is_unicode
from forgetting.errors import UserError
from forgetting.paths import expanded, is_local

SUFFIXES = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
SEPARATED_OPTIONS = ("column_names", "quoted", "unescape")


def refuse_options(source: Source, found: str, proper: str, options: tuple[str, ...]) -> None:
    """Refuse options that mean nothing for what a source is.

    Raises:
        UserError: One of them is set.
    """
    for option in options:
        if getattr(source, option) not in (None, False):
            raise UserError(f"Source {source.name!r}: {option} is for {proper}, but {found}. Leave it out.")


def format_of(path: Path) -> str | None:
    """The format that a file's suffix stands for, .gz left aside."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def is_local_data(path: str) -> bool:
    """Return whether a path means local files (they exist, or it looks like nothing else), not a hub data set."""
    return is_local(path) or glob.has_magic(path) or format_of(Path(path)) is not None


def local_files(source: Source) -> list[Path] | None:
    """The files of a local source in a fixed order; None when its path is a hub id.

    Raises:
        UserError: A file is missing or empty, or a folder or pattern has no file of a known format.
    """
    patterns = [source.path] if isinstance(source.path, str) else source.path
    if isinstance(source.path, str) and not is_local_data(source.path):
        refuse_options(source, f"{source.path} is on the hub", "CSV and TSV files", (*SEPARATED_OPTIONS, "format"))
        return None
    found: list[Path] = []
    for pattern in patterns:
        path = expanded(pattern)
        if path.is_file():
            found.append(path)
        elif path.is_dir():
            inside = sorted(
                file for file in path.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(path))
            )
            inside = [file for file in inside if source.format is not None or format_of(file) is not None]
            if not inside:
                raise UserError(
                    f"Source {source.name!r}: the folder {pattern} holds no {', '.join(SUFFIXES)} file. "
                    "Name the files, or give their format."
                )
            found += inside
        elif glob.has_magic(pattern):
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
            if not matches:
                raise UserError(f"Source {source.name!r}: no file matches {pattern} (from {Path.cwd()}).")
            found += matches
        else:
            raise UserError(f"Source {source.name!r}: the file {pattern} does not exist (from {Path.cwd()}).")
    for file in found:
        if file.stat().st_size == 0:
            raise UserError(f"Source {source.name!r}: the file {file} is empty.")
        if not is_unicode(str(file)):
            raise UserError(f"Source {source.name!r}: the name of the file {str(file)!r} is not UTF-8. Rename it.")
    refuse_options(source, "its path is local", "data sets on the hub", ("config", "revision"))
    if source.split != "train":
        raise UserError(
            f"Source {source.name!r}: split {source.split!r} is for data sets on the hub, but its path is local. Name "
            "the file of that split as the path, and leave split out."
        )
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)
