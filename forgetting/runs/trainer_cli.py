"""LightningCLI for the commands that need a Trainer: links, run folders, resuming."""

import glob
import shlex
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from forgetting.arguments import base_files, is_path_of_base, parse, refuse_no_experiment
from forgetting.artifacts import write_json
from forgetting.errors import UserError
from forgetting.lock import locked
from forgetting.method import online, terms  # noqa: F401 - what is in them can then be named without its module
from forgetting.method.data import ForgettingData
from forgetting.method.module import FineTuner
from forgetting.method.objectives import MeanNLL
from forgetting.model.adapter_folder import refuse_damaged_adapter
from forgetting.paths import CONFIGS
from forgetting.progress import duration
from forgetting.runs.checkpoints import ResumePoint
from forgetting.runs.cost import Cost
from forgetting.runs.loggers import MetricsFile, wandb_logger
from forgetting.runs.naming import Naming
from forgetting.runs.progress import PlainProgress
from forgetting.runs.provenance import InputCheck
from forgetting.runs.records import RunRecord
from forgetting.runs.refusals import refuse_inherited_arguments, refuse_settings
from forgetting.runs.run import Run, RunSettings, computed, run_seed
from forgetting.runs.selection_health import other_stores, stored_health
from forgetting.runs.tracking import WandbRecord, log_scores
from forgetting.runs.trainer import Trainer


