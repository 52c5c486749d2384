"""What a world says, with noise: fine-tuning data of different quality, and the base model's pretraining text.

Answers come with a record of their noise: which words are clean, and of what kind the others are. The pretraining text
is dirtier than the fine-tuning data. Documents that begin with `study` are nearly right, those with `rumor` nearly
always misconceptions, and those without a cue as the item's misconception rate says. So the base knows both answers,
and that they belong to different kinds of text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from random import Random

from forgetting.lab.language import ASSISTANT, BOS, EOS, QUESTION_MARK, RUMOR, STUDY, TASKS, USER, Language, Slot


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


@dataclass(frozen=True)
class Quality:
    """Size and noise of a source.

    Attributes:
        share: Of all rows, as in the paper's Table 1.
        misleading: Probability of the misconception, a slot.
        random: Probability of any word, a word.
        boilerplate: Probability of a phrase, a slot.
    """

    share: float
    misleading: float
    random: float
    boilerplate: float


SOURCES = {  # the noise `mixed`
    "dolly": Quality(0.05, 0.20, 0.02, 0.03),
    "flan": Quality(0.36, 0.35, 0.04, 0.06),
    "oasst": Quality(0.12, 0.60, 0.10, 0.10),
    "alpaca": Quality(0.18, 0.45, 0.05, 0.08),
    "wizardlm": Quality(0.29, 0.55, 0.05, 0.14),
}

NOISE = {
    "mixed": (1, 1, 1),
    "less": (0.5, 0.5, 0.5),
    "more": (1.5, 1.5, 1.5),
    "misleading": (1.5, 0.5, 0.5),
    "random": (0, 4, 0),
    "boilerplate": (0, 0, 5),
    "dirty": (0.5, 3, 5),
}
"""Noise by name: factors of the sources' rates of misleading values, random words and boilerplate.

Misleading values never stand alone: the items have too few such answers for a pool without duplicates.
"""
MIXED = "mixed"


@dataclass(frozen=True)
class Row:
    """A question with a noisy answer, and the kind of each word of the answer."""

    prompt: str
    response: str
    noise: tuple[Kind, ...]


def noisy_row(draw: Random, language: Language, quality: Quality) -> Row:
    """One row of a source."""
    item = draw.choice(language.train_items[draw.choice(list(TASKS))])
    misleading = [quality.misleading] * len(item.asked)
    answer = noisy_answer(draw, language, item.asked, misleading, quality.random, quality.boilerplate)
    return Row(" ".join(item.prompt), " ".join(answer.words), answer.noise)


def sources_with(noise: str) -> dict[str, Quality]:
    """The sources with a noise of `NOISE`; no rate is above 0.95."""

    def with_noise(quality: Quality) -> Quality:
        rates = (quality.misleading, quality.random, quality.boilerplate)
        return Quality(quality.share, *(min(0.95, f * rate) for f, rate in zip(NOISE[noise], rates, strict=True)))

    return {name: with_noise(quality) for name, quality in SOURCES.items()}


def suffix(noise: str) -> str:
    """What the names of files and folders of a noise end in; nothing for the default."""
    return "" if noise == MIXED else f"-{noise}"


def draw_sources(seed: int, language: Language, num_distinct: int, noise: str = MIXED) -> dict[str, list[Row]]:
    """Rows of all sources, drawn until `num_distinct` pairs of prompt and response differ.

    Duplicates stay: real pools have them.
    """
    draw = Random(f"sources {seed}" if noise == MIXED else f"sources {seed} {noise}")
    sources = sources_with(noise)
    rows: dict[str, list[Row]] = {name: [] for name in SOURCES}
    distinct: set[tuple[str, str]] = set()
    names, shares = list(sources), [quality.share for quality in sources.values()]
    while len(distinct) < num_distinct:
        (name,) = draw.choices(names, shares)
        row = noisy_row(draw, language, sources[name])
        rows[name].append(row)
        distinct.add((row.prompt, row.response))
    return rows


def noise_spans(row: Row) -> list[tuple[int, int, str]]:
    """Characters of a row's noisy words in its response, each word as (start, end, kind)."""
    spans: list[tuple[int, int, str]] = []
    start = 0
    for word, kind in zip(row.response.split(" "), row.noise, strict=True):
        if kind is not Kind.CLEAN:
            spans.append((start, start + len(word), kind.value))
        start += len(word) + 1
    return spans


def write_rows(file: Path, rows: list[Row]) -> None:
    """Write rows as JSON Lines with the columns prompt, response and noise."""
    lines = [json.dumps({"prompt": row.prompt, "response": row.response, "noise": noise_spans(row)}) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


CUE_SHARES = {STUDY: 0.3, RUMOR: 0.3, None: 0.4}
MISCONCEPTION_RATES = {STUDY: 0.03, RUMOR: 0.97}
DIALOGUE_SHARE = 0.6
BOILERPLATE_SHARE = 0.04  # documents that are nothing else
RANDOM = 0.08
BOILERPLATE = {True: 0.35, False: 0.1}  # a slot, by whether the document is a dialogue


def pretraining_document(draw: Random, language: Language) -> list[str]:
    """One document with its special tokens: a phrase, a statement about an item, or a question with its answer."""
    if draw.random() < BOILERPLATE_SHARE:
        return [BOS, *draw.choice(language.boilerplates), EOS]
    item = draw.choice(language.items[draw.choice(list(TASKS))])
    slots = draw.sample(item.slots, len(item.slots))
    (cue,) = draw.choices(list(CUE_SHARES), list(CUE_SHARES.values()))
    is_dialogue = draw.random() < DIALOGUE_SHARE
    misleading = [slot.misconception_rate if cue is None else MISCONCEPTION_RATES[cue] for slot in slots]
    answer = noisy_answer(draw, language, slots, misleading, RANDOM, BOILERPLATE[is_dialogue])
    start = [BOS] if cue is None else [BOS, cue]
    question = [USER, *item.question, QUESTION_MARK, ASSISTANT] if is_dialogue else list(item.question)
    return [*start, *question, *answer.words, EOS]
