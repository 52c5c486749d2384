"""Tokenized splits, mapped into memory: made once for a tokenizer, template and length, then opened."""

from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8
from transformers import PreTrainedTokenizerBase

from forgetting.artifacts import complete_folder, hash_content, write_manifest
from forgetting.corpus.encoding import Encoded, Encoder, tokenizer_hash
from forgetting.corpus.manifest import NAME, describe_files, folder_name, read_manifest, split_folder
from forgetting.corpus.noise import NoiseSpan, mark_noise
from forgetting.corpus.prepare import Corpus
from forgetting.corpus.templates import Template, template_for
from forgetting.errors import UserError
from forgetting.progress import progress

FORMAT = 3
BATCH = 1000
ARRAYS = ("input_ids", "response_mask", "offsets", "num_targets", "rows")
NOISE = "noise"  # an array of its own, where a source knows its noise; no hash of the tokens depends on it


class TokenizedSplit:
    """The examples of one split that have a target, mapped into memory.

    Args:
        folder: Its folder inside a token folder.
        content_hash: Of its tokens and masks.
        knows_noise: Whether its corpus has a source with known noise.

    Attributes:
        name: train, reference or validation.
        lengths: Tokens of each example, int32.
        num_targets: Response tokens of each example, at least 1, int32.
        rows: Row of each example in the split of messages, int64 (examples without a target are left out).
        noise: Kind of noise of each response token, uint8, in the order of the examples and of the score store: 0 is
            clean, another is 1 + a place in `TokenizedCorpus.noise_kinds`. None where no source knows its noise.
    """

    def __init__(self, folder: Path, content_hash: str, knows_noise: bool = False) -> None:
        self.folder = folder
        self.name = folder.name
        self.content_hash = content_hash
        # Copy-on-write: the files cannot be changed, and PyTorch takes the arrays without a warning.
        arrays = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in ARRAYS}
        self._input_ids, self._response_mask, self._offsets = (arrays[name] for name in ARRAYS[:3])
        self.lengths = np.diff(self._offsets).astype(np.int32)
        self.num_targets = arrays["num_targets"]
        self.rows = arrays["rows"]
        self.noise: UInt8[np.ndarray, " tokens"] | None = (
            np.asarray(np.load(folder / f"{NOISE}.npy", mmap_mode="c")) if knows_noise else None
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __reduce__(self) -> tuple[type["TokenizedSplit"], tuple[Path, str, bool]]:
        return TokenizedSplit, (self.folder, self.content_hash, self.noise is not None)

    def input_ids(self, i: int) -> Int32[np.ndarray, "time"]:
        """The tokens of example `i`: a view, not a copy."""
        return self._input_ids[self._offsets[i] : self._offsets[i + 1]]

    def response_mask(self, i: int) -> Bool[np.ndarray, "time"]:
        """Mask of the tokens of example `i` that are targets; position 0 never is."""
        return self._response_mask[self._offsets[i] : self._offsets[i + 1]]

    @property
    def response_ids(self) -> Int32[np.ndarray, " tokens"]:
        """Every response token, in the order of the examples and of the score store (a copy)."""
        return self._input_ids[self._response_mask]

    @property
    def response_lengths(self) -> Int[np.ndarray, " responses"]:
        """Tokens of every response, each turn of a dialogue being one, in the same order."""
        # The first token of an example is never a target, so no run of targets goes from one example to the next.
        mask = self._response_mask.astype(np.int8)
        changes = np.diff(mask, prepend=0, append=0)
        return np.flatnonzero(changes == -1) - np.flatnonzero(changes == 1)


class TokenizedCorpus:
    """A corpus in tokens, which lie in a folder inside the corpus's.

    Attributes:
        noise_kinds: Kinds of noise that the sources name, in alphabetical order.

    Raises:
        UserError: The folder is not complete, or something in it was changed since it was made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = read_manifest(folder, "tokens", FORMAT, "run the same command again")
        self.content_hash: str = self.manifest["content_hash"]
        self.noise_kinds: tuple[str, ...] = tuple(self.manifest["noise_kinds"] or ())

    def split(self, name: str) -> TokenizedSplit:
        """Train, reference or validation."""
        folder = split_folder(self.folder, self.manifest, name)
        content_hash = self.manifest["splits"][name]["content_hash"]
        return TokenizedSplit(folder, content_hash, self.manifest["noise_kinds"] is not None)


def tokenize_corpus(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, template: str | Template, max_length: int
) -> TokenizedCorpus:
    """Tokenize all splits, or open the tokens that are already there.

    Args:
        corpus: The corpus; the tokens are put into its folder.
        tokenizer: A fast tokenizer.
        template: tulu, chat or plain, or a template of your own.
        max_length: Longer examples are cut on the right.

    Raises:
        UserError: The template does not fit, or no training example has a target within `max_length`.
    """
    if max_length < 2:
        raise UserError(f"data.max_length is {max_length}; expected at least 2.")
    template = template_for(template, tokenizer) if isinstance(template, str) else template
    identity = {
        "format": FORMAT,
        "corpus": corpus.content_hash,
        "tokenizer": tokenizer_hash(tokenizer),
        "template": template.identity,
        "max_length": max_length,
    }
    folder = corpus.folder / folder_name("tokens", identity)
    if not folder.exists():
        encoder = Encoder(tokenizer, template.adds_bos)
        kinds = corpus.manifest["noise_kinds"]
        with complete_folder(folder) as temporary:
            splits = {
                name: _write_split(temporary / name, corpus.split(name), encoder, template, max_length, kinds)
                for name in corpus.manifest["splits"]
            }
            hashes = {name: entry["content_hash"] for name, entry in splits.items()}
            manifest = {
                "format": FORMAT, "kind": "tokens", "content_hash": hash_content(hashes), "identity": identity,
                "noise_kinds": kinds, "splits": splits,
            }  # fmt: skip
            write_manifest(temporary / NAME, manifest)
    return TokenizedCorpus(folder)


def _encoded(
    name: str, split: datasets.Dataset, encoder: Encoder, template: Template, max_length: int, kinds: list[str]
) -> Iterator[tuple[int, str, Encoded, int, bool]]:
    """Row, source, example, the length it would have had, and whether a message holds a header of the template."""
    for start in range(0, len(split), BATCH):
        batch = split[start : start + BATCH]
        segments = []
        for offset, (messages, noise) in enumerate(zip(batch["messages"], batch["noise"], strict=True)):
            try:
                rendered = template.render(messages)
                if noise:
                    spans = [NoiseSpan(**span) for span in noise]
                    rendered = mark_noise(rendered, messages[-1]["content"], spans, kinds)
                segments.append(rendered)
            except UserError as error:
                raise UserError(
                    f"{error} ({name}, row {start + offset}, source "
                    f"{batch['source'][offset]!r}, its row {batch['source_row'][offset]})"
                ) from None
        examples, lengths = encoder.encode(segments, max_length)
        for offset, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            has_forged_header = template.has_forged_header(batch["messages"][offset])
            yield start + offset, batch["source"][offset], example, length, has_forged_header


def _save(file: Path, array: np.ndarray) -> None:
    """Write an array as NumPy does, but with the system's own error where the disk is full: NumPy's has no number."""
    with file.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, np.lib.format.header_data_from_array_1_0(array))
        out.write(array.tobytes())


def _write_split(
    folder: Path,
    split: datasets.Dataset,
    encoder: Encoder,
    template: Template,
    max_length: int,
    kinds: list[str] | None,
) -> dict[str, Any]:
    folder.mkdir()
    ids, masks, noise = [np.zeros(0, np.int32)], [np.zeros(0, bool)], [np.zeros(0, np.uint8)]
    lengths, num_targets, rows = [0], [], []
    by_source = {key: Counter[str]() for key in ("without_target", "truncated", "forged_headers")}
    encoded = _encoded(folder.name, split, encoder, template, max_length, kinds or [])
    with progress(f"examples of {folder.name} in tokens", len(split)) as advance:
        for row, source, example, length, has_forged_header in encoded:
            advance(1)
            targets = int(example.response_mask.sum())
            by_source["without_target"][source] += targets == 0
            by_source["truncated"][source] += length > max_length
            by_source["forged_headers"][source] += has_forged_header
            if targets == 0:
                continue
            ids.append(example.input_ids)
            masks.append(example.response_mask)
            noise.append(example.noise[example.response_mask])
            lengths.append(len(example.input_ids))
            num_targets.append(targets)
            rows.append(row)
    if len(split) and not rows:
        raise UserError(
            f"No example of {folder.name} has a response token within max_length {max_length}. Raise data.max_length."
        )
    arrays = {
        "input_ids": np.concatenate(ids),
        "response_mask": np.concatenate(masks),
        "offsets": np.cumsum(lengths, dtype=np.int64),
        "num_targets": np.array(num_targets, dtype=np.int32),
        "rows": np.array(rows, dtype=np.int64),
    }
    hashed = sha256()
    for name in ARRAYS:
        hashed.update(arrays[name].tobytes())
    if kinds is not None:
        arrays[NOISE] = np.concatenate(noise)
    for name, array in arrays.items():
        _save(folder / f"{name}.npy", array)
    return {
        "examples": len(rows),
        "tokens": int(arrays["offsets"][-1]),
        "targets": int(arrays["num_targets"].sum()),
        **{key: dict(sorted((+counts).items())) for key, counts in by_source.items()},
        "content_hash": hashed.hexdigest(),
        "files": describe_files(folder, [f"{name}.npy" for name in arrays]),
    }
