"""The command line: its configuration files and overrides as plain data, and clear errors. No heavy import."""

import argparse
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from forgetting.errors import UserError
from forgetting.paths import CONFIGS

if TYPE_CHECKING:
    from argparse import Action

    from jsonargparse import ArgumentParser, Namespace


CONFIG_OPTION = re.compile(r"--config(=|$)|-c=?")
"""The option that names a file, up to the file's path."""

WHOLE = ("data.corpus.sources", "run.wandb")
"""Keys whose value is a dictionary of the user's own keys: a file replaces it, rather than adding to it."""

EXPECTED = {"run.wandb": "its settings, such as '{project: forgetting}', or null"}
"""What a key takes, where jsonargparse would only name Python's types."""

NO_YAML = (yaml.YAMLError, TypeError)
"""What jsonargparse's loader raises; the TypeError for a mapping whose only key is null, such as `?`."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file as plain dictionaries.

    Raises:
        UserError: It is missing or not YAML.
    """
    from jsonargparse import get_loader

    try:
        content = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no configuration file {path}.") from None
    except IsADirectoryError:
        file = path / "fit.yaml"
        of_run = f"; the configuration of that run is {file}" if file.is_file() else ""
        raise UserError(f"{path} is a folder, and a configuration file was expected{of_run}.") from None
    except (*NO_YAML, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no configuration: a YAML mapping was expected.")
    return content


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    if not isinstance(content, Mapping) or not content:
        return {prefix: content}
    parts = [flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in content.items()]
    return {key: value for part in parts for key, value in part.items()}


def config_files(arguments: Sequence[str]) -> list[Path]:
    """The files given with `--config`, in order.

    Raises:
        UserError: One comes after an override, which it would override in turn; or the option is abbreviated, which
            argparse would take and its file's base would be missed.
    """
    files, overridden = [], False
    for option in _joined(arguments):
        name = option.split("=", 1)[0]
        if name != "--config" and len(name) > 2 and "--config".startswith(name):
            raise UserError(f"{name} is not an option: write --config in full.")
        file = CONFIG_OPTION.match(option)
        if file is None:
            overridden = overridden or option.startswith("--")
        elif option not in ("--config", "-c"):  # without a file, which argparse refuses
            path = option[file.end() :]
            if overridden:
                raise UserError(f"{path} comes after an override: give every --config before the overrides.")
            files.append(Path(path))
    return files


def config_options(files: Iterable[Path]) -> list[str]:
    """Files as a command line names them, in the order in which one is laid over the other."""
    return [part for file in files for part in ("--config", str(file))]


def base_files(arguments: Sequence[str]) -> list[Path]:
    """The base configurations: `configs/paper.yaml`, then the one that an experiment names as its `base`.

    A base is a name in `configs/` (`lab`), or the path of a YAML file of one's own, from the current folder.

    Raises:
        UserError: A file is missing or not YAML, there is no such base, or a file of one's own names a base in turn.
    """
    files = [CONFIGS / "paper.yaml"]
    if any(argument.split("=", 1)[0] == "--base" for argument in arguments):
        raise UserError("A base is named by the experiment: write `base: lab` at the top of its file.")
    named = [(file, content["base"]) for file in config_files(arguments) if (content := read_yaml(file)).get("base")]
    if named and named[-1][1] != "paper":
        files.append(_base_file(*named[-1]))
    for file in files:
        if not file.is_file():  # jsonargparse would silently do without it
            raise UserError(f"The base configuration {file} is missing. Install the package again.")
    return files


def is_path_of_base(base: str) -> bool:
    """Whether a base is a file of one's own, and not a name in `configs/`."""
    return base.endswith((".yaml", ".yml"))


def _base_file(experiment: Path, base: Any) -> Path:
    if not is_path_of_base(str(base)):
        file = CONFIGS / f"{base}.yaml"
        if not file.is_file():
            existing = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
            raise UserError(f"There is no base configuration {base!r} in {CONFIGS}; there are: {existing}.")
        return file
    file = Path(base)
    if not file.is_file():
        raise UserError(
            f"There is no base configuration {file} (from {Path.cwd()}), which {experiment} names. Run the command in "
            "the folder from which that path leads to it, or correct `base`."
        )
    if read_yaml(file).get("base"):
        raise UserError(f"{file} is the base of {experiment} and names a base itself: only an experiment has one.")
    return file


def option_strings(arguments: Sequence[str]) -> list[str]:
    """The options other than `--config`, each as one `--key=value`, whichever way it was typed."""
    return [option for option in _joined(arguments) if not CONFIG_OPTION.match(option)]


def _joined(arguments: Sequence[str]) -> list[str]:
    """Every option as one `--key=value`; what precedes the first, a command, is left out."""
    options: list[str] = []
    for argument in arguments:
        if argument.startswith("-") and not is_number(argument):
            options.append(argument)
        elif options and "=" not in options[-1]:
            options[-1] += f"={argument}"
    return options


class OwnOptions(argparse.ArgumentParser):
    """Parser of a command's own options, beside which it takes every key of an experiment.

    Args:
        command: Its name.
        description: What it does, in lines that fit a terminal.
        examples: Shown last.
    """

    def __init__(self, command: str, description: str, examples: str) -> None:
        super().__init__(
            usage=f"python -m forgetting {command} --config EXPERIMENT [--KEY VALUE ...]", add_help=False,
            allow_abbrev=False, description=description, epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        self._command = command
        self.add_argument("-h", "--help", action="store_true", help="Show this help.")

    def error(self, message: str) -> NoReturn:
        """Errors are one message, as those of the other commands."""
        raise UserError(f"{message}. python -m forgetting {self._command} --help lists the options.")


def is_number(text: str) -> bool:
    """Whether a text reads as a number, such as 1e5."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def assignment(option: str) -> tuple[str, Any]:
    """The key of a `--key=value` and its value, parsed as YAML as jsonargparse does.

    Raises:
        UserError: It has no value.
    """
    from jsonargparse import get_loader

    key, separator, text = option.removeprefix("--").partition("=")
    if not separator:
        raise UserError(f"--{key} has no value: --{key}=VALUE was expected.")
    if not text.strip():
        return key, text
    try:
        return key, get_loader("yaml")(text)
    except NO_YAML:
        return key, text


def merged(files: Sequence[Path]) -> dict[str, Any]:
    """Lay the base configurations, an experiment and overlays over one another, as `fit` does, without its types.

    A key that no file names is not in the result.

    Raises:
        UserError: A file is missing or not YAML.
    """
    bases = base_files(config_options(files))
    config: dict[str, Any] = {}
    for file in (*bases, *files):
        config = _laid_over(config, read_yaml(file))
    return config


def overridden(config: dict[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """Lay overrides, as `option_strings` returns them, over a configuration.

    Raises:
        UserError: One has no value.
    """
    for key, value in map(assignment, options):
        config = _assigned(config, key.split("."), value)
    return config


def _laid_over(below: Any, above: Any, key: str = "") -> Any:
    """`above` laid over `below`; another class drops the arguments of the one below."""
    if not isinstance(below, dict) or not isinstance(above, dict) or key in WHOLE:
        return above
    if "class_path" in above and _class_name(above) != _class_name(below):
        return above
    names = {name: f"{key}.{name}" if key else name for name in above}
    return below | {name: _laid_over(below.get(name), value, names[name]) for name, value in above.items()}


def _class_name(content: Mapping[str, Any]) -> str:
    return str(content.get("class_path")).rsplit(".", 1)[-1]


def _assigned(below: Any, parts: list[str], value: Any, key: str = "") -> Any:
    """`below` with one override: `parts` are what is left of its key, `key` what has been walked."""
    is_class = isinstance(below, dict) and "class_path" in below
    if not parts:
        if isinstance(below, dict) and isinstance(value, str):  # `--model.objective NAME`, or `--data FILE`
            value = {"class_path": value} if is_class else read_yaml(Path(value))
        return _laid_over(below, value, key)
    name, *rest = parts
    if name.endswith("+"):  # `--key+ value` appends
        kept = below.get(name[:-1]) if isinstance(below, dict) else None
        name, value = name[:-1], [*(kept or []), *(value if isinstance(value, list) else [value])]
    if is_class and name not in ("class_path", "init_args"):  # `--model.objective.t_max` needs no `init_args`
        name, rest = "init_args", parts
    content = below if isinstance(below, dict) else {}
    if name == "class_path":
        return _laid_over(below, {name: value})
    return content | {name: _assigned(content.get(name), rest, value, f"{key}.{name}" if key else name)}


def refuse_no_experiment(command: str, arguments: Sequence[str]) -> None:
    """Refuse a command that would fall back on the base configuration alone.

    Raises:
        UserError: No `--config` is given.
    """
    if not config_files(arguments):
        raise UserError(
            f"{command} needs an experiment: --config experiments/<...>.yaml. Without one it would take the first "
            "model and the whole data of the paper."
        )


def command_parser(command: str, description: str, examples: Sequence[str]) -> "ArgumentParser":
    """The parser of a command that needs no Trainer, whose help ends with examples.

    Args:
        command: Its name.
        description: What it does, in a sentence.
        examples: Command lines, without `python -m forgetting`.
    """
    from argparse import SUPPRESS

    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter):
        """Keeps the lines of the examples, lists the options once, and says no types and no empty defaults."""

        def _format_usage(self, *arguments: Any) -> str:
            positional = [action.dest for action in arguments[1] if not action.option_strings]
            return " ".join(["usage:", self._prog, "[options]", *positional]) + "\n\n"

        def _get_help_string(self, action: "Action") -> str:
            text = action.help or ""
            says_nothing = action.default is None or action.default is False or action.default == SUPPRESS
            return text if says_nothing or "(default" in text else f"{text} (default: %(default)s)"

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return text if text.startswith("examples:") else super()._fill_text(text, width, indent)

    lines = "\n".join(f"  python -m forgetting {example}" for example in examples)
    return ArgumentParser(
        exit_on_error=False, prog=f"python -m forgetting {command}", description=description,
        epilog=f"examples:\n{lines}", formatter_class=Formatter,
    )  # fmt: skip


def parse(parser: "ArgumentParser", arguments: Sequence[str], keys: "ArgumentParser | None" = None) -> "Namespace":
    """Parse a command line; an error is one message, with the keys that were probably meant.

    Args:
        parser: With `exit_on_error=False`.
        arguments: The command line.
        keys: The parser whose keys can be meant, where it is another one (a subcommand's).

    Raises:
        UserError: A key or a value is wrong.
    """
    from jsonargparse import ArgumentError

    options = [argument.split("=", 1)[0] for argument in arguments if re.match(r"--[a-z]", argument)]
    for option in options:
        if options.count(option) > 1 and option != "--config" and not option.endswith("+"):
            raise UserError(f"{option} is given twice, and the first one would be lost. Give it once.")
    try:
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        text = " ".join(str(error).split())
        known = list((keys or parser).get_defaults(skip_validation=True).keys())
        if "subcommand" in known:  # an experiment's command without its own parser
            known = list(flat(read_yaml(CONFIGS / "paper.yaml")))
        raise UserError(_shortened(text).rstrip(".") + _meant(text, known)) from None


def _shortened(text: str) -> str:
    """The one reason in jsonargparse's message about a value that no type of several takes."""
    key, value = re.match(r'Parser key "([\w.]+)"', text), re.search(r"Given value: (\S+)$", text)
    if key is not None and value is not None and key[1] in EXPECTED:
        return f"{key[1]} is {value[1]}; {EXPECTED[key[1]]} was expected"
    reason = re.search(r"Problem with given class_path '([\w.]+)': (.+?) - Expected a <class", text)
    if key is not None and reason is not None:
        return f"{key[1]}: {reason[1].rsplit('.', 1)[-1]}: {reason[2]}"
    return text


def _meant(text: str, known: list[str]) -> str:
    by_last = {key.rsplit(".", 1)[-1]: key for key in known}
    for wrong in re.findall(r"(?:accept option '|arguments: --)([\w.-]+)", text):
        wrong = wrong.replace("-", "_")
        close = difflib.get_close_matches(wrong, known, n=2, cutoff=0.8)
        close += [by_last[key] for key in difflib.get_close_matches(wrong.rsplit(".", 1)[-1], by_last, n=2)]
        if close:
            return f". Did you mean {' or '.join(dict.fromkeys(close))}?"
    for wrong in re.findall(r"import path string: (\w+)", text):
        if close := difflib.get_close_matches(wrong, ("MeanNLL", "Forgetting"), n=1):
            return f". Did you mean {close[0]}?"
    return ". --help says which keys there are."
