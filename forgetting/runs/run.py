"""A run: the settings that affect its results, its folder, and the refusal of a folder that holds another run.

A run's id is its experiment's path, plus `@variant` when an overlay or an override changes what is computed; where and
how it runs (devices, strategy, precision, micro-batches) does not change the name. Its folder is
`<root>/<id>/seed-<n>`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetting.arguments import flat
from forgetting.artifacts import hash_content, inside, read_json
from forgetting.errors import UserError

NEUTRAL = frozenset(
    {
        "run", "seed_everything", "ckpt_path", "verbose",
        "model.activation_checkpointing", "model.attention", "model.compile", "model.seed",
        "data.corpora", "data.micro_batch_tokens", "data.num_workers", "data.shard_size", "data.seed", "data.backbone",
        "data.revision", "data.columns", "data.needs_negative", "data.promptless",
    }
)  # fmt: skip
"""Keys that say where and how a run is computed, not what; so does every key of the trainer but `TRAINER`. The seed has
a folder of its own."""

TRAINER = tuple(
    f"trainer.{key}"
    for key in ("max_epochs", "max_steps", "max_time", "limit_train_batches", "overfit_batches", "fast_dev_run")
)
"""The only settings of the trainer that change a run's results, its precision apart."""

SPELLINGS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
"""Lightning's short names of precisions."""

PRECISION = "trainer.precision"
"""Part of what a run computes, so a run is resumed in its own precision alone; but no part of its name, since it comes
with the machine. A finished run may be scored and validated in another one."""

REFERENCE_IGNORES = frozenset(
    {
        "model.objective", "model.start", "data.reference", "data.reference_seed", "data.store", "data.score",
        "data.positive_fraction", "data.granularity", "data.scope", "data.forget_fraction", "data.threshold",
    }
)  # fmt: skip
"""Settings that mean nothing to a reference model: all its tokens are positive."""


def setting(key: str) -> str:
    """The group and the setting of a dotted key: `model.lora` of `model.lora.rank`."""
    return ".".join(key.split(".")[:2])


def is_neutral(key: str) -> bool:
    """Whether a dotted key leaves a run's results alone, up to rounding."""
    if key.startswith("trainer."):
        return setting(key) not in TRAINER
    return key.split(".", 1)[0] in NEUTRAL or setting(key) in NEUTRAL


@dataclass
class RunSettings:
    """Where runs are kept and what is logged.

    Attributes:
        root: Folder of all runs.
        id: The run's id; None derives it from the files and overrides given. A saved fit.yaml carries it.
        checkpoint_every_n_steps: Optimizer steps between two checkpoints: a killed run resumes from the last one.
        wandb: Settings of Weights & Biases (`project`, `entity`, `group`, `tags`, `mode`); None does not log there.
        wandb_artifacts: Upload the adapter, and the manifest of a reference's scores, as artifacts there.
    """

    root: Path = Path("runs")
    id: str | None = None
    checkpoint_every_n_steps: int = 100
    wandb: dict[str, Any] | None = None
    wandb_artifacts: bool = False

    def __post_init__(self) -> None:
        if self.checkpoint_every_n_steps < 1:
            raise UserError(f"run.checkpoint_every_n_steps is {self.checkpoint_every_n_steps}; it must be at least 1.")
        if self.wandb_artifacts and self.wandb is None:
            raise UserError(
                "run.wandb_artifacts is true, but the run does not log to Weights & Biases: give run.wandb too, such "
                "as {project: forgetting}."
            )


def run_seed(seed_everything: int | bool, split: str, reference_seed: int) -> int:
    """The seed of a run: a reference model's is a value of the configuration, a method's is `seed_everything`.

    Raises:
        UserError: It is not a number: a random seed could not be repeated.
    """
    if split == "reference":
        return reference_seed
    if isinstance(seed_everything, bool):
        raise UserError("seed_everything must be a whole number: a run's folder and its repetition depend on it.")
    return seed_everything


