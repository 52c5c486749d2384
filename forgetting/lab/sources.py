"""Fine-tuning data from five sources of different quality, with the noise of every word."""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from forgetting.lab.language import TASKS, Language
from forgetting.lab.noise import Kind, noisy_answer


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


SOURCES = {
    "dolly": Quality(0.05, 0.20, 0.02, 0.03),
    "flan": Quality(0.36, 0.35, 0.04, 0.06),
    "oasst": Quality(0.12, 0.60, 0.10, 0.10),
    "alpaca": Quality(0.18, 0.45, 0.05, 0.08),
    "wizardlm": Quality(0.29, 0.55, 0.05, 0.14),
}


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


def draw_sources(seed: int, language: Language, num_distinct: int) -> dict[str, list[Row]]:
    """Rows of all sources, drawn until there are `num_distinct` distinct ones. Duplicates stay: real pools have them.

    Args:
        seed: The world's.
        language: Its language.
        num_distinct: Distinct pairs of prompt and response over all sources.
    """
    draw = Random(f"sources {seed}")
    rows: dict[str, list[Row]] = {name: [] for name in SOURCES}
    distinct: set[tuple[str, str]] = set()
    names, shares = list(SOURCES), [quality.share for quality in SOURCES.values()]
    while len(distinct) < num_distinct:
        (name,) = draw.choices(names, shares)
        row = noisy_row(draw, language, SOURCES[name])
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
