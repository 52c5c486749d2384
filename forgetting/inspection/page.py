"""One page without any request: a sample of examples with their tokens' scores, and counts of the whole corpus."""

import base64
import hashlib
import html
import json
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from forgetting.inspection.pieces import token_pieces
from forgetting.inspection.steps import STEPS, counts_by_step, first_steps
from forgetting.method.data import ForgettingData
from forgetting.method.selection import sequence_means

BUDGET = 4_500_000
"""Bytes of the examples on a page."""


def build_page(data: ForgettingData, tokenizer: PreTrainedTokenizerBase, title: str, num_examples: int) -> str:
    """Make the page of D_train.

    Args:
        data: After `setup`, with its store and its selection.
        tokenizer: Of the tokens.
        title: Name of the run.
        num_examples: Examples to show at most; fewer where they would not fit.
    """
    scored = data.scored
    assert scored is not None, "nothing is selected"
    score, num_targets = np.concatenate(list(scored.chunks())), scored.stored.num_targets()
    first = first_steps(score, num_targets, data.selection)
    split, rows = data.tokens.split("train"), data.corpus.split("train")
    sources = np.asarray(rows["source"][:])[split.rows]
    means, starts = sequence_means(score, num_targets), np.cumsum(num_targets) - num_targets
    names, codes = np.unique(sources, return_inverse=True)
    groups = np.repeat(codes, num_targets)
    columns = {name: scored.stored.column(name) for name in ("nll_base", "nll_reference")}
    order = np.argsort(np.argsort(-score, kind="stable"), kind="stable")

    def example(i: int) -> dict[str, Any]:
        ids, mask = split.input_ids(i), split.response_mask(i)
        here = slice(int(starts[i]), int(starts[i] + num_targets[i]))
        return {
            "id": i, "source": str(sources[i]), "mean": round(float(means[i]), 4),
            "texts": token_pieces(tokenizer, ids.tolist()).texts, "mask": mask.astype(int).tolist(),
            "score": np.round(score[here].astype(float), 3).tolist(),
            "base": np.round(columns["nll_base"][here].astype(float), 3).tolist(),
            "reference": np.round(columns["nll_reference"][here].astype(float), 3).tolist(),
            "rank": (order[here] + 1).tolist(), "first": first.positive[here].tolist(),
            "kept": first.kept[here].tolist(),
        }  # fmt: skip

    examples = [example(int(i)) for i in sample(codes, means, num_examples)]
    while len(examples) > 1 and (size := len(_json(examples))) > BUDGET:
        chosen = sample(codes, means, max(1, int(0.9 * len(examples) * BUDGET / size)))
        examples = [example(int(i)) for i in chosen]
    by_source = counts_by_step(first.positive, groups, len(names))
    kept = counts_by_step(first.kept, np.zeros(len(score), np.int64), 1)[0]
    rho = data.selection.positive_fraction
    content = {
        "steps": STEPS, "rho": rho if isinstance(rho, float) else 0.7, "total": len(score), "numExamples": len(split),
        "positive": by_source.sum(axis=0).tolist(), "kept": kept.tolist(), "above": float((score > 0).mean()),
        "sources": [{"name": str(name), "total": int((groups == number).sum()), "positive": by_source[number].tolist()}
                    for number, name in enumerate(names)],
        "examples": examples,
    }  # fmt: skip
    style, script = (
        files("forgetting.inspection").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js")
    )
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    parts = {"POLICY": policy, "TITLE": html.escape(title), "STYLE": style, "SCRIPT": script, "DATA": _json(content)}
    template = files("forgetting.inspection").joinpath("page.html").read_text("utf-8")
    for name in ("POLICY", "TITLE", "STYLE", "SCRIPT", "DATA"):  # the data last: what they hold is not replaced
        template = template.replace("{{" + name + "}}", parts[name], 1)
    return template


def sample(source: Int[np.ndarray, " examples"], mean: np.ndarray, num_examples: int) -> Int[np.ndarray, " chosen"]:
    """Choose evenly over sources and, in each, over mean scores; in corpus order, always the same."""
    order = np.lexsort((mean, source))
    places = np.linspace(0, len(order) - 1, min(num_examples, len(order))).round().astype(np.int64)
    return np.sort(order[places])


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(content: Any) -> str:
    """JSON that cannot end the element it lies in."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