def computed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a parsed configuration, as plain dictionaries, that decides a run's results, its seed apart."""
    ignored = REFERENCE_IGNORES if config["data"]["split"] == "reference" else frozenset()
    part: dict[str, Any] = {
        group: {
            name: value
            for name, value in config[group].items()
            if not is_neutral(f"{group}.{name}") and f"{group}.{name}" not in ignored
        }
        for group in ("model", "data")
    }
    part["trainer"] = {
        key.removeprefix("trainer."): config["trainer"].get(key.removeprefix("trainer.")) for key in TRAINER
    }
    precision = str(config["trainer"].get("precision") or "32")
    part["trainer"]["precision"] = SPELLINGS.get(precision, precision)
    return part


def changes(before: Any, after: Any) -> dict[str, Any]:
    """The dotted keys whose value differs, with the value after; the precision apart."""
    old, new = flat(before), flat(after)
    keys = sorted((old.keys() | new.keys()) - {PRECISION})
    return {key: new.get(key) for key in keys if old.get(key) != new.get(key)}


@dataclass(frozen=True)
class Run:
    """A run: its id, its seed, what it computes, and the folder of all runs.

    Raises:
        UserError: The id would lead out of that folder, or a part of it could not be told from a run's own files.
    """

    id: str
    seed: int
    computed: dict[str, Any]
    root: Path

    def __post_init__(self) -> None:
        inside(self.root, self.id)
        if any(part.startswith(".") or not part.isprintable() for part in Path(self.id).parts):
            raise UserError(f"run.id is {self.id!r}: no part of it may begin with a dot or hold a control character.")

    @property
    def folder(self) -> Path:
        """Where it lives."""
        return self.root / self.id / f"seed-{self.seed}"

    @property
    def config_hash(self) -> str:
        """Hash of what is computed, the seed apart."""
        return hash_content(self.computed)

    @property
    def provenance_file(self) -> Path:
        """File with everything that the run was made from."""
        return self.folder / "provenance.json"

    @property
    def adapter(self) -> Path:
        """The trained adapter, a PEFT folder; its presence says that the run is complete."""
        return self.folder / "adapter"

    @property
    def scores(self) -> Path:
        """The score store of a reference run."""
        return self.folder / "scores"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that a stopped run resumes from."""
        return self.folder / "checkpoints" / "last.ckpt"

    def resumes_from(self) -> Path | None:
        """The checkpoint that the run resumes from, if it has one.

        A process killed between its two renames leaves the new one nowhere and the one before as `previous.ckpt`.
        """
        checkpoints = (self.checkpoint, self.checkpoint.with_name("previous.ckpt"))
        return next((path for path in checkpoints if path.is_file()), None)

    def provenance(self) -> dict[str, Any] | None:
        """Record of the run that lies in the folder; None where there is none.

        Raises:
            UserError: Its record is damaged.
        """
        if not self.provenance_file.is_file():
            return None
        remedy = f"It tells what {self.folder} was made from: move that folder away to train again."
        return read_json(self.provenance_file, dict, ["config_hash", "computed", "inputs", "launches"], remedy)

    def refuse_another(self, precision: bool = True) -> None:
        """Refuse a folder that holds a run of another configuration.

        Args:
            precision: Whether another precision is refused, too.

        Raises:
            UserError: It does; the message names what differs.
        """
        record = self.provenance()
        if record is None or record["config_hash"] == self.config_hash:
            return
        recorded, current = flat(record["computed"]), flat(self.computed)
        differing = list(changes(record["computed"], self.computed))
        if precision and recorded.get(PRECISION) != current.get(PRECISION):
            differing.append(PRECISION)
        if not differing:
            return
        listed = "; ".join(f"{key}: {recorded.get(key)!r} there, {current.get(key)!r} now" for key in differing[:5])
        raise UserError(
            f"{self.folder} holds a run of another configuration ({listed}). Move it away, or give another --run.root."
        )
