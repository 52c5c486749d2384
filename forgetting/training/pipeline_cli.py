"""LightningCLI for the commands that need a Trainer: links, run folders, resuming."""

import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

import forgetting.training.objectives  # noqa: F401 - so that objectives can be named without their module
from forgetting.artifacts import write_json
from forgetting.errors import UserError
from forgetting.run import Run, RunSettings, computed
from forgetting.training.data import ForgettingData
from forgetting.training.logging import MetricsFile, wandb_logger
from forgetting.training.module import FineTuner
from forgetting.training.naming import Naming
from forgetting.training.provenance import InputCheck
from forgetting.training.records import CostRecord, RunRecord
from forgetting.training.refusals import refuse_settings
from forgetting.training.trainer import Trainer


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


class PipelineCLI(LightningCLI):
    """`fit`, `validate` and `score` on one YAML.

    Args:
        arguments: The command and its options.
        bases: Configuration files laid under the experiment's, in order.
    """

    def __init__(self, arguments: list[str], bases: list[Path]) -> None:
        self.arguments = arguments
        files = [str(path) for path in bases]
        super().__init__(
            FineTuner, ForgettingData, trainer_class=Trainer, save_config_callback=None,
            parser_kwargs={name: {"default_config_files": files} for name in self.subcommands()},
            auto_configure_optimizers=False, load_from_checkpoint_support=False, seed_everything_default=0,
            args=arguments,
        )  # fmt: skip

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, and the arguments of the Trainer's methods that are not for the command line."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "ckpt_path", "weights_only"},
            "score": {"model", "datamodule"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Keys of our own, and every coupling between groups."""
        parser.add_argument("--base", type=str, default="paper", help="Base configuration in configs/: paper or lab.")
        parser.add_class_arguments(RunSettings, "run")
        parser.link_arguments("model.backbone", "data.backbone")
        parser.link_arguments("model.revision", "data.revision")
        seeds = ("seed_everything", "data.split", "data.reference_seed")
        parser.link_arguments(seeds, "model.seed", compute_fn=run_seed)
        parser.link_arguments(seeds, "data.seed", compute_fn=run_seed)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, then find what the run is called, where it lives and which store it reads."""
        self.config = parser.parse_args(self.arguments)
        self.command: str = self.config.subcommand
        config: Namespace = self.config[self.command]
        refuse_settings(config.as_dict(), self.command)
        config.seed_everything = config.model.seed
        self.naming = Naming(parser, self.arguments)
        settings = config.run
        reference = self.naming.reference_id
        config.run.id, config.data.reference = self.naming.run_id, reference
        # Written before the store's place is filled in: a saved configuration finds it by the reference's name.
        saved = config.clone()
        saved.pop("ckpt_path", None)  # where this launch goes on is not part of what the run is
        self.config_text = self._parser(self.command).dump(saved, skip_unset=False, skip_validation=True)
        plain = yaml.safe_load(self.config_text)
        root = Path(settings.root)
        self.run = Run(
            settings.id, config.seed_everything, computed(plain), root / settings.id / f"seed-{config.seed_everything}"
        )
        if config.data.split == "reference":
            config.data.store = self.run.scores
        elif config.data.store is None and reference is not None:
            config.data.store = root / reference / f"seed-{config.data.reference_seed}" / "scores"
        self.run.refuse_another()
        if reference is not None:
            self._refuse_edited_reference(root / reference / f"seed-{config.data.reference_seed}")
        if self.command != "fit":
            config.model.adapter = self._trained_adapter(config)

    def _refuse_edited_reference(self, folder: Path) -> None:
        """A reference whose experiment was edited since it was trained is not the one that this run names."""
        now = self.naming.reference_computed
        if now is None or not (folder / "provenance.json").is_file():
            return
        Run(str(folder), 0, now, folder).refuse_another()

    def _trained_adapter(self, config: Namespace) -> Path:
        if self.command == "score" and config.data.split != "reference":
            raise UserError(
                "score takes a reference experiment, whose adapter gives nll_reference. Run\n  "
                + self.naming.command_for_reference("score")
            )
        if not self.run.adapter.is_dir():
            raise UserError(
                f"{self.run.folder} holds no finished run: there is no adapter/. Train it first with\n  "
                + self.naming.command("fit")
            )
        return self.run.adapter

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with what every run records."""
        settings = self.config[self.command].run
        self.cost = CostRecord(self.command, self.run.folder)
        callbacks: list[Any] = [self.cost]
        loggers: list[Any] = []
        if self.command == "fit":
            metrics = MetricsFile(self.run.folder / "metrics.csv")
            loggers = [metrics]
            if settings.wandb is not None:
                loggers.append(wandb_logger(settings.wandb, self.run.id, self.run.seed, self.run.folder))
            callbacks += [
                RunRecord(self.run, self.config_text, metrics, self.cost),
                # One file, written in place of the last: what a killed run goes on from.
                ModelCheckpoint(
                    self.run.checkpoint.parent, filename=self.run.checkpoint.stem, save_top_k=1,
                    every_n_train_steps=settings.checkpoint_every_n_steps, enable_version_counter=False,
                ),
            ]  # fmt: skip
        else:
            callbacks.append(InputCheck(self.run))
        self.trainer_defaults = {"callbacks": callbacks}
        own = self._get(self.config_init, "trainer").get("logger")
        if own not in (None, True, False):
            loggers += own if isinstance(own, list) else [own]
        return super().instantiate_trainer(  # type: ignore[return-value]
            logger=loggers, enable_checkpointing=self.command == "fit", default_root_dir=str(self.run.folder), **kwargs
        )

    def after_instantiate_classes(self) -> None:
        """Errors of the data module name the command that makes what is missing."""
        self.datamodule.score_command = self.naming.command_for_reference("score")

    def fit(self, model: FineTuner, datamodule: ForgettingData, ckpt_path: str | None = None, **options: Any) -> None:
        """Train, from the last checkpoint where there is one."""
        if self.run.adapter.is_dir():
            print(f"{self.run.folder} is complete: its adapter is trained. Give another --run.root to train it again.")
            return
        if ckpt_path is None:
            ckpt_path = str(self.run.checkpoint) if self.run.checkpoint.is_file() else None
        else:
            ckpt_path = str(self.run.checkpoint) if ckpt_path == "last" else ckpt_path
            if not Path(ckpt_path).is_file():
                raise UserError(f"There is no checkpoint {ckpt_path} to go on from; leave --ckpt_path out to begin.")
        if getattr(self.trainer.strategy, "_save_distributed_checkpoint", False):
            raise UserError(
                "ModelParallelStrategy would write checkpoints that are folders: set its save_distributed_checkpoint "
                "to false. A checkpoint holds the adapter alone and is small."
            )
        if ckpt_path is not None:
            _refuse_damaged(Path(ckpt_path))
            print(f"going on from {ckpt_path}")
        with _terminated_means_failed():
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True, **options)
        if self.trainer.interrupted:
            raise KeyboardInterrupt
        if self.trainer.global_step < model.total_steps:
            raise UserError(
                f"Training stopped at step {self.trainer.global_step} of {model.total_steps}: there is no adapter. Run "
                f"the same command to go on from {self.run.checkpoint}, if it was reached."
            )

    def validate(self, model: FineTuner, datamodule: ForgettingData, **options: Any) -> None:
        """Held-out nll, printed and written to validation.json."""
        results = self.trainer.validate(model, datamodule=datamodule, **options)
        if self.trainer.is_global_zero:
            write_json(self.run.folder / "validation.json", results[0] if results else {})

    def score(self, model: FineTuner, datamodule: ForgettingData, **options: Any) -> None:
        """Score what the store lacks."""
        assert isinstance(self.trainer, Trainer)
        with _terminated_means_failed():
            self.trainer.score(model, datamodule=datamodule, **options)
        if self.trainer.is_global_zero:
            self.cost.write(self.trainer)
            print(f"scores in {self.run.scores}")


@contextmanager
def _terminated_means_failed() -> Iterator[None]:
    """Lightning ends quietly on SIGTERM, with status 0; whoever waits for the run must see that it did not finish."""
    try:
        yield
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)


def _refuse_damaged(checkpoint: Path) -> None:
    """Refuse a checkpoint that cannot be read, by name."""
    try:
        torch.load(checkpoint, weights_only=True, map_location="cpu")
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(
            f"The checkpoint {checkpoint} cannot be read ({type(error).__name__}): it may be cut short. Remove it to "
            "begin the run anew."
        ) from error
