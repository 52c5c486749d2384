"""Known noise: spans of a response that a source says are noise, on their way from a row to the tokens.

Nothing in the method reads it. It measures how well a score finds noise, and it is what an oracle would know.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from forgetting.corpus.encoding import Segment
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


def mark_noise(segments: list[Segment], response: str, spans: Sequence[NoiseSpan], kinds: list[str]) -> list[Segment]:
    """Tell the segments of an example which of their characters are noise.

    Args:
        segments: As a template made them.
        response: The last message, as it stands in the corpus.
        spans: Its noise.
        kinds: All kinds in the corpus; a kind's code is 1 + its place.

    Raises:
        UserError: The segments do not hold the response as it stands, so that its characters cannot be found again.
    """
    if not any(segment.origin is not None for segment in segments):
        raise UserError(
            "The template does not say where it writes the response, whose noise is known, or writes it more than "
            "once or changed. Use data.template: tulu or plain, or leave out the source's `noise`."
        )
    marked: list[Segment] = []
    for segment in segments:
        if segment.origin is not None:
            start, end = segment.origin, segment.origin + len(segment.text)
            if response[start:end] != segment.text:
                raise UserError(
                    f"The template says that {segment.text[:60]!r} are the characters from {start} of the response, "
                    f"but these are {response[start:end][:60]!r}. Correct the `origin` of its segments."
                )
            inside = ((max(span.start, start), min(span.end, end), 1 + kinds.index(span.kind)) for span in spans)
            noise = tuple((first - start, last - start, code) for first, last, code in inside if first < last)
            segment = replace(segment, noise=noise)
        marked.append(segment)
    return marked
