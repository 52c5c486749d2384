"""Segments → token ids and target mask, exactly, for any tokenizer with a `tokenizers` backend."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Bool, Int32
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from forgetting.artifacts import hash_content
from forgetting.corpus.templates import Segment
from forgetting.errors import UserError


@dataclass
class Encoded:
    """One example: ids, and which of them are targets."""

    input_ids: Int32[np.ndarray, "time"]
    response_mask: Bool[np.ndarray, "time"]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what a tokenizer does to text: its backend, special tokens, BOS and chat template.

    Padding and truncation do not enter: batches set them on the way, and no stored token depends on them.
    """
    backend = _backend(tokenizer)
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if key != "pad_token"}
    prefix = bos_ids(tokenizer)
    return hash_content({"backend": backend, "special": special, "prefix": prefix, "chat": tokenizer.chat_template})


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text: BOS, or nothing. What it would put after it is left out.

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


def _backend(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"The tokenizer ({tokenizer.name_or_path}) is a {type(tokenizer).__name__} without character offsets, from "
            "which the response mask is taken. Use its fast version (a folder with tokenizer.json)."
        )
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return {**content, "truncation": None, "padding": None}


class Encoder:
    """Encodes segments as the tokenizer encodes their whole text, with nothing but control segments as control tokens.

    A control token is written into the text as a marker that occurs nowhere else, is matched exactly where the token
    would be, and gets the token's id. Special tokens that stand literally in the data are encoded as plain text.

    A token is a target if it begins in a target. One that covers the end of a header and the beginning of a response
    therefore counts as header, as in published code, which takes the lengths of encoded prefixes. Position 0 never is:
    nothing predicts it.

    Args:
        tokenizer: Any fast tokenizer.
        adds_bos: Whether the tokenizer's BOS goes in front (no, where a chat template writes it).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, adds_bos: bool) -> None:
        content = _backend(tokenizer)
        content["post_processor"] = None  # it would trim offsets; BOS is put in front here
        self._content = json.dumps(content)
        self._added = {str(token.content): (i, token) for i, token in tokenizer.added_tokens_decoder.items()}
        self._prefix = bos_ids(tokenizer) if adds_bos else []
        self._markers: dict[str, str] = {}
        self._ids: dict[int, int] = {}
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
        boundaries: list[np.ndarray] = []
        for segments in examples:
            pieces = [self._markers[s.text] if s.is_control else s.text for s in segments]
            ends = np.cumsum([len(piece) for piece in pieces])
            is_target = np.array([s.is_target for s in segments], dtype=bool)
            flips = np.flatnonzero(np.diff(is_target, prepend=False, append=False))
            boundaries.append(np.concatenate([[0], ends])[flips])
            texts.append("".join(pieces))
        encoded: list[Encoded] = []
        lengths: list[int] = []
        for found, edges in zip(self._copy.encode_batch(texts, add_special_tokens=False), boundaries, strict=True):
            ids = np.array([*self._prefix, *found.ids], dtype=np.int32)
            for marker, token in self._ids.items():
                ids[ids == marker] = token
            starts = np.array([start for start, _ in found.offsets], dtype=np.int64)
            mask = np.zeros(len(ids), dtype=bool)
            mask[len(self._prefix) :] = np.searchsorted(edges, starts, side="right") % 2 == 1
            mask[:1] = False
            encoded.append(Encoded(ids[:max_length], mask[:max_length]))
            lengths.append(len(ids))
        return encoded, lengths

    @property
    def _nonced(self) -> str:
        return f"\ue002{self._nonce}\ue003"

    def _restart(self) -> None:
        self._copy = Tokenizer.from_str(self._content)
        self._copy.encode_special_tokens = True
        self._markers, self._ids = {}, {}

    def _mark(self, controls: set[str]) -> None:
        for control in sorted(controls - self._markers.keys()):
            identity, token = self._added[control]
            marker = f"{self._nonced}{len(self._markers)}\ue004"
            added = AddedToken(marker, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False, special=False)
            self._copy.add_tokens([added])
            self._markers[control] = marker
            self._ids[cast(int, self._copy.token_to_id(marker))] = identity
