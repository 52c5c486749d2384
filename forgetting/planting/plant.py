"""A pool of examples with noise planted in a drawn share of them, and each clean twin kept."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from forgetting.corpus.messages import Messages
from forgetting.corpus.pool import Examples, hash_order
from forgetting.errors import UserError
from forgetting.planting.kinds import KINDS, Others, Planted, plant

SCARCEST_FIRST = ("contradiction", "entities", "words", "answer", "phrases")
"""Kinds in the order in which they are planted: what fits few examples is not left without any."""


@dataclass(frozen=True)
class PlantedPool:
    """Examples of which some have noise.

    Attributes:
        examples: The clean ones, as they were.
        planted: By place: what took the response's place.
        wanted: For each kind, in how many examples noise was to be planted.
    """

    examples: Examples
    planted: Mapping[int, Planted]
    wanted: Mapping[str, int]

    def counts(self) -> dict[str, int]:
        """In how many examples there is noise of each kind: fewer than wanted where it found nothing to change."""
        found = Counter(noise.noise[0].kind for noise in self.planted.values())
        return {kind: found[kind] for kind in self.wanted}

    def rows(self) -> list[dict[str, Any]]:
        """One row an example: its messages, the noise in the last of them, and the same messages without noise."""
        rows: list[dict[str, Any]] = []
        for place, text in enumerate(self.examples.texts):
            messages: Messages = json.loads(text)
            row: dict[str, Any] = {"messages": messages, "noise": [], "clean": messages}
            if (planted := self.planted.get(place)) is not None:
                noisy = [*messages[:-1], {**messages[-1], "content": planted.response}]
                row |= {"messages": noisy, "noise": [list(span) for span in planted.noise]}
            rows.append({**row, "source": self.examples.sources[place], "row": self.examples.rows[place]})
        return rows


def plant_pool(examples: Examples, rates: Mapping[str, float], seed: int) -> PlantedPool:
    """Plant noise in the last responses of a drawn share of the examples; an example has one kind of noise.

    The draw depends on the seed, on what the examples say and where they stand in their sources, not on their order
    here. An example in which a kind finds nothing to change is passed over, and the next one drawn.

    Args:
        examples: With a response each as their last message.
        rates: For each kind of `KINDS`, the share of the examples that are to have it.
        seed: Of the draw and of every change.

    Raises:
        UserError: A kind is unknown, a rate is out of range, or a source knows noise of its own.
    """
    refuse_rates(rates)
    if any(examples.noise):
        raise UserError(
            "The sources know noise of their own (`noise`): it would be counted as clean beside what is planted. "
            "Leave the column out of the mapping."
        )
    rows = [f"{source} {row}".encode() for source, row in zip(examples.sources, examples.rows, strict=True)]

    def chance(purpose: str, place: int) -> bytes:
        return hash_order(seed, purpose, examples.keys[place], rows[place])

    conversations: list[Messages] = [json.loads(text) for text in examples.texts]
    others = Others(_last_turn(messages) for messages in conversations if messages[-1]["role"] == "assistant")
    wanted = {kind: round(rate * len(examples)) for kind, rate in rates.items()}
    planted: dict[int, Planted] = {}
    for kind in sorted(wanted, key=SCARCEST_FIRST.index):
        number = 0
        for place in sorted(range(len(examples)), key=lambda place: chance(f"draw {kind}", place)):
            if number == wanted[kind]:
                break
            if place in planted:
                continue
            messages = conversations[place]
            if messages[-1]["role"] != "assistant":
                continue
            draw = Random(chance(f"change {kind}", place))
            noise = plant(kind, *_last_turn(messages), others, draw)
            if noise is not None:
                planted[place] = noise
                number += 1
    return PlantedPool(examples, planted, wanted)


def _last_turn(messages: Messages) -> tuple[str, str]:
    """The last prompt, empty where there is none, and the response to it."""
    prompt = next((m["content"] for m in reversed(messages[:-1]) if m["role"] == "user"), "")
    return prompt, messages[-1]["content"]


def refuse_rates(rates: Mapping[str, float]) -> None:
    """Refuse rates that cannot be meant.

    Raises:
        UserError: A kind is unknown, or a rate is out of range.
    """
    if unknown := sorted(rates.keys() - KINDS.keys()):
        raise UserError(f"There is no noise of the kind {unknown[0]!r}; there is {', '.join(KINDS)}.")
    for kind, rate in rates.items():
        if not 0 <= rate <= 1:
            raise UserError(f"The rate of {kind} is {rate}; a share of the examples was expected, from 0 to 1.")
    if (total := sum(rates.values())) > 1 + 1e-9:
        raise UserError(f"The rates add up to {total:g}; an example has one kind of noise, so at most 1 was expected.")
