"""The score store: two models' nll of every response token of a corpus, in shards that are complete or absent.

A shard is an Arrow IPC file over a fixed range of examples, whatever the number of ranks that write. It names in its
own metadata what it was made from and the hash of its values, so a shard cannot be mistaken for another's, nor for one
that was damaged since. `manifest.json` closes the store.
"""

import errno
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from forgetting.artifacts import complete_or_absent, hash_content, hash_file, read_json, refuse_changed, write_json
from forgetting.errors import UserError
from forgetting.method.selection import Cut, Selection, Sides, quality, sequence_means, sides

MANIFEST = "manifest.json"
FORMAT = 2
COLUMNS = ("nll_base", "nll_reference")
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)


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
    nll_base: Float[np.ndarray, " tokens"],
    nll_reference: Float[np.ndarray, " tokens"],
) -> None:
    """Write a shard, complete or not at all.

    Args:
        folder: The store.
        shard: Its range.
        identity: What the scores are made from (see `store_identity`).
        num_targets: Response tokens of each example in the range.
        nll_base: Base model's nll of each response token, in nats.
        nll_reference: The reference's.
    """
    for name, values in (("base", nll_base), ("reference", nll_reference)):
        if not np.isfinite(values).all():
            raise UserError(
                f"The {name} model gives nll that is no finite number in examples {shard.first} to {shard.last - 1} of "
                f"{shard.split}. Nothing of them was written; score in float32 or bfloat16, and look at the model."
            )
    offsets = np.concatenate([[0], np.cumsum(num_targets)]).astype(np.int64)
    values = [column.astype(np.float32) for column in (nll_base, nll_reference)]
    columns = [pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(column)) for column in values]
    metadata = {
        "identity": hash_content(identity), "range": f"{shard.split}:{shard.first}:{shard.last}",
        "sha256": _hash_of_values(offsets, *values),
    }  # fmt: skip
    kind = pa.large_list(pa.float32())
    schema = pa.schema([(name, kind) for name in COLUMNS], metadata=metadata)
    batch = pa.record_batch(columns, schema=schema)
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


