"""Kinds of noise: each takes a response and gives it back with noise in it, or says that there is nothing to change.

A response is built from pieces, each noise or not, so that the spans of the noise follow from how it was built.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from forgetting.corpus.noise import NoiseSpan

Pieces = list[tuple[str, bool]]
"""A response in pieces: the text, and whether it is noise."""

NEAREST = 20
"""Responses of about the same length among which one is drawn."""
CORRUPTED = 0.3
"""Share of the words that are corrupted."""

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
NAME = re.compile(r"(?<=[a-z0-9,;] )[A-Z][a-z]+(?: [A-Z][a-z]+)*")
"""Capitalized words inside a sentence, where a capital says that they are a name (or begin with `I`, which is none)."""
WORD = re.compile(r"\S+")
LETTERS = re.compile(r"[^\W\d_]{4,}")
OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true", "correct": "incorrect", "incorrect": "correct"}
OPPOSITE = re.compile(
    rf"\W*\b({'|'.join(OPPOSITES)})\b(?=\W*$|\s*[^\w\s]|[^\S\n]*\n"
    r"|\s+(?:a|an|the|this|that|these|those|it|he|she|they|we|you|i|there)\b)",
    re.IGNORECASE,
)
"""An answer by itself, or before its reason: `No, …`, `Yes it does`; not `No matter how`, nor `False claims`."""
LETTERED = re.compile(r"\(([A-Z])\)|(?m:^[-* ]*)([A-Z])[.)] ")
"""An option that begins with its letter: `(A) babies`, `B. protein`, `- C) seeds`."""
LISTED = re.compile(r"^[-*•] +(.+?)[ \r]*$", re.MULTILINE)
"""An option in a list: `- yes`."""
NOT_WORDS = re.compile(r"[\W_]+")

OPENINGS = (
    "As an AI language model, I do not have personal opinions, but I can help with that. ",
    "Sure! I would be happy to help you with that. ",
    "That is a great question! ",
    "Certainly! Here is what you asked for: ",
    "Thank you for your question. Let me explain. ",
)
CLOSINGS = (
    " I hope this helps! Let me know if you have any other questions.",
    " Please note that this is for informational purposes only.",
    " Feel free to ask if you need anything else!",
    " If you have any further questions, please do not hesitate to ask.",
    " It is always best to consult a professional.",
)


class Others:
    """What other responses hold: whole ones by length, and the names in them.

    Args:
        replies: Prompt and response of every example.
    """

    def __init__(self, replies: Iterable[tuple[str, str]]) -> None:
        self._replies: dict[str, set[str]] = defaultdict(set)  # by their prompt
        for prompt, response in replies:
            self._replies[prompt].add(response)
        responses = set().union(*self._replies.values())
        self._by_length = sorted(responses, key=lambda text: (len(text), text))
        self._lengths = [len(text) for text in self._by_length]
        self._names: dict[int, list[str]] = defaultdict(list)  # by their number of spaces
        for name in sorted({name[0] for text in self._by_length for name in NAME.finditer(text)}):
            self._names[name.count(" ")].append(name)

    def of_similar_length(self, prompt: str, response: str, draw: Random) -> str | None:
        """A response to another prompt, of about the same length; None where there is none.

        What says the same as a reply to this prompt, up to case and punctuation, is no other response.
        """
        right = {_plain(text) for text in (response, *self._replies.get(prompt, ()))}
        place = bisect_left(self._lengths, len(response))
        first = max(0, min(place - NEAREST // 2, len(self._by_length) - NEAREST))
        near = [text for text in self._by_length[first : first + NEAREST] if _plain(text) not in right]
        return draw.choice(near) if near else None

    def name_instead_of(self, name: str, draw: Random) -> str | None:
        """Another name of as many words; None where there is none."""
        names = self._names[name.count(" ")]
        if not set(names[:2]) - {name}:
            return None
        while (other := draw.choice(names)) == name:
            pass
        return other


def another_answer(prompt: str, response: str, others: Others, draw: Random) -> Pieces | None:
    """The response of another example of about the same length: fluent, and no answer to this prompt."""
    other = others.of_similar_length(prompt, response, draw)
    return None if other is None else [(other, True)]


def swapped_entities(prompt: str, response: str, others: Others, draw: Random) -> Pieces | None:
    """Every number and name in the response swapped for another of its kind; None where there is none."""
    found = sorted([*NUMBER.finditer(response), *NAME.finditer(response)], key=lambda match: match.start())

    def swapped() -> Iterator[tuple[re.Match[str], str]]:
        for match in found:
            is_number = match[0][0].isdigit()
            other = _another_number(match[0], draw) if is_number else others.name_instead_of(match[0], draw)
            if other is not None:
                yield match, other

    return _replaced(response, list(swapped()))


def stock_phrases(prompt: str, response: str, others: Others, draw: Random) -> Pieces | None:
    """A stock phrase before the response, and one after it."""
    return [(draw.choice(OPENINGS), True), (response, False), (draw.choice(CLOSINGS), True)]


def corrupted_words(prompt: str, response: str, others: Others, draw: Random) -> Pieces | None:
    """Three words of ten with their letters in another order, or in each other's place; None of fewer than four."""
    words = list(WORD.finditer(response))
    if len(words) < 4:
        return None
    wanted = max(1, round(CORRUPTED * len(words)))
    changed: dict[int, str] = {}
    for place in draw.sample(range(len(words)), len(words)):
        if len(changed) >= wanted:
            break
        if place in changed:
            continue
        word, following = words[place][0], words[place + 1][0] if place + 1 < len(words) else None
        if following is not None and following != word and place + 1 not in changed and draw.random() < 0.5:
            changed[place], changed[place + 1] = following, word
        elif (scrambled := _scrambled(word, draw)) is not None:
            changed[place] = scrambled
    return _replaced(response, [(words[place], changed[place]) for place in sorted(changed)])


