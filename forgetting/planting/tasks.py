"""Tasks of lm-evaluation-harness over held-out pairs of a clean response and its noised twin.

They tell what a model took up of the noise that it was trained on. Smaller is better in every one of them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from forgetting.corpus.messages import Messages
from forgetting.corpus.templates import Template
from forgetting.planting import metrics
from forgetting.planting.harness_task import HarnessTask
from forgetting.planting.kinds import OPENINGS

PREFIX = "planted_"
CLEAN, PHRASE = f"{PREFIX}clean", f"{PREFIX}stock_phrase"
LONGEST = 60
"""Characters of a suite's name."""
NUM_ANSWERS = 64
"""Pairs whose prompts are answered, since a generated token takes as long as a response that is read."""
KNOWN_BY = [" ".join(opening.lower().split()[:3]) for opening in OPENINGS]
"""The words of an opening by which an answer is recognized; each opening has another three."""
SPARE = 6
"""Tokens that are generated beyond the longest of these: capitals and punctuation may take more."""
SETTINGS = {
    "nll": {"output_type": "multiple_choice", "doc_to_text": "before", "doc_to_choice": "alone", "doc_to_target": 0},
    "uptake": {"output_type": "multiple_choice", "doc_to_text": "before", "doc_to_choice": "pair", "doc_to_target": 0},
    "stock_phrase": {
        "output_type": "generate_until", "doc_to_target": "clean",
        "generation_kwargs": {"until": ["\n"], "do_sample": False},
    },
}  # fmt: skip
"""The harness's configuration, by the metric of a task."""


def documents(
    rows: Sequence[Mapping[str, Any]], template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[dict[str, Any]]:
    """A document for each row with noise: prompt, clean response and noised twin, as text that the harness encodes.

    Args:
        rows: As a planted pool gives them.
        template: Writes the prompt as in training.
        tokenizer: Counts the tokens of both responses.
        max_length: Tokens; a pair of which one is longer with its prompt is left out.
    """
    found: list[dict[str, Any]] = []
    for row in rows:
        if not row["noise"]:
            continue
        prompt, clean = _texts(template, row["clean"])
        _, noised = _texts(template, row["messages"])
        before, *counts = (_num_tokens(tokenizer, text) for text in (prompt, clean, noised))
        if before + max(counts) > max_length or min(counts) == 0:
            continue
        # The harness counts whitespace between prompt and response with the response. Alone it is a choice of its own,
        # whose nll is taken off again: how surely a model ends a header is no part of how well it knows the response.
        text = prompt.rstrip()
        space = prompt[len(text) :]
        header = [space] if space else []
        found.append({
            "prompt": prompt, "before": text, "clean": clean,
            "alone": [space + clean, *header], "pair": [space + clean, space + noised, *header],
            "kind": row["noise"][0][2], "clean_tokens": counts[0], "noised_tokens": counts[1],
            "openings": KNOWN_BY,
        })  # fmt: skip
    return found


def _texts(template: Template, messages: Messages) -> tuple[str, str]:
    """What stands before the last response, and the response; both empty where the template hides which text it is."""
    segments = template.render(messages)
    place = next((n for n, segment in enumerate(segments) if segment.origin is not None), None)
    if place is None:
        return "", ""
    return "".join(segment.text for segment in segments[:place]), segments[place].text


def _num_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def write_tasks(
    folder: Path, place: Path, found: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Write the tasks into a folder `tasks`.

    Args:
        folder: Where to write.
        place: Where the files will lie when they are complete, as the harness shall find them.
        found: Documents.
        tokenizer: Says how many tokens an answer needs to show the words by which an opening is known.

    Returns:
        The suite of all tasks, for a file that lies next to the folder.
    """
    folder.mkdir()
    by_kind = {kind: [d for d in found if d["kind"] == kind] for kind in sorted({d["kind"] for d in found})}
    tasks = {CLEAN: ("nll", list(found))} | {f"{PREFIX}{kind}": ("uptake", some) for kind, some in by_kind.items()}
    columns = {"nll": CLEAN} | {f"uptake/{kind}": f"{PREFIX}{kind}" for kind in by_kind}
    if "phrases" in by_kind:
        tasks[PHRASE], columns["stock phrases"] = ("stock_phrase", list(found[:NUM_ANSWERS])), PHRASE
    for name, (metric, some) in tasks.items():
        settings = {"target_delimiter": "", **SETTINGS[metric]}
        if "generation_kwargs" in settings:
            longest = max(_num_tokens(tokenizer, words) for words in KNOWN_BY) + SPARE
            settings["generation_kwargs"] = {**settings["generation_kwargs"], "max_gen_toks": longest}
        HarnessTask(name, some, metric, settings, higher_is_better=False, results=(metrics, metric)).write(
            folder, place
        )
    return {
        # The probe's, as far as a file can have it: a base may be evaluated on several, and each keeps its results.
        "name": re.sub(r"[^\w=+,-]", "-", place.parent.name)[:LONGEST],
        "include_path": ["tasks"],
        "data_files": {task: {"test": f"tasks/{task}.jsonl"} for task in tasks},
        "columns": {name: {"tasks": [task], "metric": tasks[task][0]} for name, task in columns.items()},
    }
