"""Sources → conversations, with a record of what was really read and of what was dropped."""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets

from forgetting.artifacts import hash_file, read_json, write_json
from forgetting.corpus.configuration import Source
from forgetting.corpus.files import format_of, local_files, read_rows
from forgetting.corpus.hub import load_hub, resolved_commit
from forgetting.corpus.messages import Converter
from forgetting.corpus.pool import Conversations
from forgetting.corpus.trees import trees_of
from forgetting.errors import UserError

NOT_IDENTITY = ("path", "revision", "split", "config", "format")
SETTLED_NS = 2_000_000_000


@dataclass
class Located:
    """A source whose content is known by hash: what it is, before it is read."""

    source: Source
    files: list[Path] | None = None
    stats: list[dict[str, Any]] = field(default_factory=list)
    commit: str | None = None
    loaded: datasets.Dataset | None = None

    def identity(self) -> dict[str, Any]:
        """What the content depends on: the mapping, and the bytes or the commit. Not where the files lie."""
        mapping = {key: value for key, value in asdict(self.source).items() if key not in NOT_IDENTITY}
        if self.files is None:
            hub = {"path": self.source.path, "config": self.source.config, "split": self.source.split}
            return {**mapping, **hub, "commit": self.commit}
        formats = [self.source.format or format_of(file) for file in self.files]
        return {**mapping, "files": [[form, stat["sha256"]] for form, stat in zip(formats, self.stats, strict=True)]}

    def record(self) -> dict[str, Any]:
        """What is read, for the manifest."""
        if self.files is None:
            return {
                "hub": self.source.path,
                "config": self.source.config,
                "split": self.source.split,
                "commit": self.commit,
            }
        return {
            "files": [
                {"path": str(file), "bytes": stat["size"], "sha256": stat["sha256"]}
                for file, stat in zip(self.files, self.stats, strict=True)
            ]
        }


class Memory:
    """Hashes of local files and commits of hub data sets seen before, so that opening a corpus reads no source again.

    A file whose size and time of modification are unchanged is not hashed again. The commit is what a hub data set
    without network is taken to be at: the one last resolved. Losing this file loses nothing but time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.content = read_json(path)
        except UserError:
            self.content = {}
        self._changed = False

    def file(self, path: Path) -> dict[str, Any]:
        """Size, time of modification and SHA-256 of a file."""
        stat, key = path.stat(), str(path.resolve())
        known = self.content.get(key)
        if known is not None and known["size"] == stat.st_size and known["mtime_ns"] == stat.st_mtime_ns:
            return known
        found = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": hash_file(path)}
        if time.time_ns() - stat.st_mtime_ns > SETTLED_NS:  # else it may change again within the clock's resolution
            self._keep(key, found)
        return found

    def commit(self, source: Source) -> str | None:
        """The commit of a hub source: resolved now or, without network, when it last was."""
        key = f"hub:{source.path}@{source.revision or 'main'}"
        commit = resolved_commit(source)
        if commit is None:
            return self.content.get(key)
        self._keep(key, commit)
        return commit

    def save(self) -> None:
        """Write what is new."""
        if self._changed and os.access(self.path.parent if self.path.parent.exists() else ".", os.W_OK):
            write_json(self.path, self.content)

    def _keep(self, key: str, value: Any) -> None:
        if self.content.get(key) != value:
            self.content[key] = value
            self._changed = True


def locate(source: Source, memory: Memory) -> Located:
    """Find what a source is made of, by hash.

    Raises:
        UserError: A file or data set is missing, empty, gated or out of reach.
    """
    files = local_files(source)
    if files is not None:
        return Located(source, files=files, stats=[memory.file(file) for file in files])
    commit = memory.commit(source)
    if commit is None and source.revision is not None:
        raise UserError(
            f"Source {source.name!r}: the hub cannot be reached, so it is unknown which commit revision "
            f"{source.revision!r} of {source.path} is. Run once with network access, or give the full commit."
        )
    if commit is None:  # no network and never resolved: what the cache of `datasets` holds is what there is
        loaded, commit = load_hub(source, None)
        return Located(source, commit=commit, loaded=loaded)
    return Located(source, commit=commit)


@dataclass
class Read:
    """The conversations of a source, and the counts of its rows."""

    conversations: Conversations
    num_rows: int
    dropped: dict[str, Counter[str]]


def read_source(located: Located, seed: int) -> Read:
    """All usable conversations of a source, `size` of them where it is given.

    Raises:
        UserError: A column or a file is wrong, or no row has a usable conversation.
    """
    source = located.source
    dropped: dict[str, Counter[str]] = defaultdict(Counter)
    conversations, num_rows = Conversations(), 0
    for where, columns, rows in _tables(located):
        converter = Converter(source, columns, where, dropped)
        start = num_rows

        def counted(rows: Iterator[dict[str, Any]] = rows) -> Iterator[dict[str, Any]]:
            nonlocal num_rows
            for row in rows:
                num_rows += 1
                yield row

        numbered: Iterator[tuple[int, dict[str, Any]]] = (
            trees_of(counted(), "parent_id") if source.tree == "parent_id" else enumerate(counted())
        )
        for number, row in numbered:
            for conversation in converter.convert(row, start + number):
                conversations.append(conversation)
    for file, stat in zip(located.files or [], located.stats, strict=True):
        now = file.stat()
        if (now.st_size, now.st_mtime_ns) != (stat["size"], stat["mtime_ns"]):
            raise UserError(f"Source {source.name!r}: {file} changed while it was read. Run the command again.")
    if not conversations:
        reasons = sum(dropped.values(), Counter())
        why = ", ".join(f"{reason} ({number:,})" for reason, number in reasons.most_common()) or "there are no rows"
        raise UserError(
            f"Source {source.name!r}: none of its {num_rows:,} rows has a usable conversation: {why}. "
            "Check the mapping and the files."
        )
    if source.size is not None:
        conversations = conversations.sampled(source.size, seed, source.name)
    return Read(conversations, num_rows, dropped)


def _tables(located: Located) -> Iterator[tuple[str, list[str], Iterator[dict[str, Any]]]]:
    if located.files is not None:
        for file in located.files:
            yield str(file), *read_rows(located.source, file)
        return
    loaded = located.loaded
    if loaded is None:
        loaded, _ = load_hub(located.source, located.commit)
    yield str(located.source.path), loaded.column_names, (dict(row) for row in loaded)
