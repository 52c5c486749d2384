"""Segments → token ids and target mask, exactly, for any tokenizer with a `tokenizers` backend."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from forgetting.artifacts import hash_content
from forgetting.errors import UserError


@dataclass(frozen=True)
class Segment:
    """A piece of text.

    Attributes:
        text: The characters.
        is_target: Whether they are trained on.
        is_control: Whether they are one control token.
        origin: Place in the last message at which the text begins, where it is that message's own text and the
            message is a response. None elsewhere.
        noise: Known noise in the text as (start, end, code) in its characters.
    """

    text: str
    is_target: bool
    is_control: bool = False
    origin: int | None = None
    noise: tuple[tuple[int, int, int], ...] = ()


@dataclass
class Encoded:
    """One example: ids, which of them are targets, and the code of the known noise in each (0 is clean)."""

    input_ids: Int32[np.ndarray, "time"]
    response_mask: Bool[np.ndarray, "time"]
    noise: UInt8[np.ndarray, "time"]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what a tokenizer does to text: its backend, special tokens, BOS and chat template.

    Padding and truncation do not enter: batches set them on the way, and no stored token depends on them.
    """
    backend = re.sub(r'"truncation":.*?,"padding":.*?,"added_tokens":', '"added_tokens":', _backend(tokenizer), count=1)
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if key != "pad_token"}
    prefix = bos_ids(tokenizer)
    return hash_content({"backend": backend, "special": special, "prefix": prefix, "chat": tokenizer.chat_template})


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the tokenizer puts before a text: BOS, or nothing. Those that it would put after it are left out.

    Raises:
        UserError: It does more than put tokens before and after.
    """
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    raise UserError(
        f"The tokenizer ({tokenizer.name_or_path}) changes a text's own tokens when it adds special ones "
        f"({plain} becomes {whole}). Use one that only puts BOS in front."
    )


def _backend(tokenizer: PreTrainedTokenizerBase) -> str:
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"The tokenizer ({tokenizer.name_or_path}) is a {type(tokenizer).__name__} without character offsets, from "
            "which the response mask is taken. Use its fast version (a folder with tokenizer.json)."
        )
    return tokenizer.backend_tokenizer.to_str()


class Encoder:
    """Encodes segments as the tokenizer encodes their whole text, with nothing but control segments as control tokens.

    A control token is written into the text as a marker that occurs nowhere else, is matched exactly where the token
    would be, and gets the token's id. Special tokens that stand literally in the data are encoded as plain text; where
    a model has no other way to write them (a word of a word-level vocabulary), they become the unknown token.

    A token is a target if it begins in a target. One that covers the end of a header and the beginning of a response
    therefore counts as header, as in published code, which takes the lengths of encoded prefixes. Position 0 never is:
    nothing predicts it.

    A token is noise if one of its own characters is, of the first kind that it holds; a control token is clean.

    Args:
        tokenizer: Any fast tokenizer.
        adds_bos: Whether the tokenizer's BOS goes in front (no, where a chat template writes it).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, adds_bos: bool) -> None:
        self._original = Tokenizer.from_str(_backend(tokenizer))
        self._added = {str(token.content): (i, token) for i, token in tokenizer.added_tokens_decoder.items()}
        self._prefix = np.array(bos_ids(tokenizer) if adds_bos else [], dtype=np.int32)
        self._name = tokenizer.name_or_path
        # What the model itself writes for what it does not know, whatever the tokenizer declares (Unigram hides it).
        word = getattr(self._original.model, "unk_token", None)
        unknown = cast(int | None, tokenizer.unk_token_id) if word is None else self._original.token_to_id(word)
        self._unknown = None if unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id) else unknown
        special = {i for i, token in self._added.values() if token.special}
        self._forbidden = np.array(sorted(special - {self._unknown}), dtype=np.int32)
        self._nonce = 0
        self._restart()

    def encode(self, examples: Sequence[list[Segment]], max_length: int) -> tuple[list[Encoded], list[int]]:
        """Encode examples, cut on the right to `max_length` tokens.

        Returns:
            The encoded examples, and the length that each would have had.
        """
        while any(self._nonced in s.text for segments in examples for s in segments if not s.is_control):
            self._nonce += 1
            self._restart()
        self._mark({s.text for segments in examples for s in segments if s.is_control})
        texts: list[str] = []
        begins: list[int] = []
        edges: list[np.ndarray] = []
        noise: list[tuple[int, int, int]] = []
        position = 0
        # Positions count through the texts of the whole batch, as if they were one, so that one search places all of
        # its tokens. A character is a target if an odd number of edges, where targets begin or end, lies before it.
        for segments in examples:
            pieces = [self._markers[s.text] if s.is_control else s.text for s in segments]
            ends = np.cumsum([position, *map(len, pieces)])
            is_target = np.array([s.is_target for s in segments], dtype=bool)
            edges.append(ends[np.flatnonzero(np.diff(is_target, prepend=False, append=False))])
            noise += [
                (int(begin) + start, int(begin) + end, code)
                for segment, begin in zip(segments, ends[:-1], strict=True)
                for start, end, code in segment.noise
            ]
            texts.append("".join(pieces))
            begins.append(position)
            position = int(ends[-1])
        batch = self._copy.encode_batch(texts, add_special_tokens=False)
        counts = [len(encoding.ids) for encoding in batch]
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in batch), dtype=np.int32, count=sum(counts))
        pairs = chain.from_iterable(encoding.offsets for encoding in batch)
        offsets = np.fromiter(chain.from_iterable(pairs), dtype=np.int64, count=2 * sum(counts)).reshape(-1, 2)
        offsets += np.repeat(np.array(begins, dtype=np.int64), counts)[:, None]
        codes = np.where(np.isin(ids, list(self._ids)), np.uint8(0), _codes(offsets, noise))
        ids = self._without_markers(ids, sum(s.is_control for segments in examples for s in segments))
        mask = np.searchsorted(np.concatenate(edges), offsets[:, 0], side="right") % 2 == 1
        cuts = np.cumsum(counts)[:-1]
        parts = zip(np.split(ids, cuts), np.split(mask, cuts), np.split(codes, cuts), strict=True)
        return [self._finished(*arrays, max_length) for arrays in parts], [
            len(self._prefix) + count for count in counts
        ]

    def _finished(
        self,
        ids: Int32[np.ndarray, "time"],
        mask: Bool[np.ndarray, "time"],
        noise: UInt8[np.ndarray, "time"],
        max_length: int,
    ) -> Encoded:
        num_before = len(self._prefix)
        ids = np.concatenate([self._prefix, ids])[:max_length]
        mask = np.concatenate([np.zeros(num_before, dtype=bool), mask])[:max_length]
        noise = np.concatenate([np.zeros(num_before, dtype=np.uint8), noise])[:max_length]
        mask[:1] = False
        return Encoded(ids, mask, noise)

    def _without_markers(self, ids: Int32[np.ndarray, "time"], num_controls: int) -> Int32[np.ndarray, "time"]:
        is_marker = np.isin(ids, list(self._ids))
        if is_marker.sum() != num_controls:
            raise UserError(
                f"The tokenizer ({self._name}) does not keep control tokens apart from the text around them: "
                f"{num_controls} went in, {is_marker.sum()} came out. Use another data.template or tokenizer."
            )
        forged = np.isin(ids, self._forbidden)
        if forged.any() and self._unknown is None:
            raise UserError(
                f"The tokenizer ({self._name}) writes the text {self._original.id_to_token(int(ids[forged][0]))!r} in "
                "the data as a control token and has no unknown token to take its place. Remove such rows."
            )
        ids = np.where(forged, np.int32(self._unknown or 0), ids)
        for marker, token in self._ids.items():
            ids[ids == marker] = token
        return ids

    @property
    def _nonced(self) -> str:
        return f"\ue002{self._nonce}\ue003"

    def _restart(self) -> None:
        self._copy = Tokenizer.from_str(self._original.to_str())
        self._copy.no_padding()
        self._copy.no_truncation()
        self._copy.post_processor = None  # it would trim offsets; BOS is put in front here
        self._copy.encode_special_tokens = True
        self._markers: dict[str, str] = {}  # control token → what stands for it in the text
        self._ids: dict[int, int] = {}  # the marker's id → the control token's
        self._num_added = 0

    def _mark(self, controls: set[str]) -> None:
        for control in sorted(controls - self._markers.keys()):
            identity, token = self._added[control]
            marker, number = "", None
            while number is None or self._original.id_to_token(number) is not None:  # a vocabulary may have gaps
                self._num_added += 1
                marker = f"{self._nonced}{self._num_added}\ue004"
                added = AddedToken(marker, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False, special=False)
                self._copy.add_tokens([added])
                number = self._copy.token_to_id(marker)
            self._markers[control] = marker
            self._ids[number] = identity


def _codes(offsets: Int64[np.ndarray, "tokens 2"], noise: list[tuple[int, int, int]]) -> UInt8[np.ndarray, " tokens"]:
    """Code of the first of `noise`, which is in order and disjoint, that overlaps a token's characters, else 0."""
    if not noise:
        return np.zeros(len(offsets), dtype=np.uint8)
    starts, ends, codes = np.array(noise, dtype=np.int64).T
    first = np.searchsorted(ends, offsets[:, 0], side="right")  # the first that ends after the token begins
    overlaps = np.append(starts, np.iinfo(np.int64).max)[first] < offsets[:, 1]
    return np.where(overlaps, np.append(codes, 0)[first], 0).astype(np.uint8)
