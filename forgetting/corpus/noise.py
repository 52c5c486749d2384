"""Known noise: spans of a response that a source says are noise, on their way from a row to the tokens.

Nothing in the method reads it. It measures how well a score finds noise, and it is what an oracle would know.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from forgetting.corpus.values import is_blank, is_unicode
from forgetting.errors import UserError

MAX_KINDS = 255  # a token's kind is one byte, and 0 is clean


class NoiseSpan(NamedTuple):
    """Characters `start` to `end` (exclusive) of a response, and the kind of noise that they are."""

    start: int
    end: int
    kind: str


def read_spans(value: Any, response: str, where: str) -> tuple[NoiseSpan, ...]:
    """Read a row's spans, such as `[[0, 5, "typo"], [9, 12, "wrong"]]`, in the order of their characters.

    Args:
        value: The row's value in the source's column `noise`.
        response: The text that the spans are of.
        where: The source and the row, for errors.

    Raises:
        UserError: The value is no list of spans, or a span is empty, beyond the response or overlaps another.
    """
    if not isinstance(value, list):
        raise UserError(
            f"{where}: noise is {value!r:.100}; expected a list of [start, end, kind] in characters of the response, "
            "empty where it is clean."
        )
    for span in value:
        if not isinstance(span, list) or [type(part) for part in span] != [int, int, str]:
            raise UserError(
                f"{where}: the noise span {span!r:.100} is not [start, end, kind] with two whole numbers and a text."
            )
        start, end, kind = span
        if not 0 <= start < end <= len(response):
            raise UserError(
                f"{where}: the noise span {span!r:.100} is empty or not within the response, which has "
                f"{len(response):,} characters; expected 0 <= start < end <= {len(response):,}."
            )
        if is_blank(kind) or not is_unicode(kind):
            raise UserError(f"{where}: the noise span {span!r:.100} has no kind that can be written; give it a name.")
    spans = sorted(NoiseSpan(*span) for span in value)
    for before, after in pairwise(spans):
        if after.start < before.end:
            raise UserError(
                f"{where}: the noise spans {list(before)} and {list(after)} overlap. A character has one kind of noise."
            )
    return tuple(spans)


def kinds_of(examples: Sequence[Sequence[NoiseSpan]]) -> list[str]:
    """All kinds of noise in the examples' spans, in alphabetical order.

    Raises:
        UserError: There are more than a token's code can tell apart.
    """
    kinds = sorted({span.kind for spans in examples for span in spans})
    if len(kinds) > MAX_KINDS:
        raise UserError(
            f"The sources name {len(kinds):,} kinds of noise ({', '.join(kinds[:3])}, ...); expected at most "
            f"{MAX_KINDS}. Give spans of a sort the same kind."
        )
    return kinds
