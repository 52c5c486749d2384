"""An experiment's command line parsed as `fit` parses it, for commands that need its data and no Trainer."""

from functools import cached_property
from pathlib import Path

from jsonargparse import Namespace, capture_parser

from forgetting.arguments import base_files, parse
from forgetting.method.data import ForgettingData
from forgetting.method.module import FineTuner
from forgetting.runs.naming import Naming
from forgetting.runs.refusals import refuse_inherited_arguments
from forgetting.runs.run import Run
from forgetting.runs.trainer_cli import TrainerCLI


class ParsedExperiment:
    """Any experiment, overlay and override that `fit` takes.

    Args:
        arguments: Of the command line, without the command.

    Attributes:
        settings: All of them; what is changed before `instantiate` holds.

    Raises:
        UserError: A key or a file is wrong.
    """

    def __init__(self, arguments: list[str]) -> None:
        self._command = ["fit", *arguments]
        self._parser = capture_parser(lambda: TrainerCLI(self._command, base_files(arguments)))
        self._config = parse(self._parser, self._command)
        self.settings: Namespace = self._config.fit

    @cached_property
    def naming(self) -> Naming:
        """Names of its run and of its reference."""
        return Naming(self._command)

    @property
    def root(self) -> Path:
        """Folder of all runs."""
        return Path(self.settings.run.root)

    def instantiate(self) -> tuple[FineTuner, ForgettingData]:
        """The module, without its model, and the data, not set up.

        Raises:
            UserError: A class was replaced and would keep an argument of the one before, as `fit` says.
        """
        refuse_inherited_arguments(self.settings.as_dict(), self.naming.config)
        made = self._parser.instantiate_classes(self._config)["fit"]
        module, data = made["model"], made["data"]
        assert isinstance(module, FineTuner)
        assert isinstance(data, ForgettingData)
        return module, data

    def instantiate_with_store(self) -> tuple[FineTuner, ForgettingData]:
        """The same, where the store is the reference's unless the settings name one."""
        reference = Run(self.naming.reference_id, self.settings.data.reference_seed, {}, self.root)
        self.settings.data.store = self.settings.data.store or reference.scores
        module, data = self.instantiate()
        data.score_command = self.naming.command_for_reference("score")
        return module, data