def has_shard(folder: Path, shard: ShardRange, identity: dict[str, Any]) -> bool:
    """Whether the shard is there and whole. One that is cut short or damaged counts as absent: it is scored again.

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
            lists = [table.column(name) for name in COLUMNS]
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
    return metadata.get(b"range") == f"{shard.split}:{shard.first}:{shard.last}".encode()


def close_store(folder: Path, identity: dict[str, Any], ranges: list[ShardRange], record: dict[str, Any]) -> None:
    """Write the manifest, once every shard is there.

    Args:
        folder: The store.
        identity: What the scores are made from.
        ranges: All shards, of all splits.
        record: What else to remember: versions, precision, device.
    """
    shards = [
        {"file": r.file, "split": r.split, "first": r.first, "last": r.last,
         "sha256": hash_file(folder / r.file)}
        for r in ranges
    ]  # fmt: skip
    content = {"format": FORMAT, "identity": identity, "shards": shards, "sha256": _hash_of_manifest(identity, shards)}
    write_json(folder / MANIFEST, {**content, **record})


def _hash_of_manifest(identity: dict[str, Any], shards: list[dict[str, Any]]) -> str:
    return hash_content([identity, shards])


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
        self.manifest: dict[str, Any] = read_json(folder / MANIFEST, dict, ["format", "identity", "shards"], remedy)
        if self.manifest["format"] != FORMAT:
            raise UserError(f"{folder} has format {self.manifest['format']}, this version reads {FORMAT}. {remedy}")
        self.identity: dict[str, Any] = self.manifest["identity"]
        if self.manifest.get("sha256") != _hash_of_manifest(self.identity, self.manifest["shards"]):
            raise UserError(f"{folder / MANIFEST} was changed or damaged since it was written. {remedy}")
        refuse_changed(folder, {shard["file"]: shard["sha256"] for shard in self.manifest["shards"]}, remedy)

    @classmethod
    def open(cls, folder: Path) -> "ScoreStore":
        """Open the store in `folder`."""
        return cls(folder)

    @property
    def hash(self) -> str:
        """What the store holds, by the hashes of its shards."""
        return hash_content([self.identity, [s["sha256"] for s in self.manifest["shards"]]])

    @property
    def splits(self) -> list[str]:
        """The splits that are scored."""
        return list(dict.fromkeys(shard["split"] for shard in self.manifest["shards"]))

    def split(self, name: str) -> "ScoredSplit":
        """The scores of one split.

        Raises:
            UserError: The store has no such split.
        """
        shards = [shard for shard in self.manifest["shards"] if shard["split"] == name]
        if not shards:
            raise UserError(f"The score store {self.folder} has no split {name}; it has {', '.join(self.splits)}.")
        return ScoredSplit(name, [self.folder / shard["file"] for shard in shards], [s["first"] for s in shards])

    def sides(self, selection: Selection) -> Sides:
        """The cuts that a selection makes in D_train; kept beside the store, so that a second run only reads them."""
        key = hash_content([self.hash, selection.record()])
        path = self.folder / f"selection-{key[:16]}.json"
        if (kept := _kept_sides(path, key)) is not None:
            return kept
        split = self.split("train")
        tokens = selection.granularity == "token"
        found = sides(
            split.qualities if tokens else split.mean_qualities, split.num_tokens if tokens else len(split), selection
        )
        content = _sides_to_json(found)
        try:
            write_json(path, {"key": key, "sides": content, "sha256": hash_content(content)})
        except OSError as error:  # a store that is shared may not be ours to write to: find the cut again next time
            if error.errno not in READ_ONLY:
                raise
        return found


class ScoredSplit:
    """The scores of a split: flat columns in corpus order, one memory map a shard."""

    def __init__(self, name: str, paths: list[Path], firsts: list[int]) -> None:
        self.name = name
        self._paths, self._firsts = paths, firsts
        self._tables = [pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0) for path in paths]
        self._offsets = [t.column("nll_base").offsets.to_numpy() for t in self._tables]
        sizes = [int(offsets[-1]) for offsets in self._offsets]
        self._positions = np.concatenate([[0], np.cumsum(sizes)])
        self.num_tokens = int(self._positions[-1])

    def __reduce__(self) -> tuple[type["ScoredSplit"], tuple[str, list[Path], list[int]]]:
        return ScoredSplit, (self.name, self._paths, self._firsts)  # a loader's worker maps the files itself

    def __len__(self) -> int:
        return self._firsts[-1] + self._tables[-1].num_rows

    def shard_columns(self, number: int) -> tuple[Float[np.ndarray, " tokens"], Float[np.ndarray, " tokens"]]:
        """`nll_base` and `nll_reference` of a shard, without a copy."""
        table = self._tables[number]
        base, reference = (table.column(c).values.to_numpy() for c in COLUMNS)
        return base, reference

    @property
    def nll_base(self) -> Float[np.ndarray, " tokens"]:
        """The base's nll of every response token, in corpus order (a copy)."""
        return np.concatenate([self.shard_columns(n)[0] for n in range(len(self._tables))])

    @property
    def nll_reference(self) -> Float[np.ndarray, " tokens"]:
        """The reference's nll of every response token, in corpus order (a copy)."""
        return np.concatenate([self.shard_columns(n)[1] for n in range(len(self._tables))])

    def num_targets(self) -> Int[np.ndarray, " examples"]:
        """Response tokens of each example."""
        return np.concatenate([np.diff(offsets) for offsets in self._offsets])

    def qualities(self) -> Iterator[Float[np.ndarray, " tokens"]]:
        """Q of every response token in corpus order, a shard at a time."""
        for number in range(len(self._tables)):
            yield quality(*self.shard_columns(number))

    def mean_qualities(self) -> Iterator[Float[np.ndarray, " examples"]]:
        """Mean Q of each sequence's response tokens, a shard at a time, in float64."""
        for number, offsets in enumerate(self._offsets):
            yield sequence_means(quality(*self.shard_columns(number)), np.diff(offsets))

    def example(self, index: int) -> tuple[int, Float[np.ndarray, " tokens"]]:
        """Position of an example's first response token among all of the split's, and Q of its response tokens."""
        shard = int(np.searchsorted(self._firsts, index, side="right")) - 1
        a, b = self._offsets[shard][index - self._firsts[shard] : index - self._firsts[shard] + 2]
        base, reference = self.shard_columns(shard)
        return int(self._positions[shard] + a), quality(base[a:b], reference[a:b])


def _kept_sides(path: Path, key: str) -> Sides | None:
    """The cuts in a file; None where it is absent, damaged or another's: they are found again then."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["key"] != key or content["sha256"] != hash_content(content["sides"]):
            return None
        return _sides_from_json(content["sides"])
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return None


def _sides_to_json(found: Sides) -> dict[str, Any]:
    def cut(c: Cut) -> dict[str, Any]:
        # JSON has no infinity: null stands for the cut that nothing lies above.
        return {"threshold": c.threshold if np.isfinite(c.threshold) else None, "tie_position": c.tie_position}

    return {"positive": cut(found.positive), "negative": cut(found.negative),
            "num_positive": found.num_positive, "num_negative": found.num_negative}  # fmt: skip


def _sides_from_json(content: dict[str, Any]) -> Sides:
    def cut(c: dict[str, Any]) -> Cut:
        return Cut(float("inf") if c["threshold"] is None else c["threshold"], c["tie_position"])

    return Sides(cut(content["positive"]), cut(content["negative"]), content["num_positive"], content["num_negative"])
