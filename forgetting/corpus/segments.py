"""Pieces of an example's text, as templates make them and the encoder takes them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from forgetting.corpus.noise import NoiseSpan
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
        noise: Known noise in the text as (start, end, code) in its characters (`forgetting.corpus.noise`).
    """

    text: str
    is_target: bool
    is_control: bool = False
    origin: int | None = None
    noise: tuple[tuple[int, int, int], ...] = ()


def mark_noise(segments: list[Segment], response: str, spans: Sequence[NoiseSpan], kinds: list[str]) -> list[Segment]:
    """Tell the segments of an example which of their characters are noise.

    Args:
        segments: As a template made them.
        response: The last message, as it stands in the corpus.
        spans: Its noise.
        kinds: All kinds in the corpus; a kind's code is 1 + its place.

    Returns:
        The segments, unchanged but for their `noise`.

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
