"""One page without any request: a sample of examples with their tokens' scores, and counts of the whole corpus."""

import base64
import hashlib
import html
import json
from importlib.resources import files
from typing import Any

import numpy as np

from forgetting.inspection.examples import Example, Examples
from forgetting.inspection.summary import short, summary

BUDGET = 4_500_000
"""Bytes of the examples on a page: fewer are shown where more do not fit."""


def build_page(examples: Examples, title: str, num_examples: int, health: str = "") -> str:
    """Make the page of D_train.

    Args:
        examples: D_train with its scores.
        title: Name of the run.
        num_examples: Examples to show at most.
        health: Lines of selection health.
    """
    encoder = _Encoder(examples)
    shown = _fitting(examples, encoder, num_examples)
    content = summary(examples) | {"unit": encoder.unit}
    data = _json(content)[:-1] + ',"examples":[\n' + ",\n".join(shown) + "\n]}"
    style, script = (
        files("forgetting.inspection").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js")
    )
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(title),
        "HEALTH": html.escape(health),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": data,
    }
    template = files("forgetting.inspection").joinpath("page.html").read_text("utf-8")
    pieces = template.split("{{")  # in one pass, so that what a part holds is never replaced
    return pieces[0] + "".join(parts[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:]))


def _fitting(examples: Examples, encoder: "_Encoder", num_examples: int) -> list[str]:
    """The encoded examples of the largest sample, up to `num_examples`, that fits into the budget."""
    encoded: dict[int, str] = {}
    number = min(num_examples, len(examples))
    while True:
        chosen = examples.sample(number).tolist()
        for i in chosen:
            if i not in encoded:
                encoded[i] = _json(encoder.encoded(examples[i]))
        shown = [encoded[i] for i in chosen]
        size = sum(len(text.encode()) + 2 for text in shown)
        if size <= BUDGET or number == 1:
            return shown
        number = max(1, min(number - 1, int(0.98 * number * BUDGET / size)))


class _Encoder:
    """Examples as the page's script reads them: numbers are arrays of little-endian values in base64.

    Attributes:
        unit: Nats of one unit of an nll, which is 16 bits.
    """

    def __init__(self, examples: Examples) -> None:
        highest = max(float(examples.nll_base.max()), float(examples.nll_reference.max()))
        self.unit = max(0.001, short(1.001 * highest / 65535))
        self._has_own_score = not np.array_equal(examples.score, examples.nll_base - examples.nll_reference)
        self._has_ignored = examples.selection.forget_fraction is not None

    def encoded(self, example: Example) -> dict[str, Any]:
        pieces, prompts = _merged_prompts(example)
        content: dict[str, Any] = {
            "id": example.number, "source": example.source, "mean": short(example.score.astype(np.float64).mean()),
            "pieces": pieces, "prompts": prompts,
            "base": _array(np.round(example.nll_base / self.unit), "<u2"),
            "reference": _array(np.round(example.nll_reference / self.unit), "<u2"),
            "rank": _array(example.rank, "<u4"), "positive": _array(example.first.positive, "u1"),
        }  # fmt: skip
        if self._has_ignored:
            content["kept"] = _array(example.first.kept, "u1")
        if self._has_own_score:
            content["score"] = _array(example.score, "<f4")
        if example.noise is not None and example.noise.any():
            content["noise"] = _array(example.noise, "u1")
        if not example.pieces.are_exact:
            content["named"] = True
        return content


def _merged_prompts(example: Example) -> tuple[list[str], list[int]]:
    """Texts of the response tokens, with each stretch of other tokens as one; and the places of the latter."""
    texts: list[str] = []
    prompts: list[int] = []
    for text, is_response in zip(example.pieces.texts, example.response_mask.tolist(), strict=True):
        if is_response:
            texts.append(text)
        elif prompts and prompts[-1] == len(texts) - 1:
            texts[-1] += text
        else:
            prompts.append(len(texts))
            texts.append(text)
    return texts, prompts


def _array(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(content: Any) -> str:
    """JSON that cannot end the element it lies in."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
