"""The score store: named columns of every response token of a corpus, in shards that are complete or absent.

The columns are two models' nll, in nats, float32, and where asked for the base's without the prompt. A score is a
function of them (`scores.py`). A shard is an Arrow IPC file over a fixed range of examples, whatever the number of
ranks that write. It names in its own metadata what it was made from and the hash of its values, so a shard cannot be
mistaken for another's, nor for one that was damaged since.
`manifest.json` names the columns and closes the store.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from forgetting.artifacts import (
    complete_or_absent,
    hash_content,
    hash_file,
    read_json,
    refuse_changed,
    verify_manifest,
    write_manifest,
)
from forgetting.errors import UserError
from forgetting.method.scores import StoredTokens

MANIFEST = "manifest.json"
FORMAT = 4
COLUMNS = ("nll_base", "nll_reference")
"""What scoring writes."""
PROMPTLESS = "nll_promptless"
"""What it writes too where `data.promptless` asks for it."""


@dataclass  # not frozen: Lightning moves batches to a device by copying their dataclasses
class ShardRange:
    """Examples `first` to `last` (excluded) of a split."""

    split: str
    number: int
    first: int
    last: int

    @property
    def file(self) -> str:
        """The shard's place in the store."""
        return f"{self.split}/shard-{self.number:05d}.arrow"


def shard_ranges(split: str, num_examples: int, shard_size: int) -> list[ShardRange]:
    """Cut a split into ranges of `shard_size` examples (the last may be shorter)."""
    starts = range(0, num_examples, shard_size)
    return [ShardRange(split, n, a, min(a + shard_size, num_examples)) for n, a in enumerate(starts)]


def write_shard(
    folder: Path,
    shard: ShardRange,
    identity: dict[str, Any],
    num_targets: Int[np.ndarray, " examples"],
    columns: Mapping[str, Float[np.ndarray, " tokens"]],
) -> None:
    """Write a shard, complete or not at all.

    Args:
        folder: The store.
        shard: Its range.
        identity: What the columns are made from.
        num_targets: Response tokens of each example in the range.
        columns: Values by name, one per response token in corpus order.

    Raises:
        UserError: A value is not a finite number.
    """
    for name, values in columns.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"{name} is not a finite number in examples {shard.first} to {shard.last - 1} of {shard.split}. "
                "Nothing of them was written; score in float32 or bfloat16, and look at the model."
            )
    offsets = np.concatenate([[0], np.cumsum(num_targets)]).astype(np.int64)
    values = [column.astype(np.float32) for column in columns.values()]
    arrays = [pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(column)) for column in values]
    metadata = {
        "identity": hash_content(identity), "range": f"{shard.split}:{shard.first}:{shard.last}",
        "sha256": _hash_of_values(offsets, *values),
    }  # fmt: skip
    kind = pa.large_list(pa.float32())
    schema = pa.schema([(name, kind) for name in columns], metadata=metadata)
    batch = pa.record_batch(arrays, schema=schema)
    with (
        complete_or_absent(folder / shard.file) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        writer.write_batch(batch)


def _hash_of_values(*arrays: np.ndarray) -> str:
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def has_shard(folder: Path, shard: ShardRange, identity: dict[str, Any], columns: tuple[str, ...] = COLUMNS) -> bool:
    """Whether the shard is there and whole, with these columns.

    One that is cut short or damaged, or has others, counts as absent: it is scored again.

    Raises:
        UserError: It was made from something else.
    """
    path = folder / shard.file
    if not path.is_file():
        return False
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).get_batch(0)
            metadata = table.schema.metadata or {}
            lists = table.columns
            found = _hash_of_values(lists[0].offsets.to_numpy(), *(column.values.to_numpy() for column in lists))
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError):  # what a damaged file may look like
        return False
    if metadata.get(b"sha256") != found.encode():
        return False
    if metadata.get(b"identity") != hash_content(identity).encode():
        raise UserError(
            f"{folder} holds scores made from another corpus, tokenizer, base, adapter or precision than those of this "
            "configuration. Remove the folder to score again, or give another one as data.store."
        )
    return (
        tuple(table.schema.names) == columns
        and metadata.get(b"range") == f"{shard.split}:{shard.first}:{shard.last}".encode()
    )


def close_store(
    folder: Path,
    identity: dict[str, Any],
    ranges: list[ShardRange],
    record: dict[str, Any],
    columns: tuple[str, ...] = COLUMNS,
) -> None:
    """Write the manifest, once every shard is there.

    Args:
        folder: The store.
        identity: What the scores are made from.
        ranges: All shards, of all splits.
        record: What else to remember: versions, precision, device.
        columns: Of every shard.
    """
    shards = [
        {"file": r.file, "split": r.split, "first": r.first, "last": r.last,
         "sha256": hash_file(folder / r.file)}
        for r in ranges
    ]  # fmt: skip
    content = {"format": FORMAT, "identity": identity, "columns": list(columns), "shards": shards, **record}
    write_manifest(folder / MANIFEST, content)