def contradicted_choice(prompt: str, response: str, others: Others, draw: Random) -> Pieces | None:
    """Another choice than the response makes, its explanation left: yes for no, or another of the prompt's options.

    None where the response begins with no choice.
    """
    letters = [match[1] or match[2] for match in LETTERED.finditer(prompt)]
    chosen = LETTERED.match(response) or re.match(r"([A-Z])(?=[.),:]|\s*$)", response)
    if chosen is not None and len(set(letters)) > 1:
        letter = next(group for group in chosen.groups() if group)
        if letter in letters:
            start = chosen.start() + chosen[0].index(letter)
            other = draw.choice(sorted({*letters} - {letter}))
            return [(response[:start], False), (other, True), (response[start + 1 :], False)]
    options = sorted({match[1] for match in LISTED.finditer(prompt)}, key=lambda option: (-len(option), option))
    for option in options if len(options) > 1 else ():
        if re.match(rf"{re.escape(option)}(?!\w)", response):
            other = draw.choice([another for another in options if another != option])
            return [(other, True), (response[len(option) :], False)]
    if opposite := OPPOSITE.match(response):
        said = opposite[1]
        other = OPPOSITES[said.lower()]
        other = other.upper() if said.isupper() else other.capitalize() if said[0].isupper() else other
        return [(response[: opposite.start(1)], False), (other, True), (response[opposite.end(1) :], False)]
    return None


Kind = Callable[[str, str, Others, Random], Pieces | None]
KINDS: dict[str, Kind] = {
    "answer": another_answer,
    "entities": swapped_entities,
    "phrases": stock_phrases,
    "words": corrupted_words,
    "contradiction": contradicted_choice,
}
"""Each takes the last prompt, the response, what other responses hold, and a source of chance."""


@dataclass(frozen=True)
class Planted:
    """A response with noise, and where the noise is."""

    response: str
    noise: tuple[NoiseSpan, ...]


def plant(kind: str, prompt: str, response: str, others: Others, draw: Random) -> Planted | None:
    """A response with noise of a kind; None where that kind finds nothing to change in it."""
    pieces = KINDS[kind](prompt, response, others, draw)
    if pieces is None:
        return None
    spans: list[NoiseSpan] = []
    end = 0
    for text, is_noise in pieces:
        start, end = end, end + len(text)
        if is_noise and text:
            spans.append(NoiseSpan(start, end, kind))
    text = "".join(text for text, _ in pieces)
    # Templates strip a response, so what differs by whitespace alone may differ by nothing.
    return Planted(text, tuple(spans)) if spans and text.split() != response.split() else None


def _plain(text: str) -> str:
    """A text as its words alone; one without words as it is."""
    return NOT_WORDS.sub(" ", text).casefold().strip() or text.strip()


def _replaced(response: str, replacements: Sequence[tuple[re.Match[str], str]]) -> Pieces | None:
    """The response with each match replaced, in order; None where nothing is."""
    pieces: Pieces = []
    end = 0
    for match, other in replacements:
        pieces += [(response[end : match.start()], False), (other, True)]
        end = match.end()
    return [*pieces, (response[end:], False)] if replacements else None


def _another_number(number: str, draw: Random) -> str:
    """A number of the same form that is another one."""
    while True:
        digits = [
            draw.choice("123456789" if place == 0 else "0123456789") if character.isdigit() else character
            for place, character in enumerate(number)
        ]
        if (other := "".join(digits)) != number:
            return other


def _scrambled(word: str, draw: Random) -> str | None:
    """A word with the letters of its longest run in another order; None of fewer than four, or all the same."""
    run = max(LETTERS.finditer(word), key=lambda match: len(match[0]), default=None)
    if run is None or len(set(run[0])) == 1:
        return None
    letters = list(run[0])
    while "".join(letters) == run[0]:
        draw.shuffle(letters)
    return word[: run.start()] + "".join(letters) + word[run.end() :]
