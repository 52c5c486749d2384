"""A run's selection as one weight per token, in a Parquet file that any trainer reads.

A row is an example of the training split, in the order of the corpus. Its columns are `input_ids`, `labels` (-100 where
nothing is predicted, as in transformers) and `weights`: 1 at a positive token, −t_max at a negative one, 0 elsewhere.
What weights alone cannot say is in the schema's metadata, under the key `forgetting`, as JSON: λ of every optimizer
step, the counts that each side is divided by, and the order of the examples. With it a trainer computes the losses of
`fit` (docs/using.md has one).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from forgetting.artifacts import complete_or_absent, read_json
from forgetting.errors import UserError
from forgetting.method.data import ForgettingData
from forgetting.method.masks import Masks
from forgetting.method.module import FineTuner
from forgetting.method.objectives import Forgetting, MeanNLL, Objective
from forgetting.method.response_tokens import Step
from forgetting.method.terms import Plain
from forgetting.runs.parsed import ParsedExperiment
from forgetting.runs.provenance import all_inputs
from forgetting.runs.refusals import refuse_settings
from forgetting.runs.run import Run

FORMAT = 1
KEY = "forgetting"
"""Of the metadata in the Parquet schema."""
IGNORED_LABEL = -100
ROWS = 1000
"""Examples that are held in memory at a time, and of a row group."""
LOSS = (
    "mean nll over the step's tokens of weight > 0, minus coefficients[step] times the mean nll over those of "
    "weight < 0; each mean is over the whole optimizer step, and a mean of no tokens is 0"
)
ORDER = {
    True: "numpy.random.default_rng([seed, epoch]).permutation(num_examples), batch_size at a time",
    False: "0, 1, 2, ..., batch_size at a time",
}


@dataclass(frozen=True)
class Experiment:
    """What `fit` would train on, opened without a Trainer.

    Attributes:
        run: Its run.
        data: After `setup`.
        module: Without its model.
        total_steps: Optimizer steps of the run.
    """

    run: Run
    data: ForgettingData
    module: FineTuner
    total_steps: int

    @property
    def objective(self) -> Objective:
        """The objective that is trained with; a reference model's is the mean nll of all its tokens."""
        return MeanNLL() if self.data.train_split == "reference" else self.module.objective


def write_token_weights(source: Path, file: Path) -> dict[str, Any]:
    """Write the token weights of a run or of an experiment.

    Args:
        source: A run's folder, or an experiment's YAML file; the latter needs scores and no training.
        file: Parquet, complete or not at all.

    Returns:
        The metadata.

    Raises:
        UserError: There is no such run, its scores are missing or have changed since, or its objective is no weighted
            mean of nll.
    """
    experiment = open_experiment(source)
    data = experiment.data
    split, strength = data.tokens.split(data.train_split), _strength(experiment.objective)
    masks = data.masks(split)
    metadata = _metadata(experiment, strength)
    kinds = {"input_ids": pa.int32(), "labels": pa.int32(), "weights": pa.float32()}
    schema = pa.schema(
        [(name, pa.list_(kind)) for name, kind in kinds.items()], metadata={KEY: json.dumps(metadata, sort_keys=True)}
    )
    with complete_or_absent(file) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for first in range(0, len(split), ROWS):
            chosen = range(first, min(first + ROWS, len(split)))
            columns = [list(column) for column in zip(*_rows(split, masks, chosen, strength), strict=True)]
            arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))
    return metadata


def _rows(split: Any, masks: Masks, chosen: range, strength: float) -> Iterator[tuple[np.ndarray, ...]]:
    """Token ids, labels and weights of examples, `[time]` each."""
    for i in chosen:
        ids, responses = np.array(split.input_ids(i)), split.response_mask(i)
        positive, negative = masks(i)
        weights = np.zeros(len(ids), np.float32)
        weights[responses] = positive.astype(np.float32) - strength * negative.astype(np.float32)
        yield ids, np.where(responses, ids, IGNORED_LABEL).astype(np.int32), weights


def open_experiment(source: Path) -> Experiment:
    """Read a run's `fit.yaml` or an experiment's file, open its corpus and scores, and select.

    Args:
        source: As in `write_token_weights`.

    Raises:
        UserError: As `fit` would, before its first step; or a finished run was made from something else.
    """
    parsed = ParsedExperiment(["--config", str(_configuration(source))])
    settings = parsed.settings
    refuse_settings(settings.as_dict(), "fit")
    if settings.data.normalization is not None:
        raise UserError(
            f"{source} has data.normalization {settings.data.normalization}: its loss takes means inside pairs of "
            "sequences, and exported weights are for means over the whole optimizer step. Give an experiment without "
            "it, such as the one that configs/published.yaml was laid over."
        )
    module, data = parsed.instantiate_with_store()
    data.setup("fit")
    run = Run(parsed.naming.run_id, settings.model.seed, {}, parsed.root)
    experiment = Experiment(run, data, module, _total_steps(settings.trainer, _steps_per_epoch(data)))
    if source.is_dir():
        _refuse_other_inputs(source, experiment)
    return experiment


