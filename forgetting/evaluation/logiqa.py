"""LogiQA as its authors publish it: text files whose paragraphs are questions."""

from collections.abc import Mapping
from typing import Any

import datasets


def questions(paragraphs: datasets.Dataset) -> datasets.Dataset:
    """Paragraphs of eight lines → the columns of the harness's `logiqa`, spaced as its loading script did.

    Args:
        paragraphs: Column `text`: label, context, question, then options such as `A.…`. Rows that already have the
            harness's columns (local JSON files) pass unchanged.
    """
    if "text" not in paragraphs.column_names:
        return paragraphs
    return paragraphs.map(_question, remove_columns=["text"])


def _question(row: Mapping[str, str]) -> dict[str, Any]:
    label, context, question, *options = row["text"].strip().split("\n")
    return {
        "label": label.strip(),
        "context": _spaced(context),
        "question": _spaced(question),
        "options": [_spaced(option[2:]) for option in options],
    }


def _spaced(text: str) -> str:
    return text.replace(".", ". ").strip()
