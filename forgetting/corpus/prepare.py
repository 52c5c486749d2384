"""A corpus folder: made once, complete or absent, named by what it is made from."""

import json
import logging
from collections import Counter
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from forgetting.artifacts import complete_folder, hash_content, write_manifest
from forgetting.corpus.configuration import SPLITS, CorpusConfig
from forgetting.corpus.manifest import NAME, describe_files, folder_name, read_manifest, split_folder
from forgetting.corpus.noise import kinds_of
from forgetting.corpus.pool import Draw, Examples, draw, shares
from forgetting.corpus.sources import LoadedSource, ResolvedSource, SourceCache, read_source, resolve_source

logger = logging.getLogger(__name__)

FORMAT = 4  # of the folder and of every decision on the way to it: raise it when either changes
BATCH = 1000
SCHEMA = pa.schema(
    [
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("source", pa.string()),
        ("source_row", pa.int64()),
        ("noise", pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("kind", pa.string())]))),
    ]
)


class Corpus:
    """A prepared corpus: D_train, D_ref and D_val as messages.

    Raises:
        UserError: The folder is not a complete corpus, or something in it was changed since it was made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = read_manifest(folder, "corpus", FORMAT, "python -m forgetting prepare")
        self.content_hash: str = self.manifest["content_hash"]

    def split(self, name: str) -> datasets.Dataset:
        """Train, reference or validation, memory-mapped, with the columns messages, source, source_row and noise."""
        return datasets.Dataset.from_file(str(split_folder(self.folder, self.manifest, name) / "data.arrow"))


def prepare_corpus(config: CorpusConfig, root: Path) -> Corpus:
    """Make the corpus, or open the complete one that is already there.

    Args:
        config: Sources, sizes and seed.
        root: The folder that holds corpora; each is named by the hash of its configuration and its sources' content.

    Raises:
        UserError: The configuration, a source, or a damaged corpus folder.
    """
    config.check()
    cache = SourceCache(root / ".sources.json")
    pool = [resolve_source(source, cache) for source in config.sources.values()]
    published = {split: resolve_source(source, cache) for split, source in config.published().items()}
    cache.save()
    identity = {
        "format": FORMAT,
        **{f"num_{split}": number for split, number in config.drawn().items()},
        "seed": config.seed,
        "deduplicate_reference": config.deduplicate_reference,
        "sources": [source.identity() for source in pool],
        "published": {split: source.identity() for split, source in published.items()},
    }
    folder = root / folder_name("corpus", identity)
    if not folder.exists():
        with complete_folder(folder) as temporary:
            _make(temporary, config, identity, pool, published)
    return Corpus(folder)


def _make(
    folder: Path,
    config: CorpusConfig,
    identity: dict[str, Any],
    pool: list[ResolvedSource],
    published: dict[str, ResolvedSource],
) -> None:
    reads = [read_source(source, config.seed) for source in pool]
    named = {split: read_source(source, config.seed) for split, source in published.items()}
    rows = Examples()
    for read in reads:
        rows.extend(read.examples)
    drawn = draw(rows, config, {split: read.examples for split, read in named.items()})
    splits = {split: drawn.splits[split] if split in drawn.splits else named[split].examples for split in SPLITS}
    knows_noise = any(source.noise is not None for source in config.all_sources())
    kinds = kinds_of([spans for examples in splits.values() for spans in examples.noise])
    described: dict[str, Any] = {}
    for split, examples in splits.items():
        file = folder / split / "data.arrow"
        write_split(file, examples)
        described[split] = {
            "samples": len(examples),
            "from": "published" if split in named else "drawn",
            "sources": shares(examples.sources),
            "content_hash": examples.content_hash(),
            "files": describe_files(file.parent, ["data.arrow"]),
        }
    manifest = {
        "format": FORMAT,
        "kind": "corpus",
        "content_hash": hash_content({split: entry["content_hash"] for split, entry in described.items()}),
        "identity": identity,
        "seed": config.seed,
        "noise_kinds": kinds if knows_noise else None,
        "splits": described,
        "pool": {
            "rows": sum(read.num_rows for read in reads),
            "examples": len(rows),
            "duplicates": sum(drawn.duplicates.values()),
            "distinct": drawn.num_unique,
            "sources": _pool_counts(reads, drawn),
        },
        "published": {split: {"rows": read.num_rows, "dropped": _flat(read.dropped)} for split, read in named.items()},
        "overlap": _overlap(splits),
        "read": {
            "sources": {source.source.name: _record(source, read) for source, read in zip(pool, reads, strict=True)},
            "published": {split: _record(source, named[split]) for split, source in published.items()},
        },
        "config": asdict(config),
    }
    for pair, number in manifest["overlap"].items():
        logger.warning("%s share %d examples: the published splits are not disjoint.", pair, number)
    write_manifest(folder / NAME, manifest)


def _pool_counts(reads: list[LoadedSource], drawn: Draw) -> dict[str, Any]:
    usable = Counter(name for read in reads for name in read.examples.sources)
    dropped: dict[str, Counter[str]] = {}
    for read in reads:
        for name, reasons in read.dropped.items():
            dropped.setdefault(name, Counter()).update(reasons)
    return {
        name: {
            "examples": usable[name],
            "duplicates": drawn.duplicates[name],
            "dropped": dict(sorted(dropped.get(name, Counter()).items())),
        }
        for name in sorted(usable.keys() | {name for name, reasons in dropped.items() if reasons})
    }


def _record(source: ResolvedSource, read: LoadedSource) -> dict[str, Any]:
    return {**source.record(), "unmapped": dict(sorted(read.unmapped.items()))}


def _flat(dropped: dict[str, Counter[str]]) -> dict[str, int]:
    return dict(sorted(sum(dropped.values(), Counter()).items()))


def _overlap(splits: dict[str, Examples]) -> dict[str, int]:
    keys = {split: set(examples.keys) for split, examples in splits.items()}
    return {f"{a} and {b}": len(both) for a, b in combinations(SPLITS, 2) if (both := keys[a] & keys[b])}


def write_split(file: Path, examples: Examples) -> None:
    """Write examples as an Arrow stream, the format that `datasets` maps into memory."""
    file.parent.mkdir(parents=True)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        for start in range(0, len(examples), BATCH):
            part = slice(start, start + BATCH)
            messages = [json.loads(text) for text in examples.texts[part]]
            noise = [[span._asdict() for span in spans] for spans in examples.noise[part]]
            columns = [messages, examples.sources[part], examples.rows[part], noise]
            arrays = [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))
