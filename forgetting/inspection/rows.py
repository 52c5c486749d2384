"""Examples with their scores for other programs and for the terminal."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from forgetting.artifacts import complete_or_absent
from forgetting.inspection.examples import Example, Examples

STYLES = {"positive": "white on blue", "negative": "strike black on dark_orange", "ignored": "underline"}
"""Looks of a token by what the selection makes of it."""


def write_rows(examples: Examples, path: Path, num_examples: int) -> None:
    """Write a line of JSON per example: `tokens`, `metrics` and `annotations`, one value per token.

    Args:
        examples: D_train with its scores.
        path: The file, written whole or not at all.
        num_examples: Examples of the sample at most.
    """
    with complete_or_absent(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for example in examples.sampled(num_examples):
            file.write(json.dumps(row(examples, example), ensure_ascii=False, allow_nan=False) + "\n")


def row(examples: Examples, example: Example) -> dict[str, Any]:
    """One example as plain values: null at prompts, and as the noise of clean tokens."""
    annotations: dict[str, list[Any]] = {"selection": example.states(examples.own_step)}
    if example.noise is not None:
        kinds = [None, *examples.noise_kinds]
        annotations["noise"] = [kinds[code] for code in example.noise.tolist()]
    metrics = {
        name: getattr(example, name).tolist() for name in ("score", "nll_base", "nll_reference", "rank")
    }  # fmt: skip
    return {
        "id": example.number, "source": example.source, "tokens": example.pieces.texts,
        "metrics": {name: _at_responses(example, values) for name, values in metrics.items()},
        "annotations": {name: _at_responses(example, values) for name, values in annotations.items()},
    }  # fmt: skip


def _at_responses(example: Example, values: list[Any]) -> list[Any]:
    """Values of the response tokens, one per token of the example."""
    rest = iter(values)
    return [next(rest) if is_response else None for is_response in example.response_mask.tolist()]


def print_examples(examples: Examples, num_examples: int) -> None:
    """Print a sample in color: negative tokens are struck through, ignored ones underlined."""
    console = Console(highlight=False, soft_wrap=True)
    for example in examples.sampled(num_examples):
        mean = float(examples.means[example.number])
        console.print(Text(f"{example.source}, example {example.number}, mean score {mean:.3f}", "bold"))
        console.print(colored(example, examples.own_step))
        console.print()


def colored(example: Example, step: int) -> Text:
    """The text of an example, styled by what a step of the slider makes of its tokens.

    Characters that would move the cursor or change the terminal's settings are replaced.
    """
    states = _at_responses(example, example.states(step))
    text = Text()
    for piece, state in zip(example.pieces.texts, states, strict=True):
        printable = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in piece)
        text.append(printable, "dim" if state is None else STYLES[state])
    return text