class ScoreStore:
    """A complete store, memory-mapped.

    Args:
        folder: Where it lies.

    Raises:
        UserError: It is missing, unfinished or cut short.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / MANIFEST).is_file():
            state = "is unfinished" if folder.is_dir() and any(folder.rglob("*.arrow")) else "does not exist"
            raise UserError(f"The score store {folder} {state}.")
        remedy = f"Remove {folder / MANIFEST} and score again: only what is missing or damaged is made."
        self.manifest: dict[str, Any] = read_json(
            folder / MANIFEST, dict, ("format", "identity", "columns", "shards"), remedy
        )
        if self.manifest["format"] != FORMAT:
            raise UserError(f"{folder} has format {self.manifest['format']}, this version reads {FORMAT}. {remedy}")
        verify_manifest(folder / MANIFEST, self.manifest, remedy)
        self.identity: dict[str, Any] = self.manifest["identity"]
        refuse_changed(folder, {shard["file"]: shard["sha256"] for shard in self.manifest["shards"]}, remedy)

    @classmethod
    def open(cls, folder: Path) -> "ScoreStore":
        """Open the store in `folder`."""
        return cls(folder)

    @staticmethod
    def columns_in(folder: Path) -> tuple[str, ...]:
        """The columns that a manifest names, whatever state the shards are in."""
        return tuple(read_json(folder / MANIFEST, dict, ("columns",))["columns"])

    @property
    def hash(self) -> str:
        """What the store holds, by the hashes of its shards."""
        return hash_content([self.identity, [s["sha256"] for s in self.manifest["shards"]]])

    @property
    def splits(self) -> list[str]:
        """The splits that are scored."""
        return list(dict.fromkeys(shard["split"] for shard in self.manifest["shards"]))

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self.manifest["columns"])

    def split(self, name: str, extra: Mapping[str, np.ndarray] | None = None) -> "StoredSplit":
        """The columns of one split.

        Args:
            name: `train` or `validation`.
            extra: Further columns by name, one value per response token in corpus order.

        Raises:
            UserError: The store has no such split.
        """
        shards = [shard for shard in self.manifest["shards"] if shard["split"] == name]
        if not shards:
            raise UserError(f"The score store {self.folder} has no split {name}; it has {', '.join(self.splits)}.")
        return StoredSplit(name, [self.folder / s["file"] for s in shards], [s["first"] for s in shards], extra or {})


class StoredSplit:
    """The columns of a split, in corpus order, one memory map per shard."""

    def __init__(self, name: str, paths: list[Path], firsts: list[int], extra: Mapping[str, np.ndarray]) -> None:
        self.name = name
        self.extra = extra
        self._paths, self._firsts = paths, firsts
        self._tables = [pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0) for path in paths]
        self._offsets = [table.column(0).offsets.to_numpy() for table in self._tables]
        self._positions = np.concatenate([[0], np.cumsum([int(offsets[-1]) for offsets in self._offsets])])
        self.num_tokens = int(self._positions[-1])
        if wrong := [name for name, values in extra.items() if len(values) != self.num_tokens]:
            raise UserError(f"{wrong[0]} has {len(extra[wrong[0]])} values, the store {self.num_tokens} tokens.")

    def __reduce__(self) -> tuple[type["StoredSplit"], tuple[Any, ...]]:
        # A loader's worker maps the files itself.
        return StoredSplit, (self.name, self._paths, self._firsts, self.extra)

    def __len__(self) -> int:
        return self._firsts[-1] + self._tables[-1].num_rows

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return (*self._tables[0].schema.names, *self.extra)

    def _tokens(self, shard: int, first: int, last: int) -> StoredTokens:
        """Examples `first` to `last` (excluded) of a shard."""
        table, offsets = self._tables[shard], self._offsets[shard][first : last + 1]
        begin, end = int(offsets[0]), int(offsets[-1])
        place = int(self._positions[shard]) + begin
        columns = {name: table.column(name).values.to_numpy()[begin:end] for name in table.schema.names}
        columns |= {name: values[place : place + end - begin] for name, values in self.extra.items()}
        return StoredTokens(self.name, place, np.diff(offsets), columns)

    def shards(self) -> Iterator[StoredTokens]:
        """All tokens, a shard at a time."""
        for shard, table in enumerate(self._tables):
            yield self._tokens(shard, 0, table.num_rows)

    def example(self, index: int) -> StoredTokens:
        """The tokens of one example."""
        shard = int(np.searchsorted(self._firsts, index, side="right")) - 1
        place = index - self._firsts[shard]
        return self._tokens(shard, place, place + 1)

    def column(self, name: str) -> np.ndarray:
        """A column's values for every response token (a copy)."""
        return np.concatenate([tokens[name] for tokens in self.shards()])

    def num_targets(self) -> Int[np.ndarray, " examples"]:
        """Response tokens of each example."""
        return np.concatenate([np.diff(offsets) for offsets in self._offsets])
