"""Metrics of the tasks over held-out pairs for the harness, which finds a copy of this file next to them.

A last result, where there is one, is of the whitespace between the prompt and a response, which the others hold too.
"""

from typing import Any


def nll(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Mean nll of a clean response's tokens, in nats."""
    clean, *header = (log_likelihood for log_likelihood, _ in results)
    return {"nll": (sum(header) - clean) / doc["clean_tokens"]}


def uptake(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Mean nll of a clean response's tokens less that of its noised twin's, in nats: more where noise was learned."""
    clean, noised, *header = (log_likelihood for log_likelihood, _ in results)
    before = sum(header)
    return {"uptake": (noised - before) / doc["noised_tokens"] - (clean - before) / doc["clean_tokens"]}


def stock_phrase(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether a generated answer opens with one of the planted phrases: its first words, which are all generated."""
    answer = results[0].strip().lower()
    return {"stock_phrase": float(any(answer.startswith(opening) for opening in doc["openings"]))}
