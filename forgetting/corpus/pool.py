"""The pool of all examples: exact duplicates, and uniform disjoint draws."""

import hashlib
import json
import unicodedata
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from forgetting.corpus.configuration import CorpusConfig
from forgetting.corpus.messages import Example, Messages
from forgetting.corpus.noise import NoiseSpan
from forgetting.errors import UserError


def content_key(messages: Messages) -> bytes:
    """Key by which two examples are the same: roles and contents, Unicode NFC, whitespace runs as one space.

    Upper and lower case, punctuation and the division into messages count.
    """
    content = [[m["role"], unicodedata.normalize("NFC", " ".join(m["content"].split()))] for m in messages]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).digest()


def encoded(messages: Messages) -> str:
    """Messages as canonical JSON: what is hashed, and kept in memory while the corpus is made."""
    pairs = [{"role": message["role"], "content": message["content"]} for message in messages]
    return json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))


def hash_order(seed: int, purpose: str, *parts: bytes) -> bytes:
    """Key by which candidates are sorted for a draw, which takes the first: a keyed hash of what a candidate is.

    This makes a draw uniform and repeatable on every platform and with every version of every library, and independent
    of the order in which candidates are read.
    """
    hashed = hashlib.sha256(f"{purpose} {seed}\n".encode())
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big") + part)
    return hashed.digest()


@dataclass
class Examples:
    """Many examples, column by column: canonical JSON, content key, source, row and known noise of each."""

    texts: list[str] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    noise: list[tuple[NoiseSpan, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def append(self, example: Example) -> None:
        """Add one example."""
        self.texts.append(encoded(example.messages))
        self.keys.append(content_key(example.messages))
        self.sources.append(example.source)
        self.rows.append(example.row)
        self.noise.append(example.noise)

    def extend(self, more: "Examples") -> None:
        """Add all of `more`."""
        for column, added in zip(vars(self).values(), vars(more).values(), strict=True):
            column += added

    def take(self, indices: list[int]) -> "Examples":
        """The examples at `indices`, in that order."""
        return Examples(*([column[i] for i in indices] for column in vars(self).values()))

    def sampled(self, size: int, seed: int, name: str) -> "Examples":
        """A uniform draw of `size` examples, in their present order.

        Raises:
            UserError: There are fewer.
        """
        if len(self) < size:
            raise UserError(
                f"Source {name!r}: size is {size:,}, but it has {len(self):,} usable examples. "
                "Lower size, or set it to null for all."
            )
        order = [hash_order(seed, "size", name.encode(), str(i).encode()) for i in range(len(self))]
        return self.take(sorted(sorted(range(len(self)), key=order.__getitem__)[:size]))

    def content_hash(self) -> str:
        """SHA-256 of all messages in order; where they come from and what is known of them does not enter."""
        hashed = hashlib.sha256()
        for text in self.texts:
            hashed.update(text.encode() + b"\n")
        return hashed.hexdigest()


@dataclass
class Draw:
    """The splits drawn from a pool, and how many duplicates each source had."""

    splits: dict[str, Examples]
    duplicates: Counter[str]
    num_unique: int


def draw(pool: Examples, config: CorpusConfig, published: dict[str, Examples]) -> Draw:
    """Draw the splits that are not published, disjoint by content from each other and from those that are.

    Of equal examples the pool keeps the first. The kept ones are put in one random order, by seed: D_train is its
    beginning, then D_ref, then D_val. With `deduplicate_reference: false` D_ref is drawn instead from all rows of the
    pool whose content is neither in D_train nor in D_val: these two therefore stay exactly the same.

    Raises:
        UserError: The pool has too few examples.
    """
    taken = {key for split in published.values() for key in split.keys}
    first: dict[bytes, int] = {}
    duplicates: Counter[str] = Counter()
    for index, key in enumerate(pool.keys):
        if key in first:
            duplicates[pool.sources[index]] += 1
        else:
            first[key] = index
    candidates = sorted(
        (key for key in first if key not in taken), key=lambda key: hash_order(config.seed, "draw", key)
    )
    sizes = config.drawn()
    if sum(sizes.values()) > len(candidates):
        wanted = " + ".join(f"{number:,} {split}" for split, number in sizes.items())
        without = (
            f", {len(first) - len(candidates):,} of them in published splits" if len(first) > len(candidates) else ""
        )
        raise UserError(
            f"The pool has {len(candidates):,} distinct examples to draw from ({len(pool):,} rows, "
            f"{sum(duplicates.values()):,} duplicates{without}), but {wanted} = {sum(sizes.values()):,} are wanted. "
            "Lower data.corpus.num_train, num_reference or num_validation, or add sources."
        )
    chosen: dict[str, list[int]] = {}
    start = 0
    for split, size in sizes.items():
        chosen[split] = [first[key] for key in candidates[start : start + size]]
        start += size
    if not config.deduplicate_reference and "reference" in sizes:
        others = [index for split, indices in chosen.items() if split != "reference" for index in indices]
        chosen["reference"] = _with_duplicates(pool, config, taken | {pool.keys[index] for index in others})
    return Draw({split: pool.take(indices) for split, indices in chosen.items()}, duplicates, len(first))


def _with_duplicates(pool: Examples, config: CorpusConfig, excluded: set[bytes]) -> list[int]:
    occurrences: Counter[bytes] = Counter()
    order: list[tuple[bytes, int]] = []
    for index, key in enumerate(pool.keys):
        if key not in excluded:
            occurrences[key] += 1
            position = hash_order(config.seed, "draw with duplicates", key, str(occurrences[key]).encode())
            order.append((position, index))
    return [index for _, index in sorted(order)[: config.num_reference]]


def shares(sources: list[str]) -> dict[str, dict[str, float | int]]:
    """Counts a source with percentages, in the form of the paper's Table 1."""
    counts = Counter(sources)
    total = max(len(sources), 1)
    return {
        name: {"samples": counts[name], "percentage": float(np.round(100 * counts[name] / total, 2))}
        for name in sorted(counts)
    }
