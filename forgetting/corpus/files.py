"""Local JSON, JSON Lines, CSV, TSV and Parquet files of a source: their order, and their rows exactly as they stand.

Text formats are read here and not by `datasets`: its readers turn the strings "None", "NA" and "null" of a CSV file
into missing values, dates into timestamps and 007 into 7, and drop or shift fields of a malformed line.
"""

import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from forgetting.corpus.configuration import Source
from forgetting.corpus.separated import separated_rows
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


def read_rows(source: Source, file: Path) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """The columns of a file and its rows. JSON files without a common schema name the columns of all their rows.

    Raises:
        UserError: The file is not what its format says; at what line and why.
    """
    form = source.format or format_of(file)
    if form is None:
        raise UserError(
            f"Source {source.name!r}: the format of {file} is not clear from its suffix. "
            f"Rename it to one of {', '.join(SUFFIXES)}, or give format."
        )
    where = f"Source {source.name!r}: {file}"
    if form not in ("csv", "tsv"):
        refuse_options(source, f"{file} is {form.upper()}", "CSV and TSV files", SEPARATED_OPTIONS)
    try:
        if form == "parquet":
            columns, rows = _parquet_rows(file, where)
        elif form in ("csv", "tsv"):
            quoted = source.quoted if source.quoted is not None else form == "csv"
            with _open(file, newline="" if quoted else "\n") as text:
                columns, rows = separated_rows(source, text, form, quoted, where)
            _refuse_repeated(columns, where)
        else:
            columns, rows = _json_rows(file, where)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 text ({error.reason} at byte {error.start}). Convert it to UTF-8."
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{where} is not a complete gzip file ({error}). Fetch it again.") from None
    if not columns:
        raise UserError(f"{where} has no rows.")
    return columns, rows


def _open(file: Path, newline: str | None = None) -> TextIOWrapper:
    if file.suffix.lower() == ".gz":
        return cast(TextIOWrapper, gzip.open(file, "rt", encoding="utf-8-sig", newline=newline))
    return file.open(encoding="utf-8-sig", newline=newline)


def _json_rows(file: Path, where: str) -> tuple[list[str], Iterator[dict[str, Any]]]:
    with _open(file, newline="\n") as text:
        start = text.read(64).lstrip()
        text.seek(0)
        numbered: list[tuple[int, Any]] = []
        if start.startswith("["):
            unit = "item"
            try:
                numbered = list(enumerate(json.load(text), 1))
            except UnicodeDecodeError:
                raise
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not valid JSON ({_reason(error)}). It may be cut short.") from None
        else:
            unit = "line"
            for number, line in enumerate(text, 1):
                if not line.strip():
                    continue
                try:
                    numbered.append((number, json.loads(line.rstrip())))
                except (ValueError, RecursionError) as error:
                    reason = _reason(error).replace(": line 1 column", " at column")
                    raise UserError(
                        f"{where}, line {number}: not valid JSON ({reason}). Expected one JSON object a line, or one "
                        "array of objects."
                    ) from None
    _refuse_rows_by_name(numbered, where)
    columns: dict[str, None] = {}
    for number, row in numbered:
        if not isinstance(row, dict):
            raise UserError(f"{where}, {unit} {number}: found a {type(row).__name__}, expected a JSON object.")
        columns.update(dict.fromkeys(row))
    names = list(columns)
    return names, ({name: row.get(name) for name in names} for _, row in numbered)


def _refuse_rows_by_name(numbered: list[tuple[int, Any]], where: str) -> None:
    """Refuse `{"id1": {...}, "id2": {...}}`, which would be one row with a column per name."""
    if len(numbered) != 1 or not isinstance(content := numbered[0][1], dict):
        return
    if len(content) > 1 and all(isinstance(value, dict) for value in content.values()):
        names = ", ".join(map(repr, list(content)[:3]))
        raise UserError(
            f"{where} is one JSON object that holds {len(content):,} rows by name ({names}, ...). Expected an array of "
            "rows, or one row a line: write the object's values as an array."
        )


def _reason(error: Exception) -> str:
    return "it is nested too deeply to be read" if isinstance(error, RecursionError) else str(error)


def _parquet_rows(file: Path, where: str) -> tuple[list[str], Iterator[dict[str, Any]]]:
    def damaged(error: Exception) -> UserError:
        return UserError(f"{where} is not a Parquet file, or not a whole one ({error}). Fetch or make it again.")

    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise damaged(error) from None

    def rows() -> Iterator[dict[str, Any]]:
        try:
            for batch in table.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise damaged(error) from None

    names = table.schema_arrow.names
    _refuse_repeated(names, where)
    return names, rows()


def _refuse_repeated(columns: list[str], where: str) -> None:
    if repeated := sorted({name for name in columns if columns.count(name) > 1}):
        raise UserError(f"{where}: the column {repeated[0]!r} is there twice; columns must have different names.")
