"""What examples look like to a model: one of them as text, and how many tokens they have."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from forgetting.arguments import read_yaml
from forgetting.corpus.encoding import Encoder, Segment
from forgetting.corpus.messages import Messages
from forgetting.corpus.templates import Tulu, template_for
from forgetting.errors import UserError
from forgetting.model.backbone import load_configuration, load_tokenizer
from forgetting.paths import CONFIGS, is_local

EXAMPLES_TO_COUNT = 1000
CHARACTERS = 600
"""Characters of a part of the example that are shown."""


def visible(text: str) -> str:
    """A text without characters that would steer a terminal; lines and tabs stay."""
    return "".join(character if character.isprintable() or character in "\n\t" else "�" for character in text)


@dataclass(frozen=True)
class Preview:
    """The first example as text and, where the tokenizer is on this machine, in tokens.

    Attributes:
        model: The base model.
        max_length: Tokens of a sequence: the paper's, or the model's positions where they are fewer.
        segments: The example as the template writes it.
        counts: Tokens of the example, those of them that are trained on, and tokens of the first examples; None where
            the tokenizer is not here.
    """

    model: str
    max_length: int
    template: str
    segments: list[Segment]
    counts: tuple[int, int, list[int]] | None

    @staticmethod
    def of(model: str, texts: list[str]) -> "Preview":
        """Look at examples.

        Args:
            model: A folder, or a name on the hub; the hub is not asked.
            texts: The examples' messages as JSON.

        Raises:
            UserError: The folder is no model's, or its tokenizer lacks what the template needs.
        """
        data = read_yaml(CONFIGS / "paper.yaml")["data"]
        config = _on_this_machine(load_configuration, model)
        positions = None if config is None else getattr(config.get_text_config(), "max_position_embeddings", None)
        max_length = min(data["max_length"], positions or data["max_length"])
        examples: list[Messages] = [json.loads(text) for text in texts[:EXAMPLES_TO_COUNT]]
        tokenizer = _on_this_machine(load_tokenizer, model)
        if tokenizer is None:
            return Preview(model, max_length, data["template"], Tulu("<EOS>").render(examples[0]), None)
        template = template_for(data["template"], tokenizer)
        rendered = [template.render(messages) for messages in examples]
        encoded, lengths = Encoder(tokenizer, template.adds_bos).encode(rendered, max_length)
        counts = (lengths[0], int(encoded[0].response_mask.sum()), lengths)
        return Preview(model, max_length, data["template"], rendered[0], counts)

    def report(self) -> str:
        """The example in its parts, and how long examples are."""
        title = f"The first example, as the template {self.template} writes it"
        if self.counts is not None:
            title += f": {self.counts[0]:,} tokens, {self.counts[1]:,} of them to learn from"
        lines = [title]
        for is_target, group in groupby(self.segments, lambda segment: segment.is_target):
            text = visible("".join(segment.text for segment in group)).rstrip("\n")
            more = f"... ({len(text) - CHARACTERS:,} more characters)" if len(text) > CHARACTERS else ""
            lines += [f"--- {'response' if is_target else 'prompt'}", text[:CHARACTERS] + more]
        lines.append("---")
        if self.counts is None:
            lines.append(
                f"The tokenizer of {self.model} is not on this machine: the first command fetches it and counts tokens."
            )
        else:
            lengths = self.counts[2]
            cut = sum(length > self.max_length for length in lengths)
            lines.append(
                f"Tokens of the first {len(lengths):,} examples: {median(lengths):,.0f} in the median, "
                f"{max(lengths):,} in the longest; {cut:,} are cut at data.max_length {self.max_length:,}"
            )
        return "\n".join(lines)


def _on_this_machine(load: Callable[..., Any], model: str) -> Any:
    """What a loader finds here; None for a model on the hub that was not fetched."""
    if is_local(model) or Path(model).is_dir():
        return load(model)
    try:
        return load(model, local_only=True)
    except UserError:
        return None