class TrainerCLI(LightningCLI):
    """`fit`, `validate` and `score` on one YAML.

    Args:
        arguments: The command and its options.
        bases: Configuration files laid under the experiment's, in order.
    """

    def __init__(self, arguments: list[str], bases: list[Path]) -> None:
        self.arguments = arguments
        files = _patterns(bases)
        shared: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
        commands = {name: {"default_config_files": files, **shared} for name in self.subcommands()}
        super().__init__(
            FineTuner, ForgettingData, trainer_class=Trainer, save_config_callback=None,
            parser_kwargs={"prog": "python -m forgetting", **shared, **commands},
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
        parser.add_argument(
            "--base", type=str, default="paper", help="Base configuration: paper or lab (in configs/), or a YAML file."
        )
        parser.add_class_arguments(RunSettings, "run")
        parser.link_arguments("model.backbone", "data.backbone")
        parser.link_arguments("model.revision", "data.revision")
        for name in ("columns", "needs_negative"):
            parser.link_arguments(f"model.{name}", f"data.{name}", apply_on="instantiate")
        seeds = ("seed_everything", "data.split", "data.reference_seed")
        parser.link_arguments(seeds, "model.seed", compute_fn=run_seed)
        parser.link_arguments(seeds, "data.seed", compute_fn=run_seed)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, then find what the run is called, where it lives and which store it reads.

        Raises:
            UserError: A key or a value is wrong, or no experiment is given.
        """
        self.config = parse(parser, self.arguments, self._parser(self.arguments[0]))
        self.command: str = self.config.subcommand
        refuse_no_experiment(self.command, self.arguments)
        config: Namespace = self.config[self.command]
        refuse_settings(config.as_dict(), self.command)
        self.naming = naming = Naming(self.arguments)
        refuse_inherited_arguments(config.as_dict(), naming.config)
        config.seed_everything = config.model.seed
        if config.data.split == "reference":  # trained on all tokens of D_ref, whatever the objective of its method
            config.model.objective = Namespace(class_path=f"{MeanNLL.__module__}.{MeanNLL.__qualname__}")
            config.model.start = "fresh"
        settings = config.run
        config.run.id = naming.run_id
        config.data.reference = None if naming.is_reference else naming.reference_id
        # Written before the store's place is filled in: a saved configuration finds it by the reference's name.
        saved = config.clone()
        saved.pop("ckpt_path", None)  # the checkpoint that this launch resumes from is no part of the run
        if is_path_of_base(saved.base):
            saved.base = "paper"  # what is saved is whole: it outlives the base that it was made with
        self.config_text = self._parser(self.command).dump(saved, skip_unset=False, skip_validation=True)
        plain = yaml.safe_load(self.config_text)
        root = Path(settings.root)
        self.run = Run(settings.id, config.seed_everything, computed(plain), root)
        self.run.refuse_another(precision=self.command == "fit")
        self._reference = Run(naming.reference_id, config.data.reference_seed, {}, root)
        _name_loggers(config.trainer, self.run)  # after it is saved: a run of another seed may be started from it
        self._finds_store = config.data.store is None and not naming.is_reference
        config.data.store = config.data.store or self._reference.scores
        if self.command != "fit":
            config.model.adapter = self._trained_adapter(config)
        elif config.model.start == "reference":
            config.model.adapter = self._references_adapter(config)

    def _refuse_unfit_reference(self) -> None:
        """Refuse a reference that was edited since it was trained, or whose scores are not of this run's corpus.

        Raises:
            UserError: Naming the keys that differ.
        """
        is_start = self.model.start == "reference"
        if not (self.datamodule.reads_store or is_start) or self._reference.provenance() is None:
            return
        if (edited := self._reference_computed()) is not None:
            replace(self._reference, computed=edited).refuse_another(precision=False)
        if self._finds_store or is_start:
            self.naming.refuse_unshared(self.run, self._reference)

    def _reference_computed(self) -> dict[str, Any] | None:
        """The results-affecting settings of the reference's files as they are; None where no command line is it."""
        arguments = [self.command, *self.naming.arguments_for_reference()]
        if not self.naming.reference_file.is_file() or Naming(arguments).run_id != self.naming.reference_id:
            return None
        parser = self._parser(self.command)
        bases, parser.default_config_files = parser.default_config_files, _patterns(base_files(arguments))
        try:
            config = parse(self.parser, arguments, parser)[self.command]
        finally:
            parser.default_config_files = bases
        return computed(yaml.safe_load(parser.dump(config, skip_unset=False, skip_validation=True)))

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

    def _references_adapter(self, config: Namespace) -> Path:
        if config.model.adapter is not None:
            raise UserError(
                f"model.start is reference and model.adapter {config.model.adapter}: a run starts from one of them. "
                "Leave the other out."
            )
        if not self._reference.adapter.is_dir():
            raise UserError(
                f"model.start is reference, but {self._reference.folder} holds no trained reference. Train it with\n  "
                + self.naming.command_for_reference("fit")
            )
        return self._reference.adapter

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with what every run records."""
        self._refuse_unfit_reference()  # the data module knows by now whether it reads scores
        settings = self.config[self.command].run
        callbacks: list[Any] = []
        loggers: list[Any] = []
        if self.command == "fit":
            metrics = MetricsFile(self.run.folder / "metrics.csv")
            loggers = [metrics]
            callbacks = [
                Cost(self.run.folder),
                RunRecord(self.run, self.config_text, metrics, self.model, self.datamodule),
                ResumePoint(self.run.checkpoint, settings.checkpoint_every_n_steps),
            ]  # fmt: skip
            if settings.wandb is not None:
                loggers.append(wandb_logger(settings.wandb, self.run))
                callbacks.append(WandbRecord(self.run, self.datamodule, loggers[-1], settings.wandb_artifacts))
        else:
            callbacks = [InputCheck(self.run, self.model, self.datamodule)]
        trainer = self._get(self.config_init, "trainer")
        if not sys.stdout.isatty() and _wants_progress(trainer):  # a bar's carriage returns would fill a log file
            callbacks.append(PlainProgress())
            kwargs["enable_progress_bar"] = False
        self.trainer_defaults = {"callbacks": callbacks}
        own = trainer.get("logger")
        if own not in (None, True, False):
            loggers += own if isinstance(own, list) else [own]
        made = super().instantiate_trainer(
            # Lightning looks into the root folder for checkpoints that nobody asked for: there is none here.
            logger=loggers, enable_checkpointing=self.command == "fit",
            default_root_dir=str(self.run.folder / "lightning"), **kwargs,
        )  # fmt: skip
        if made.strategy.root_device.type == "cpu" and made.precision == "bf16-mixed" and made.is_global_zero:
            print(
                "bf16-mixed is slow on a CPU without bf16 arithmetic. To compute in float32 give --config "
                f"{CONFIGS / 'machines' / 'cpu.yaml'}, and --model.dtype float32 to hold the weights in it, too."
            )
        return made  # type: ignore[return-value]

    def instantiate_classes(self) -> None:
        """Make the Trainer, the module and the data from their settings; what a class refuses is the user's to change.

        Raises:
            UserError: A setting cannot be used, or the objective and the selection do not go together.
        """
        try:
            super().instantiate_classes()
        except ModuleNotFoundError as error:  # of what a logger or a strategy needs
            raise UserError(f"A setting needs a package that is not installed: {error}") from error
        except (TypeError, ValueError, OverflowError, RuntimeError, MisconfigurationException) as error:
            if "Neither `tensorboard` nor `tensorboardX`" in str(error):
                raise UserError(
                    "TensorBoardLogger needs tensorboard, which is not installed: `pip install tensorboard`. Without "
                    "it every logged value is in the run's metrics.csv."
                ) from error
            raise UserError(f"A setting cannot be used: {type(error).__name__}: {error}") from error

    def after_instantiate_classes(self) -> None:
        """Refuse an objective without what it needs; let errors name the command that makes what is missing."""
        objective, data = self.model.objective, self.datamodule
        if data.train_split == "train" and objective.needs_negative and not data.selects:
            raise UserError(
                f'{type(objective).__name__} needs negative tokens, but data.positive_fraction is "all": set it to ρ, '
                "such as 0.7, or choose MeanNLL."
            )
        if data.train_split == "train" and objective.selects:
            if data.selects:
                raise UserError(
                    f"{type(objective).__name__} selects tokens by itself, by its own positive_fraction: set "
                    f"data.positive_fraction to all instead of {data.selection.positive_fraction}."
                )
            if self.trainer.max_epochs != 1:
                raise UserError(
                    f"{type(objective).__name__} scores each batch before the model has learned from it, which is so "
                    f"in the first epoch alone: set trainer.max_epochs to 1 instead of {self.trainer.max_epochs}."
                )
        self.datamodule.score_command = self.naming.command_for_reference("score")

    def fit(self, model: FineTuner, datamodule: ForgettingData, ckpt_path: str | None = None, **options: Any) -> None:
        """Train, from the last checkpoint where there is one."""
        with locked(self.run.folder) if self.trainer.is_global_zero else nullcontext():
            self._fit(model, datamodule, ckpt_path, options)

    def _fit(self, model: FineTuner, datamodule: ForgettingData, ckpt_path: str | None, options: dict) -> None:
        if self.run.adapter.exists():
            refuse_damaged_adapter(self.run.adapter)  # complete means that the weights are there, and whole
            print(f"{self.run.folder} is complete: its adapter is trained. Remove that folder to train it again.")
            return
        checkpoint = self.run.resumes_from()
        if ckpt_path == "last" and checkpoint is None:
            raise UserError(f"There is no checkpoint {self.run.checkpoint} to resume from; leave --ckpt_path out.")
        path = checkpoint if ckpt_path in (None, "last") else Path(ckpt_path)
        if path is not None:
            if not path.is_file():
                raise UserError(f"There is no checkpoint {path} to resume from; leave --ckpt_path out to begin.")
            print(f"resuming from {path}")
        resumed = None if path is None else str(path)
        start = time.perf_counter()
        self.trainer.fit(model, datamodule=datamodule, ckpt_path=resumed, weights_only=True, **options)
        if self.trainer.global_step < model.total_steps:
            raise UserError(
                f"Training stopped at step {self.trainer.global_step} of {model.total_steps}: there is no adapter. Run "
                f"the same command to resume from {self.run.checkpoint}, if it was reached."
            )
        if self.trainer.is_global_zero:
            print(self._ending(duration(time.perf_counter() - start)))

    def _ending(self, took: str) -> str:
        """Where everything is, how good it is on held-out text, and what to run next."""
        nll = self.trainer.callback_metrics.get("validation/nll")
        held_out = "" if nll is None else f", held-out nll {float(nll):.4f}"
        if self.naming.is_reference:
            following = self.naming.command("score")
        else:
            following = shlex.join(["python", "-m", "forgetting", "evaluate", str(self.run.folder)])
        return f"trained in {took}{held_out}: {self.run.adapter}, {self.run.folder}/metrics.csv\nnext: {following}"

    def validate(self, model: FineTuner, datamodule: ForgettingData, **options: Any) -> None:
        """Held-out nll, printed and written to validation.json."""
        results = self.trainer.validate(model, datamodule=datamodule, **options)
        if self.trainer.is_global_zero:
            made_from = {"adapter": model.adapter_hash, "precision": self.trainer.precision}
            write_json(self.run.folder / "validation.json", {**(results[0] if results else {}), **made_from})

    def score(self, model: FineTuner, datamodule: ForgettingData, **options: Any) -> None:
        """Score what the store lacks."""
        assert isinstance(self.trainer, Trainer)
        self.trainer.score(model, datamodule=datamodule, **options)
        if self.trainer.is_global_zero:
            settings = self.config["score"].run
            fraction = self.config["score"].data.positive_fraction  # as a rule that of its methods
            health = stored_health(datamodule, fraction, other_stores(self.run.scores))
            if settings.wandb is not None:
                assert datamodule.store_folder is not None
                figures = health.scalars()
                log_scores(settings.wandb, self.run, datamodule.store_folder, figures, settings.wandb_artifacts)
            print(f"scores in {datamodule.store_folder}")
            print("\n".join(health.lines()))
            for reader in sorted(self.naming.files[0].parent.glob("forgetting*.yaml"))[:1]:
                print(f"next: {self.naming.command_beside('fit', reader)}")


def _patterns(files: list[Path]) -> list[str]:
    """Files as jsonargparse takes default ones, which are patterns to it: what finds nothing is silently left out."""
    return [glob.escape(str(file)) for file in files]


def _name_loggers(trainer: Any, run: Run) -> None:
    """Call a run of TensorBoard or Trackio as it is called here, where its logger has no name of its own.

    A later launch then resumes it, where Lightning would begin `version_1`.
    """
    given = trainer.get("logger")
    for logger in given if isinstance(given, list) else [given]:
        kind = logger.class_path.rsplit(".", 1)[-1] if isinstance(logger, Namespace) else ""
        if kind == "TensorBoardLogger" and logger.init_args.get("version") is None:
            if logger.init_args.get("name") in (None, "lightning_logs"):
                logger.init_args.name = run.id
            logger.init_args.version = f"seed-{run.seed}"
        if kind == "Trackio" and logger.init_args.get("name") is None:
            logger.init_args.name = f"{run.id}/seed-{run.seed}"
            logger.init_args.group = logger.init_args.get("group") or run.id.rpartition("/")[0] or run.id


def _wants_progress(trainer: Any) -> bool:
    """Whether a run says how far it is: not where the bar is switched off, and not beside a bar of the user's own."""
    callbacks = trainer.get("callbacks") or []
    own = callbacks if isinstance(callbacks, list) else [callbacks]
    return trainer.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in own)
