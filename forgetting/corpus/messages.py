"""One row of a data set → the examples in it, or the reason why it has none."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from typing import Any

from forgetting.corpus.configuration import Source, columns_of, shown_columns, template_columns
from forgetting.corpus.noise import NoiseSpan, read_spans
from forgetting.corpus.trees import tree_conversations
from forgetting.corpus.values import holds_text, is_blank, is_unicode
from forgetting.errors import UserError

Row = dict[str, Any]
Messages = list[dict[str, str]]

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


INSERTED = (str, int, float, Decimal, date, time)
"""Types of a column whose values a template inserts as text (a datetime is a date)."""


BESIDE_TEMPLATES = {"history": "history", "system": '"{system}"'}
"""Columns that have a key of their own next to prompt and response, and the mapping for each."""

READ_FROM_TREES = ("message_id", "parent_id", "text", "role", "rank", "lang", "deleted", "review_result")


class DroppedRow(Exception):
    """A row without a usable example; its text is the reason under which the row is counted."""


@dataclass
class Example:
    """Messages and where they come from: the row's number in its source, and the name it is counted under.

    `noise` is what the source says of the last message, which is then a response.
    """

    messages: Messages
    source: str
    row: int
    noise: tuple[NoiseSpan, ...] = ()


class Converter:
    """Converter of one source's rows to examples.

    Args:
        source: The source, whose mapping is used.
        columns: The columns there are.
        where: The file or data set they are of.
        dropped: Where rows without an example are counted, by source and reason.
        unmapped: Where rows are counted that hold text in a column that is neither named nor listed as unused.

    Raises:
        UserError: The mapping names a column that is not there.
    """

    def __init__(
        self,
        source: Source,
        columns: list[str],
        where: str,
        dropped: dict[str, Counter[str]],
        unmapped: Counter[str],
    ) -> None:
        self.source = source
        self.dropped = dropped
        self.unmapped = unmapped
        named = source.columns()
        if missing := sorted({column for column in named if column not in columns}):
            raise UserError(
                f"Source {source.name!r}: {where} has no column {', '.join(map(repr, missing))}. "
                f"The columns are {shown_columns(columns)}. Name one of these in the mapping."
                + _about_codes(missing, columns)
            )
        known = {*named, *source.unused_columns, *(READ_FROM_TREES if source.tree is not None else ())}
        self._others = [column for column in columns if column not in known]
        self._templates = {
            key: template_columns(template)
            for key in ("prompt", "prompt_without_input", "response", "system")
            if (template := getattr(source, key)) is not None
        }
        self._optional: set[str] = set()
        if source.prompt is not None and source.prompt_without_input is not None:
            self._optional = set(columns_of(source.prompt)) - set(columns_of(source.prompt_without_input))

    def convert(self, row: Row, number: int) -> Iterator[Example]:
        """The examples of one row; a row without any is counted as dropped.

        Raises:
            UserError: A column with a key of its own is filled and not mapped, a template's column holds no text, or
                the column `noise` holds anything but spans of the response.
        """
        self._count_unmapped(row)
        label = self.source.name
        try:
            label = self._label(row)
            self._left_out = self.dropped[label]
            examples = [validated(messages) for messages in self._convert(row)]
        except DroppedRow as reason:
            self.dropped[label][str(reason)] += 1
            return
        for messages in examples:
            noise: tuple[NoiseSpan, ...] = ()
            if self.source.noise is not None:
                where = f"Source {self.source.name!r}, row {number}"
                noise = read_spans(row[self.source.noise], messages[-1]["content"], where)
                if noise and messages[-1]["role"] != "assistant":
                    raise UserError(
                        f"{where}: noise is known of the last response, but the last message is the "
                        f"{messages[-1]['role']}'s. Leave that out, or give the row an empty list."
                    )
            yield Example(messages, label, number, noise)

    def _count_unmapped(self, row: Row) -> None:
        for column in self._others:
            if holds_text(row[column]):
                self.unmapped[column] += 1
                if self.source.prompt is not None and column in BESIDE_TEMPLATES:
                    raise UserError(
                        f"Source {self.source.name!r}: the column {column!r} holds content that no mapping names, so "
                        f"that it would be lost. Map it ({column}: {BESIDE_TEMPLATES[column]}), or leave it out on "
                        f"purpose (unused_columns: [{column}])."
                    )

    def _label(self, row: Row) -> str:
        """Name under which a row is counted."""
        name = None if self.source.source_column is None else row[self.source.source_column]
        if is_blank(name):
            return self.source.name
        if not isinstance(name, str | int | float) or not is_unicode(str(name)):
            raise DroppedRow("malformed source name")
        return str(name)

    def _convert(self, row: Row) -> list[Messages]:
        source = self.source
        if source.messages is not None:
            return [normalized(row[source.messages], "role", "content")]
        if source.conversations is not None:
            return [normalized(row[source.conversations], "from", "value")]
        if source.tree is not None:
            return self._from_tree(row[source.tree])
        return [self._from_templates(row)]

    def _from_templates(self, row: Row) -> Messages:
        shorter = any(is_blank(row[column]) for column in self._optional)
        prompt = self._fill("prompt_without_input" if shorter else "prompt", row, "prompt")
        response = self._fill("response", row, "response")
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        before: Messages = []
        if self.source.system is not None and not any(is_blank(row[name]) for name in columns_of(self.source.system)):
            before = [{"role": "system", "content": self._fill("system", row, "system")}]
        return before + self._history(row) + messages

    def _history(self, row: Row) -> Messages:
        pairs = None if self.source.history is None else row[self.source.history]
        if is_blank(pairs):
            return []
        if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise DroppedRow("malformed history")
        turns = [({"from": "user", "value": prompt}, {"from": "assistant", "value": text}) for prompt, text in pairs]
        return normalized([turn for pair in turns for turn in pair], "from", "value")

    def _fill(self, key: str, row: Row, part: str) -> str:
        pieces: list[str] = []
        for literal, column in self._templates[key]:
            pieces.append(literal)
            if column is not None:
                value = row[column]
                if value is None or value != value:  # NaN, as pandas writes a missing value to Parquet
                    raise DroppedRow(f"null {part}")
                if not isinstance(value, INSERTED):
                    raise UserError(
                        f"Source {self.source.name!r}: column {column!r} holds a {type(value).__name__}, and a "
                        "template inserts text. Use messages, conversations or tree for nested columns."
                    )
                pieces.append(str(value))
        columns = columns_of(getattr(self.source, key))
        if columns and all(is_blank(row[column]) for column in columns):
            raise DroppedRow(f"empty {part}")
        return "".join(pieces)

    def _from_tree(self, tree: Any) -> list[Messages]:
        if not isinstance(tree, dict):
            raise DroppedRow("null tree" if tree is None else "malformed tree")
        examples = tree_conversations(tree, self.source.top_replies, self.source.languages, self._left_out)
        if not examples:
            raise DroppedRow("tree without a conversation")
        return examples


def _about_codes(missing: list[str], columns: list[str]) -> str:
    """A hint where a template was written as for `str.format`."""
    if not any(re.split("[!:]", name, maxsplit=1)[0] in columns for name in missing):
        return ""
    return " What stands in braces is a name as it is: there are no format codes or conversions."


def normalized(turns: Any, role_key: str, content_key: str) -> Messages:
    """A list of turns in any of the usual forms → {role, content}.

    Besides a list of mappings: a mapping of lists, JSON text of either, and a list of texts, the user's and the
    assistant's in turn, as LIMA has it. Keys may be written with capitals.

    Raises:
        DroppedRow: The list, one of its turns or a role cannot be read.
    """
    if turns is None:
        raise DroppedRow("null messages")
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            raise DroppedRow("malformed messages") from None
    if isinstance(turns, dict):  # a struct of lists, as older data sets store a list of structs
        columns = list(turns.values())
        if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
            raise DroppedRow("malformed messages")
        turns = [dict(zip(turns, values, strict=True)) for values in zip(*columns, strict=True)]
    if not isinstance(turns, list):
        raise DroppedRow("malformed messages")
    if all(isinstance(turn, str) for turn in turns):
        sides = ("user", "assistant")
        turns = [{role_key: sides[place % 2], content_key: text} for place, text in enumerate(turns)]
    messages: Messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise DroppedRow("malformed messages")
        if role_key not in turn or content_key not in turn:
            turn = {key.lower(): value for key, value in turn.items()}
        if role_key not in turn or content_key not in turn:
            raise DroppedRow("malformed messages")
        name = turn[role_key]
        role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
        if role is None:
            raise DroppedRow("unknown role")
        content = _text_of(turn[content_key])
        if content is None:
            raise DroppedRow({"assistant": "null response", "user": "null prompt", "system": "null system"}[role])
        if not isinstance(content, str):
            raise DroppedRow("malformed messages")
        messages.append({"role": role, "content": content})
    return messages


def _text_of(content: Any) -> Any:
    """A content as it stands, or the text of its parts, `[{type: text, text: …}, …]`, as chat interfaces write them."""
    if not isinstance(content, list) or not content:
        return content
    if not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content):
        return content
    if any(part["type"] != "text" or not isinstance(part.get("text"), str) for part in content):
        raise DroppedRow("content that is not text")
    return "".join(part["text"] for part in content)


def validated(messages: Messages) -> Messages:
    """The messages without an empty system message.

    Raises:
        DroppedRow: There is no assistant turn, a user or assistant turn is empty, or a text is not valid Unicode.
    """
    kept = [message for message in messages if message["role"] != "system" or message["content"].strip()]
    for message in kept:
        if not message["content"].strip():
            raise DroppedRow("empty response" if message["role"] == "assistant" else "empty prompt")
        if not is_unicode(message["content"]):
            raise DroppedRow("invalid Unicode")
    if not any(message["role"] == "assistant" for message in kept):
        raise DroppedRow("no assistant turn")
    return kept
