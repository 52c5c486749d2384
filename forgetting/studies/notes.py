"""Notes on the results of a table: how they were evaluated, and where they were not evaluated alike."""

from collections.abc import Sequence
from typing import Any

from forgetting.studies.agreement import evaluated_apart

Results = Sequence[dict[str, Any]]
"""As `evaluate` writes them, with their `path`."""


def notes_on_results(groups: Sequence[Results], protocol: str) -> tuple[list[str], list[str]]:
    """Return facts and problems.

    Args:
        groups: Results that are to be alike: all of them, or those of each repetition that has data of its own.
        protocol: Of the evaluation.
    """
    facts: list[str] = []
    results = [result for group in groups for result in group]
    if results:
        counts = _documents(results)
        listed = [f"{column} {'/'.join(map(str, sorted(numbers)))}" for column, numbers in counts.items()]
        facts.append(f"Protocol {protocol}; documents: {', '.join(listed)}.")
        harness = {result["versions"]["lm_eval"] for result in results}
        facts.append(f"lm-evaluation-harness {', '.join(sorted(harness))}.")
    problems: list[str] = []
    for group in groups:
        differing = [column for column, numbers in _documents(group).items() if len(numbers) > 1]
        if differing:
            problems.append(f"Rows were evaluated on different numbers of documents: {', '.join(differing)}.")
        problems += evaluated_apart(group)
    if len(groups) > 1:
        problems += evaluated_apart(results, data=False)
    return facts, list(dict.fromkeys(problems))


def _documents(results: Results) -> dict[str, set[int]]:
    """Numbers of evaluation examples by column."""
    counts: dict[str, set[int]] = {}
    for result in results:
        for column, entry in result["columns"].items():
            counts.setdefault(column, set()).add(entry["documents"])
    return counts
