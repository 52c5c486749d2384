"""Selection health of a score store on disk: its corpus's sources, and the stores of other references next to it."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from datasets import Dataset
from jaxtyping import Int64

from forgetting.errors import UserError
from forgetting.method.data import ForgettingData
from forgetting.method.health import POSITIVE_FRACTION, Health, Sources, selection_health
from forgetting.method.store import ScoreStore, StoredSplit


def stored_health(data: ForgettingData, positive_fraction: object, others: Iterable[Path] = ()) -> Health:
    """Measure a complete store.

    Args:
        data: The corpus and the store's folder, set up.
        positive_fraction: ρ, or what else an experiment has there: ρ is 0.7 then.
        others: Score stores of other references. Those that are incomplete, or of another corpus, are left out.

    Raises:
        UserError: The store is not complete.
    """
    assert data.store_folder is not None, "scores were written to a folder"
    if not isinstance(positive_fraction, float) or not 0 < positive_fraction < 1:
        positive_fraction = POSITIVE_FRACTION
    store = ScoreStore.open(data.store_folder)
    return selection_health(
        store.split("train"),
        store.split("validation") if "validation" in store.splits else None,
        example_sources(data.corpus.split("train"), data.tokens.split("train").rows),
        positive_fraction,
        {folder.parent.name: scores for folder in others if (scores := _same_corpus(folder, data)) is not None},
    )


def example_sources(split: Dataset, rows: Int64[np.ndarray, " examples"]) -> Sources:
    """Sources of a split's examples, read a range at a time.

    Args:
        split: Its messages, with the column `source`.
        rows: Row of each example in them: those without a target have none.
    """
    column = split.select_columns("source")  # a range is read without its messages
    return lambda first, last: column[rows[first:last].tolist()]["source"]


def other_stores(store: Path) -> list[Path]:
    """Score stores of the same reference trained with other seeds: in the folders next to its run's."""
    return sorted(path for path in store.parent.parent.glob("seed-*/scores") if path.parent != store.parent)


def _same_corpus(folder: Path, data: ForgettingData) -> StoredSplit | None:
    try:
        store = ScoreStore.open(folder)
    except UserError:
        return None
    same = all(store.identity.get(key) == value for key, value in data.identity().items())
    return store.split("train") if same else None
