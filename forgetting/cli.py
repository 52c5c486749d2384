"""The command line: `python -m forgetting <command>`.

`fit`, `validate` and `score` are LightningCLI subcommands that share one YAML: `configs/paper.yaml`, laid over by the
base that an experiment names (`base: lab`), the experiment, overlays and overrides, in this order. The other commands
need no Trainer and are dispatched before any model is built.
"""

import difflib
import errno
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from forgetting import settings_help
from forgetting.arguments import base_files
from forgetting.errors import UserError
from forgetting.paths import shipped

if TYPE_CHECKING:
    from forgetting.runs.trainer_cli import TrainerCLI

GROUPS = ("make data", "train", "look", "evaluate", "studies", "use", "set up")
"""Groups of commands in the order in which `--help` lists them; one without a command is left out."""

TRAINER_COMMANDS = {
    "fit": "Fine-tune a reference or a method; resume a stopped run.",
    "score": "Store the base and reference nll of every response token.",
    "validate": "Held-out nll of a finished run: all, positive, negative tokens.",
}
"""The group `train`: name and line of help."""

COMMANDS = {
    "new": (
        "forgetting.studies.new:new_command",
        "Look at your files, and write experiments and a study over them.",
        "make data",
    ),
    "prepare": (
        "forgetting.runs.prepare:prepare_command",
        "Make the corpus: read sources, drop duplicates, draw, tokenize.",
        "make data",
    ),
    "inspect": (
        "forgetting.runs.inspect:inspect_command",
        "Scores and selection of an experiment as one HTML page.",
        "look",
    ),
    "probe": (
        "forgetting.probe_command:probe_command",
        "Plant known noise in a sample of your data: which of it is found?",
        "look",
    ),
    "plot": (
        "forgetting.studies.plot:plot_command",
        "Curves of runs next to each other, score histograms of stores.",
        "look",
    ),
    "evaluate": (
        "forgetting.evaluation.command:evaluate_command",
        "Benchmark a run, a model folder or a hub id.",
        "evaluate",
    ),
    "compare": (
        "forgetting.evaluation.command:compare_command",
        "Paired difference of two evaluations.",
        "evaluate",
    ),
    "table": (
        "forgetting.studies.command:table_command",
        "Print a study's table, from finished runs or run now.",
        "studies",
    ),
    "lab": (
        "forgetting.lab_command:lab_command",
        "The paper's comparison on generated data with known noise.",
        "studies",
    ),
    "generate": (
        "forgetting.runs.generate_command:generate_command",
        "Responses to the same prompts before and after training.",
        "use",
    ),
    "export": (
        "forgetting.runs.export_command:export_command",
        "A run's model as a folder, or its selection for other trainers.",
        "use",
    ),
    "completion": (
        "forgetting.completion:completion_command",
        "Script that completes commands in bash, zsh or fish.",
        "set up",
    ),
}
"""The other commands: function, line of help, group."""

SETTINGS_COMMANDS = {**TRAINER_COMMANDS, "prepare": COMMANDS["prepare"][1]}
"""Commands that take an experiment and every setting of it."""

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # steps are cheap to build
    "Checkpoint directory .* exists and is not empty",  # a resumed run finds its own
    "You're resuming from a checkpoint that ended before the epoch ended",  # StepSampler knows where the run stands
    "Total length of `(DataLoader|list)` across ranks is zero",  # a score store that lacks nothing; no D_val
    ".*is_gradient_checkpointing. is deprecated.*",  # PEFT asks transformers by an old name
    ".*LeafSpec.*is deprecated.*",  # Lightning 2.6 with torch 2.13
)
"""Libraries' warnings about what this code does on purpose, or about each other."""

