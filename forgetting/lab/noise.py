"""Noise in answers, with a record of it: which words are clean, and of what kind the others are."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from forgetting.lab.language import Language, Slot


class Kind(StrEnum):
    """Kind of a word of an answer: right, the misconception, any word, or part of a phrase that says nothing."""

    CLEAN = "clean"
    MISLEADING = "misleading"
    RANDOM = "random"
    BOILERPLATE = "boilerplate"


@dataclass(frozen=True)
class Answer:
    """The words of an answer, and the kind of each."""

    words: tuple[str, ...]
    noise: tuple[Kind, ...]


def noisy_answer(
    draw: Random,
    language: Language,
    slots: Sequence[Slot],
    misleading: Sequence[float],
    random: float,
    boilerplate: float,
) -> Answer:
    """An answer that gives the slots in order, each its name and a value, with noise.

    Args:
        draw: Source of chance.
        language: For the words of random noise and the phrases of boilerplate.
        slots: What is answered.
        misleading: For each slot, the probability that the misconception stands in for the true one.
        random: For each name and value, the probability that any word stands in for it.
        boilerplate: For each slot, the probability that a phrase goes before it.

    Returns:
        The answer. A misconception that is true is clean; a random word is noise even if it happens to be right.
    """
    words: list[str] = []
    noise: list[Kind] = []
    anything = language.plain_words
    for slot, rate in zip(slots, misleading, strict=True):
        if draw.random() < boilerplate:
            phrase = draw.choice(language.boilerplates)
            words += phrase
            noise += [Kind.BOILERPLATE] * len(phrase)
        misled = draw.random() < rate and slot.true != slot.misconception
        value = (slot.misconception, Kind.MISLEADING) if misled else (slot.true, Kind.CLEAN)
        for word, kind in ((slot.name, Kind.CLEAN), value):
            is_random = draw.random() < random
            words.append(draw.choice(anything) if is_random else word)
            noise.append(Kind.RANDOM if is_random else kind)
    return Answer(tuple(words), tuple(noise))
