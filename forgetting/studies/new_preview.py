"""An example as a model sees it, and how long examples are in its tokens."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any

from forgetting.corpus.encoding import Encoder, Segment
from forgetting.corpus.messages import Messages
from forgetting.corpus.templates import Tulu, template_for
from forgetting.corpus.values import visible
from forgetting.errors import UserError
from forgetting.model.backbone import load_configuration, load_tokenizer
from forgetting.paths import is_local
from forgetting.studies.new_files import PAPER

EXAMPLES_TO_COUNT = 1000
SHOWN_CHARACTERS = 600
"""Characters that are shown of each part of the example."""


@dataclass(frozen=True)
class Preview:
    """The first example as text and, where the tokenizer is on this machine, in tokens.

    Attributes:
        model: The base model.
        max_length: Tokens of a sequence: the paper's, or the model's positions where they are fewer.
        segments: The example as the template writes it.
        lengths: Tokens of the first examples; None where the tokenizer is not on this machine.
        num_targets: Tokens of the example that are predicted.
    """

    model: str
    max_length: int
    segments: list[Segment]
    lengths: list[int] | None = None
    num_targets: int = 0

    def report(self) -> str:
        """The example in its parts, and how long examples are."""
        lines = [f"The first example, in the template {PAPER['template']}:"]
        for is_target, group in groupby(self.segments, lambda segment: segment.is_target):
            text = visible("".join(segment.text for segment in group)).rstrip("\n")
            more = f"... ({len(text) - SHOWN_CHARACTERS:,} more characters)" if len(text) > SHOWN_CHARACTERS else ""
            lines += [f"--- {'response' if is_target else 'prompt'}", text[:SHOWN_CHARACTERS] + more]
        lines.append("---")
        if self.lengths is None:
            lines.append(f"The tokenizer of {self.model} is not on this machine: `prepare` fetches it.")
        else:
            cut = sum(length > self.max_length for length in self.lengths)
            lines += [
                f"It has {self.lengths[0]:,} tokens, {self.num_targets:,} to predict. The first {len(self.lengths):,} "
                f"examples: median {median(self.lengths):,.0f}, longest {max(self.lengths):,}; {cut:,} cut at "
                f"{self.max_length:,} tokens."
            ]
        return "\n".join(lines)


def preview_of(model: str, texts: list[str]) -> Preview:
    """Render and count examples.

    Args:
        model: A folder, or a name on the hub; the hub is not asked.
        texts: The examples' messages as JSON.

    Raises:
        UserError: The folder is not a model's, or its tokenizer lacks what the template needs.
    """
    config = _on_this_machine(load_configuration, model)
    positions = None if config is None else getattr(config.get_text_config(), "max_position_embeddings", None)
    max_length = min(PAPER["max_length"], positions or PAPER["max_length"])
    examples: list[Messages] = [json.loads(text) for text in texts[:EXAMPLES_TO_COUNT]]
    tokenizer = _on_this_machine(load_tokenizer, model)
    if tokenizer is None:
        return Preview(model, max_length, Tulu("<EOS>").render(examples[0]))
    template = template_for(PAPER["template"], tokenizer)
    rendered = [template.render(messages) for messages in examples]
    encoded, lengths = Encoder(tokenizer, template.adds_bos).encode(rendered, max_length)
    return Preview(model, max_length, rendered[0], lengths, int(encoded[0].response_mask.sum()))


def _on_this_machine(load: Callable[..., Any], model: str) -> Any:
    """What a loader finds here; None for a model on the hub that was not fetched."""
    if is_local(model):
        return load(model)
    try:
        return load(model, local_only=True)
    except UserError:
        return None
