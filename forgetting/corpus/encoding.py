"""Segments → token ids and target mask, exactly, for any tokenizer with a `tokenizers` backend."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

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


def _backend(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
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
    would be, and gets the token's id. Special tokens that stand literally in the data are encoded as plain text; where
    a model has no other way to write them (a word of a word-level vocabulary), they become the unknown token.

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
        self._name = tokenizer.name_or_path
        self._original = cast(Tokenizer, tokenizer.backend_tokenizer)
        special = {i for i, token in self._added.values() if token.special}
        unknown = self._unknown_of(content["model"])
        self._unknown = None if unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id) else unknown
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
        batch = self._copy.encode_batch(texts, add_special_tokens=False)
        for segments, found, edges in zip(examples, batch, boundaries, strict=True):
            ids = self._without_markers(np.array(found.ids, dtype=np.int32), sum(s.is_control for s in segments))
            starts = np.array([start for start, _ in found.offsets], dtype=np.int64)
            mask = np.searchsorted(edges, starts, side="right") % 2 == 1
            ids = np.concatenate([np.array(self._prefix, dtype=np.int32), ids])
            mask = np.concatenate([np.zeros(len(self._prefix), dtype=bool), mask])
            mask[:1] = False
            encoded.append(Encoded(ids[:max_length], mask[:max_length]))
            lengths.append(len(ids))
        return encoded, lengths

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

    def _unknown_of(self, model: dict[str, Any]) -> int | None:
        """What the model itself writes for what it does not know, whatever the tokenizer's `unk_token` says."""
        return model.get("unk_id") if model.get("unk_token") is None else self._original.token_to_id(model["unk_token"])

    @property
    def _nonced(self) -> str:
        return f"\ue002{self._nonce}\ue003"

    def _restart(self) -> None:
        self._copy = Tokenizer.from_str(self._content)
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
