"""Score of `lab_lingual` for the harness, which finds a copy of this file next to a world's tasks."""

from collections import Counter
from typing import Any


def token_f1(answer: list[str], gold: list[str]) -> float:
    """Harmonic mean of the fraction of `answer` that is in `gold` and the fraction of `gold` that is in `answer`."""
    common = sum((Counter(answer) & Counter(gold)).values())
    return 2 * common / (len(answer) + len(gold)) if common else 0.0


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """F1 of the values in a generated answer; the names of the slots, which announce them, do not count."""
    answer = [word for word in results[0].split() if word not in doc["names"]]
    return {"f1": token_f1(answer, doc["values"])}