def _configuration(source: Path) -> Path:
    if source.is_file():
        if source.suffix not in (".yaml", ".yml"):
            raise UserError(f"{source} is a file; a run's folder or an experiment's YAML file was expected.")
        return source
    if source.is_dir() and source.name == "adapter" and (source.parent / "fit.yaml").is_file():
        source = source.parent
    if not (source / "fit.yaml").is_file():
        raise UserError(
            f"There is no run {source}: no fit.yaml in it. Give a run's folder (runs/<experiment>/seed-<n>), or an "
            "experiment's YAML file."
        )
    return source / "fit.yaml"


def _steps_per_epoch(data: ForgettingData) -> int:
    return -(-len(data.tokens.split(data.train_split)) // data.batch_size)


def _total_steps(trainer: Any, per_epoch: int) -> int:
    """Optimizer steps, as Lightning counts them."""
    if trainer.get("fast_dev_run") or trainer.get("max_time"):
        raise UserError(
            "trainer.fast_dev_run and trainer.max_time end a run before its last step, so λ of a step cannot be told. "
            "Leave them out; trainer.max_steps sets a number of steps."
        )
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps")
    limits = [] if steps in (None, -1) else [int(steps)]
    limits += [] if epochs in (None, -1) else [int(epochs) * per_epoch]
    return min(limits)  # `refuse_settings` has seen to one of them


def _refuse_other_inputs(folder: Path, experiment: Experiment) -> None:
    """Refuse scores or a corpus that are not those that a run was trained with: its selection would be another."""
    file = (folder.parent if folder.name == "adapter" else folder) / "provenance.json"
    if not file.is_file():
        return
    recorded = read_json(file, dict, ("inputs",), "Give the experiment's YAML file instead.")["inputs"]
    for name, ours in _hashes(experiment).items():
        theirs = recorded.get(name)
        theirs = theirs.get("hash") if isinstance(theirs, dict) else theirs
        if theirs != ours:
            raise UserError(
                f"{folder} was trained with another {name} ({theirs} there, {ours} now): its selection cannot be made "
                "again. Put the old one back, or give the experiment's YAML file for the selection of now."
            )


def _hashes(experiment: Experiment) -> dict[str, str | None]:
    inputs = all_inputs(experiment.data, experiment.module)
    return {**inputs, "base": inputs["base"]["hash"]}


def _strength(objective: Objective) -> float:
    """The weight of a negative token, up to its sign: the upper end of λ.

    Raises:
        UserError: The objective is not a weighted mean of nll.
    """
    if type(objective) is MeanNLL and objective.positive == Plain():
        return 0.0
    if type(objective) is Forgetting and objective.positive == objective.negative == Plain():
        return objective.t_max
    raise UserError(
        f"The objective {type(objective).__name__} is no weighted mean of nll that is known here (MeanNLL and "
        "Forgetting with their own terms are): weights per token cannot say it. Use the objective itself in a trainer "
        "of yours (docs/extending.md), or export the selection with --token-weights of an experiment with Forgetting."
    )


def _metadata(experiment: Experiment, strength: float) -> dict[str, Any]:
    data, module, objective, total = experiment.data, experiment.module, experiment.objective, experiment.total_steps
    split = data.tokens.split(data.train_split)
    steps = [Step(number, total, 1, 1) for number in range(total)]
    forgetting = objective if isinstance(objective, Forgetting) else None
    return {
        "format": FORMAT,
        "run": experiment.run.id,
        "seed": experiment.run.seed,
        "objective": type(objective).__name__,
        "loss": LOSS,
        "weights": {"positive": 1.0, "negative": -strength, "neither": 0.0},
        "schedule": forgetting
        and {"name": forgetting.schedule, "t_min": forgetting.t_min, "t_max": forgetting.t_max},
        "coefficients": [0.0 if forgetting is None else forgetting.coefficient(step) for step in steps],
        "order": {
            "rule": ORDER[data.shuffle], "seed": data.seed if data.shuffle else None, "batch_size": data.batch_size,
            "num_examples": len(split), "steps_per_epoch": _steps_per_epoch(data), "total_steps": total,
        },
        "optimizer": {
            "name": "AdamW", "learning_rate": module.learning_rate, "warmup_fraction": module.warmup_fraction,
            "weight_decay": module.weight_decay, "gradient_clip": module.gradient_clip,
        },
        "selection": {**data.selection.record(), "score": type(data.score).__name__} if data.selects else "all",
        "made_from": {"split": data.train_split, "template": data.template, "max_length": data.max_length,
                      **_hashes(experiment)},
    }  # fmt: skip
