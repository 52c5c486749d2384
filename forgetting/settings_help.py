"""`fit --help` and its like: every setting of an experiment with its value, from the docstrings of the code.

The whole help of LightningCLI has 700 lines and needs every library, which takes seconds: it is at `--help.all`, that
of a group at `--help.trainer`. The short one reads the docstrings from the source and imports none of the classes.
"""

import ast
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import docstring_parser

from forgetting.arguments import base_files, config_files, flat, merged
from forgetting.errors import UserError

CLASSES = {
    "run": ("runs/run.py", "RunSettings"),
    "model": ("method/module.py", "FineTuner"),
    "model.lora": ("model/lora.py", "Lora"),
    "data": ("method/data.py", "ForgettingData"),
    "data.corpus": ("corpus/configuration.py", "CorpusConfig"),
}
"""Groups of settings: the file and the class whose docstring says what each of them is."""

TRAINER = {
    "trainer.accelerator": "auto, cpu or gpu.",
    "trainer.devices": "GPUs (or CPU processes) per node; auto takes all.",
    "trainer.num_nodes": "Nodes (default 1), see docs/distributed.md.",
    "trainer.strategy": "auto, ddp, or sharded (FSDP2).",
    "trainer.precision": "bf16-mixed or 32-true.",
    "trainer.max_epochs": "Epochs over D_train.",
    "trainer.val_check_interval": "Fraction of an epoch between two passes over D_val.",
}
"""The settings of Lightning's Trainer that an experiment is likely to need."""

LINKED = ("model.seed", "data.seed", "data.backbone", "data.revision", "data.columns", "data.needs_negative")
"""Settings that the command line takes from other ones."""

MAPPINGS = ("data.corpus.sources", "run.wandb")
"""Settings whose value is a mapping of the user's own: shown by its keys."""

EXAMPLES = {
    "fit": (
        "--config experiments/lab/reference.yaml",
        "--config experiments/lab/full.yaml --run.root trial",
        "--config experiments/table3/llama-3.2-1b/full.yaml \\\n"
        "      --config configs/machines/one-small-gpu.yaml --seed_everything 1",
    ),
    "score": ("--config experiments/lab/reference.yaml",),
    "validate": ("--config experiments/lab/forgetting-token.yaml",),
    "prepare": ("--config experiments/table5/llama-2-13b/full.yaml",),
}

MORE = {
    "--help.trainer": "A group with types; also run, model, data.",
    "--help.all": "Every setting.",
    "--model.objective.help=CLASS": "Arguments of an objective, such as Forgetting.",
    "--data.score.help=CLASS": "Arguments of a score, such as LossReduction.",
    "--print_config": "The whole configuration as YAML; nothing is run.",
}

TEXT_COLUMN = 30
"""Columns of an option whose text follows on its line."""


def asked(arguments: Sequence[str]) -> str:
    """The option of help among the arguments of a command, `--help` or `--help.<group>`; empty where there is none."""
    options = ("--help" if argument == "-h" else argument for argument in arguments if _is_help(argument))
    return next(options, "")


def _is_help(argument: str) -> bool:
    return argument in ("-h", "--help") or argument.startswith("--help.")


def show(arguments: Sequence[str], option: str, text: str) -> None:
    """Print the help of a command that takes an experiment.

    Args:
        arguments: The command and its options: the files among them give the values that are shown.
        option: `--help`, `--help.all` or `--help.<group>`.
        text: What the command does.

    Raises:
        UserError: There is no such group, or a file of `--config` is missing or not YAML.
    """
    command, *others = (argument for argument in arguments if not _is_help(argument))
    print(
        short(command, others, text) if option == "--help" else whole(command, others, option.removeprefix("--help."))
    )


def settings(group: str) -> dict[str, str]:
    """What each setting of a group is, by dotted key. Those that are linked to another one are left out."""
    file, name = CLASSES[group]
    tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
    (node,) = (item for item in tree.body if isinstance(item, ast.ClassDef) and item.name == name)
    described = docstring_parser.parse(ast.get_docstring(node) or "").params
    texts = {f"{group}.{item.arg_name}": " ".join((item.description or "").split()) for item in described}
    return {key: text for key, text in texts.items() if key not in (*LINKED, *CLASSES)}


def first_sentence(text: str) -> str:
    """The first sentence of a text."""
    return re.split(r"(?<=\.) (?=[A-Z])", text, maxsplit=1)[0]


def short(command: str, arguments: Sequence[str], text: str) -> str:
    """The short help: what the command does, examples, and every setting with its value.

    Raises:
        UserError: A file of `--config` is missing or not YAML.
    """
    files = config_files(arguments)
    values = _values(merged(files))
    groups = {"seed": {"seed_everything": "The run's seed."}}
    groups |= {group: settings(group) for group in CLASSES} | {"trainer (the most used)": TRAINER}
    lines = [
        f"usage: python -m forgetting {command} --config EXPERIMENT [--config OVERLAY ...]",
        "           [--KEY VALUE ...]",
        "", *_wrapped(text, ""), "",
        "examples:", *(f"  python -m forgetting {command} {example}" for example in EXAMPLES[command]), "",
        *_wrapped(f"Settings, with their values in {' and '.join(['configs/paper.yaml', *map(str, files)])}:", ""),
    ]  # fmt: skip
    for title, texts in groups.items():
        lines += ["", f"{title}:"]
        for key, meaning in texts.items():
            lines += _entry(f"--{key} {values.get(key, '')}".rstrip(), first_sentence(meaning))
    more = [line for option, meaning in MORE.items() for line in _entry(option, meaning)]
    return "\n".join([*lines, "", "more help:", *more])


def _entry(option: str, text: str) -> list[str]:
    """An option and what it is: in one line where there is room, else the text below."""
    line = f"  {option:<{TEXT_COLUMN}}{text}"
    if len(option) < TEXT_COLUMN and len(line) <= _width():
        return [line]
    return [f"  {option}", *_wrapped(text, " " * 6)]


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 100)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _width(), initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _values(config: Mapping[str, object]) -> dict[str, str]:
    """Values by dotted key as YAML has them: a class by its name, a mapping by its keys, null left out."""
    values = {key: value for key, value in flat(config).items() if value is not None}
    texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in values.items()}
    texts |= {key.removesuffix(".class_path"): name for key, name in texts.items() if key.endswith(".class_path")}
    for key in MAPPINGS:
        if names := [name.removeprefix(f"{key}.").split(".")[0] for name in texts if name.startswith(f"{key}.")]:
            texts[key] = "{" + ", ".join(dict.fromkeys(names)) + "}"
    return texts


def whole(command: str, arguments: Sequence[str], group: str) -> str:
    """The help of LightningCLI: all of it, or what it says of a group.

    Raises:
        UserError: There is no such group.
    """
    if group not in (known := ("all", "run", "model", "data", "trainer")):
        raise UserError(f"There is no help on {group!r}; there is: {', '.join(f'--help.{name}' for name in known)}.")
    from jsonargparse import capture_parser

    from forgetting.runs.trainer_cli import TrainerCLI

    parser = capture_parser(lambda: TrainerCLI(["fit", *arguments], base_files(arguments)))
    commands = parser._subcommands_action._name_parser_map  # type: ignore[union-attr]
    text = commands.get(command, commands["fit"]).format_help()  # `prepare` takes the settings of `fit`
    if group == "all":
        return text
    sections = re.split(r"\n\n(?=\S)", text)[1:]  # the first one is the usage, with every option
    return "\n\n".join(part for part in sections if re.search(rf"^  --{group}[. ]", part, re.MULTILINE)).rstrip()