FILE_SYSTEM = {
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EDQUOT: "your quota is used up: free some space, or write elsewhere",
    errno.EROFS: "write elsewhere: this file system is read-only",
    errno.EFBIG: "write to a file system (or under a limit) that takes files of this size",
    errno.EACCES: "change its permissions, or write elsewhere",
    errno.EPERM: "change its permissions, or write elsewhere",
    errno.ENOENT: "it does not exist and cannot be made there: check the path",
    errno.ENOTDIR: "a part of the path is a file where a folder was expected: move it away, or write elsewhere",
    errno.EISDIR: "it is a folder where a file was expected: move it away, or write elsewhere",
    errno.EEXIST: "it is a file where a folder was expected: move it away, or write elsewhere",
    errno.ENAMETOOLONG: "give a shorter name or path",
    errno.EIO: "the disk or the network behind it failed: try again, or write elsewhere",
    errno.ESTALE: "the network file system lost it: try again",
}
"""What a file system may refuse, and what to do then. Nothing complete is lost by it."""


def usage() -> str:
    """Every command with a line of help, in groups."""
    rows = [(name, text, "train") for name, text in TRAINER_COMMANDS.items()]
    rows += [(name, text, group) for name, (_, text, group) in COMMANDS.items()]
    width = max(len(name) for name, _, _ in rows) + 2
    lines = ["usage: python -m forgetting <command> [options]", ""]
    for group in GROUPS:
        if members := [f"  {name:<{width}}{text}" for name, text, of in rows if of == group]:
            lines += [f"{group}:", *members, ""]
    lines += [
        "Options of a command: python -m forgetting <command> --help", "",
        "examples:",
        "  python -m forgetting lab          # no GPU, nothing to download: five minutes",
        "  python -m forgetting table mine.yaml --run          # a study of your own data",
        "",
        "the method by hand:",
        "  python -m forgetting fit   --config experiments/<...>/reference.yaml",
        "  python -m forgetting score --config experiments/<...>/reference.yaml",
        "  python -m forgetting fit   --config experiments/<...>/forgetting-token.yaml",
        "  python -m forgetting evaluate runs/<...>/forgetting-token/seed-0",
    ]  # fmt: skip
    return "\n".join(lines)


def build_cli(arguments: Sequence[str]) -> "TrainerCLI":
    """Parse and run a command that needs a Trainer."""
    bases = base_files(arguments)  # before the imports, which take seconds
    from forgetting.runs.trainer_cli import TrainerCLI

    return TrainerCLI(list(arguments), bases)


def command(name: str) -> Callable[[list[str]], None]:
    """The function of a command that needs no Trainer."""
    module, function = COMMANDS[name][0].split(":")
    return getattr(import_module(module), function)


def run(arguments: list[str]) -> None:
    """Run one command.

    Raises:
        UserError: Something the user gave is wrong, or the file system refuses.
    """
    try:
        _run([shipped(argument) for argument in arguments])
    except OSError as error:
        if error.errno not in FILE_SYSTEM:
            raise
        path = error.filename2 or error.filename  # of a file that is moved into its place, the place
        where = f"{path}: " if path else ""
        raise UserError(f"{where}{error.strerror}; {FILE_SYSTEM[error.errno]}.") from error


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
    elif arguments[0] in ("-V", "--version"):
        print(f"forgetting {version('forgetting')}")
    elif arguments[0] in SETTINGS_COMMANDS and (asked := settings_help.asked(arguments[1:])):
        settings_help.show(arguments, asked, SETTINGS_COMMANDS[arguments[0]])
    elif arguments[0] in TRAINER_COMMANDS:
        build_cli(arguments)
    elif arguments[0] in COMMANDS:
        command(arguments[0])(arguments[1:])
    else:
        known = ", ".join([*TRAINER_COMMANDS, *COMMANDS])
        close = difflib.get_close_matches(arguments[0], [*TRAINER_COMMANDS, *COMMANDS], n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise UserError(f"There is no command {arguments[0]!r}.{meant} The commands are: {known}.")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: an error of the user's is one message on stderr and status 2.

    Args:
        arguments: Of the command line; None takes them from it. Given ones let a UserError through to the caller.
    """
    if arguments is not None:
        run(arguments)
        return
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # Advertisements among Lightning's notices.
    notices = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    notices.addFilter(lambda record: "Tip:" not in record.getMessage())
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
