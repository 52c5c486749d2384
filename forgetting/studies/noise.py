"""Detection of known noise: how well the score and the negative masks find the tokens that a corpus says are noise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from jsonargparse import ArgumentParser

from forgetting.arguments import read_yaml
from forgetting.errors import UserError
from forgetting.inspection.truth import area_under_curve
from forgetting.method.data import ForgettingData
from forgetting.studies.jobs import needs_store
from forgetting.studies.spec import NOISE_MEASURES


@dataclass(frozen=True)
class Detection:
    """Agreement of a score, and of the negative masks that a run derives from it, with the known noise of D_train.

    Attributes:
        num_tokens: Response tokens of D_train.
        noise_fraction: Fraction of them that is noise.
        auc: Probability that a noisy token has a lower score than a clean one (ties count half).
        positive_score_fraction: Fraction of tokens with a score above 0.
        precision: Fraction of the negative tokens that is noise.
        recall: Fraction of the noise that is negative.
        recall_by_kind: The same for each kind of noise.
    """

    num_tokens: int
    noise_fraction: float
    auc: float
    positive_score_fraction: float
    precision: float
    recall: float
    recall_by_kind: dict[str, float]

    def measure(self, key: str) -> float | None:
        """A measure by its name in a study; None where it is not defined.

        Raises:
            UserError: The corpus knows no such kind of noise.
        """
        if key in NOISE_MEASURES:
            value = getattr(self, key)
        else:
            kind = key.removeprefix("recall/")
            if kind not in self.recall_by_kind:
                raise UserError(f"There is no noise of the kind {kind!r}; there is {', '.join(self.recall_by_kind)}.")
            value = self.recall_by_kind[kind]
        return None if np.isnan(value) else value


def detection(
    score: Float[np.ndarray, " tokens"],
    negative_mask: Bool[np.ndarray, " tokens"],
    noise: UInt8[np.ndarray, " tokens"],
    kinds: tuple[str, ...],
) -> Detection:
    """Compare a score and negative masks with known noise.

    Args:
        score: Of every response token.
        negative_mask: Tokens that are unlearned or, where nothing is, left out.
        noise: 0 of a clean token, else 1 + the place of its kind.
        kinds: Names of the kinds.
    """
    is_noise = noise > 0

    def fraction(mask: np.ndarray) -> float:
        return float(mask.mean()) if mask.size else float("nan")

    return Detection(
        num_tokens=len(score),
        noise_fraction=fraction(is_noise),
        auc=area_under_curve(score, is_noise),
        positive_score_fraction=fraction(score > 0),
        precision=fraction(is_noise[negative_mask]),
        recall=fraction(negative_mask[is_noise]),
        recall_by_kind={kind: fraction(negative_mask[noise == code]) for code, kind in enumerate(kinds, start=1)},
    )


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
