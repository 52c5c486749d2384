"""Sources → examples, with a record of what was really read and of what was dropped."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets

from forgetting.artifacts import hash_file, write_json
from forgetting.corpus.configuration import Source
from forgetting.corpus.files import format_of, local_files, read_rows
from forgetting.corpus.hub import COMMIT, load_hub, resolved_commit
from forgetting.corpus.messages import Converter
from forgetting.corpus.pool import Examples
from forgetting.corpus.trees import trees_of
from forgetting.errors import UserError
from forgetting.progress import progress

NOT_IDENTITY = ("path", "revision", "split", "config", "format", "unused_columns")


@dataclass
class ResolvedSource:
    """A source whose content is known by hash: what it is, before it is read."""

    source: Source
    files: list[Path] | None = None
    hashes: list[str] = field(default_factory=list)
    commit: str | None = None
    loaded: datasets.Dataset | None = None

    def identity(self) -> dict[str, Any]:
        """Everything that the content depends on: the mapping, and the bytes or the commit. Not where the files lie."""
        mapping = {key: value for key, value in asdict(self.source).items() if key not in NOT_IDENTITY}
        if self.files is None:
            hub = {"path": self.source.path, "config": self.source.config, "split": self.source.split}
            return {**mapping, **hub, "commit": self.commit}
        formats = [self.source.format or format_of(file) for file in self.files]
        return {**mapping, "files": [[form, sha256] for form, sha256 in zip(formats, self.hashes, strict=True)]}

    def record(self) -> dict[str, Any]:
        """Record of the files or the commit, for the manifest."""
        if self.files is None:
            return {
                "hub": self.source.path,
                "config": self.source.config,
                "split": self.source.split,
                "commit": self.commit,
            }
        return {
            "files": [
                {"path": str(file), "bytes": file.stat().st_size, "sha256": sha256}
                for file, sha256 in zip(self.files, self.hashes, strict=True)
            ]
        }


class SourceCache:
    """The commits at which hub data sets were last resolved, for when there is no network.

    Args:
        path: The file that remembers them. Without it, as where it is damaged, what the cache of `datasets` holds is
            taken when there is no network; with network nothing depends on it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content: Any = {}
        with suppress(OSError, ValueError, RecursionError):  # absent, unreadable or cut short: resolved again
            content = json.loads(path.read_text(encoding="utf-8"))
        known = content.items() if isinstance(content, dict) else ()
        self.commits = {key: value for key, value in known if isinstance(value, str) and COMMIT.fullmatch(value)}
        self._saved = dict(self.commits)

    def commit(self, source: Source) -> str | None:
        """The commit of a hub source: resolved now or, without network, when it last was."""
        key = f"hub:{source.path}@{source.revision or 'main'}"
        commit = resolved_commit(source)
        if commit is None:
            return self.commits.get(key)
        self.commits[key] = commit
        return commit

    def save(self) -> None:
        """Write what is new, where that is possible."""
        if self.commits != self._saved:
            with suppress(OSError):  # no permission or no room: a complete corpus opens all the same
                write_json(self.path, self.commits)


def resolve_source(source: Source, cache: SourceCache) -> ResolvedSource:
    """Find what a source is made of, by hash. Files that have not been touched are not read again.

    Raises:
        UserError: A file or data set is missing, empty, gated or out of reach.
    """
    files = local_files(source)
    if files is not None:
        return ResolvedSource(source, files=files, hashes=[hash_file(file) for file in files])
    commit = cache.commit(source)
    if commit is None and source.revision is not None:
        raise UserError(
            f"Source {source.name!r}: the hub cannot be reached, so it is unknown which commit revision "
            f"{source.revision!r} of {source.path} is. Run once with network access, or give the full commit."
        )
    if commit is None:  # no network and never resolved: what the cache of `datasets` holds is what there is
        loaded, commit = load_hub(source, None)
        return ResolvedSource(source, commit=commit, loaded=loaded)
    return ResolvedSource(source, commit=commit)


@dataclass
class LoadedSource:
    """Examples of a source, and the counts of its rows: all, dropped, with text in an unmapped column."""

    examples: Examples
    num_rows: int
    dropped: dict[str, Counter[str]]
    unmapped: Counter[str]


def read_source(resolved: ResolvedSource, seed: int) -> LoadedSource:
    """Read all usable examples of a source, `size` of them where it is given.

    Raises:
        UserError: A column or a file is wrong, or no row has a usable example.
    """
    source = resolved.source
    dropped: dict[str, Counter[str]] = defaultdict(Counter)
    unmapped: Counter[str] = Counter()
    examples, num_rows = Examples(), 0
    with progress(f"rows of {source.name} read") as advance:
        for where, columns, rows in _tables(resolved):
            converter = Converter(source, columns, where, dropped, unmapped)
            start = num_rows

            def counted(rows: Iterator[dict[str, Any]] = rows) -> Iterator[dict[str, Any]]:
                nonlocal num_rows
                for row in rows:
                    num_rows += 1
                    advance(1)
                    yield row

            numbered: Iterator[tuple[int, dict[str, Any]]] = (
                trees_of(counted(), "parent_id", dropped[source.name])
                if source.tree == "parent_id"
                else enumerate(counted())
            )
            for number, row in numbered:
                for example in converter.convert(row, start + number):
                    examples.append(example)
    for file, sha256 in zip(resolved.files or [], resolved.hashes, strict=True):
        if hash_file(file) != sha256:
            raise UserError(f"Source {source.name!r}: {file} changed while it was read. Run the command again.")
    if not examples:
        reasons = sum(dropped.values(), Counter())
        why = ", ".join(f"{reason} ({number:,})" for reason, number in reasons.most_common()) or "there are no rows"
        raise UserError(
            f"Source {source.name!r}: none of its {num_rows:,} rows has a usable example: {why}. "
            "Check the mapping and the files."
        )
    if source.size is not None:
        examples = examples.sampled(source.size, seed, source.name)
    return LoadedSource(examples, num_rows, dropped, unmapped)


def _tables(resolved: ResolvedSource) -> Iterator[tuple[str, list[str], Iterator[dict[str, Any]]]]:
    if resolved.files is not None:
        for file in resolved.files:
            yield str(file), *read_rows(resolved.source, file)
        return
    loaded = resolved.loaded
    if loaded is None:
        loaded, _ = load_hub(resolved.source, resolved.commit)
    yield str(resolved.source.path), loaded.column_names, (dict(row) for row in loaded)
