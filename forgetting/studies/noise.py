"""Detection of known noise by a finished run, from what it saved."""

from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser

from forgetting.arguments import read_yaml
from forgetting.inspection.detection import Detection, detection
from forgetting.method.data import ForgettingData
from forgetting.studies.jobs import needs_store


def detect(folder: Path, root: Path) -> Detection | None:
    """Detection by a finished run; None where its corpus knows no noise, or where every token is positive.

    Args:
        folder: Of the run; its `fit.yaml` says from which corpus and store its masks follow.
        root: Folder of all runs.

    Raises:
        UserError: Corpus or store are gone, or are not those of the run.
    """
    config = read_yaml(folder / "fit.yaml")
    if not needs_store(config) or config["data"]["positive_fraction"] == "all":
        return None
    data = _saved_data(config, root)
    data.setup("validate")
    split = data.tokens.split("train")
    if split.noise is None:
        return None
    assert data.scored is not None, "a run that selects tokens has scores"
    masks = data.masks(split)
    negative_mask = np.concatenate([masks(example)[1] for example in range(len(split))])
    score = np.concatenate(list(data.scored.chunks())).astype(np.float64)
    return detection(score, negative_mask, split.noise, data.tokens.noise_kinds)


def _saved_data(config: dict[str, Any], root: Path) -> ForgettingData:
    """The data module that a run was trained with, by its saved configuration."""
    saved, model = dict(config["data"]), config["model"]
    store = root / str(saved["reference"]) / f"seed-{saved['reference_seed']}" / "scores"
    saved |= {"backbone": model["backbone"], "revision": model["revision"], "store": saved["store"] or str(store)}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ForgettingData, "data")
    return parser.instantiate(parser.parse_object({"data": saved})).data
