"""The command `completion`: a script for a shell, made once from the parsers, so that TAB starts no Python."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module

from jsonargparse import capture_parser

from forgetting.arguments import command_parser, parse
from forgetting.cli import COMMANDS, SETTINGS_COMMANDS, command
from forgetting.settings_help import CLASSES, TRAINER, first_sentence, settings

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Words:
    """What can follow a command: options with their line of help, and values of its first argument (else files)."""

    options: Mapping[str, str]
    values: tuple[str, ...] = ()


def completion_command(arguments: list[str]) -> None:
    """Print the script of a shell, which completes commands, their options and the names of files."""
    parser = command_parser(
        "completion",
        "Print a script that completes the commands, options and files of the program `forgetting`. zsh sources it in "
        "~/.zshrc, after compinit. The script does not change by itself: write it again after an update.",
        (
            "completion bash \\\n      > ~/.local/share/bash-completion/completions/forgetting",
            "completion zsh > ~/.forgetting.zsh",
            "completion fish \\\n      > ~/.config/fish/completions/forgetting.fish",
        ),
    )
    parser.add_argument("shell", choices=SHELLS, help="bash, zsh or fish")
    shell = parse(parser, arguments).shell
    commands = {name: text for name, (_, text, _) in COMMANDS.items()}
    texts = {**SETTINGS_COMMANDS, **commands}
    make = {"bash": bash, "zsh": zsh, "fish": fish}[shell]
    print(make(texts, {name: words(name) for name in texts}))


def words(name: str) -> Words:
    """What can follow a command."""
    if name in SETTINGS_COMMANDS:
        options = {
            "--config": "An experiment, then overlays.",
            "--seed_everything": "The run's seed.",
            "--print_config": "The whole configuration as YAML, instead of a run.",
            "--help": "Every setting with its value.",
        }
        texts = {key: text for group in CLASSES for key, text in settings(group).items()} | TRAINER
        return Words(options | {f"--{key}": first_sentence(text) for key, text in texts.items()})
    if name in ("inspect", "probe"):  # options of their own, and keys of an experiment
        module = COMMANDS[name][0].split(":")[0]
        actions = import_module(module).own_options()._actions
    else:
        actions = capture_parser(lambda: command(name)([]))._actions
    options = {
        option: action.help or ""
        for action in actions for option in action.option_strings if option.startswith("--")
    }  # fmt: skip
    positional = next((action for action in actions if not action.option_strings), None)
    return Words(options, tuple(positional.choices or ()) if positional else ())


def bash(texts: Mapping[str, str], following: Mapping[str, Words]) -> str:
    """For bash 4 or newer. What is neither a command nor an option is a file."""
    cases = "\n".join(
        f"        {name}) options={_quoted(after.options)} values={_quoted(after.values)} ;;"
        for name, after in following.items()
    )
    return f"""\
_forgetting() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" options="--help --version" values={_quoted(texts)}
    if (( COMP_CWORD > 1 )); then
        options="" values=""
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    if [[ $word == -* ]]; then values=$options; fi
    COMPREPLY=($(compgen -W "$values" -- "$word"))
}}
complete -o bashdefault -o default -F _forgetting forgetting"""


def _quoted(names: Iterable[str]) -> str:
    return shlex.quote(" ".join(names))


def zsh(texts: Mapping[str, str], following: Mapping[str, Words]) -> str:
    """For zsh with its completion system on."""

    def described(rows: Mapping[str, str]) -> str:
        return " ".join(shlex.quote(f"{name}:{text}") for name, text in rows.items())

    cases = "\n".join(
        f"        {name}) options=({described(after.options)}) values=({shlex.join(after.values)}) ;;"
        for name, after in following.items()
    )
    return f"""\
#compdef forgetting
_forgetting() {{
    local -a options values
    if (( CURRENT == 2 )); then
        values=({described(texts)})
        _describe command values
        return
    fi
    case $words[2] in
{cases}
    esac
    if [[ $words[CURRENT] == -* ]]; then
        _describe -o option options
    elif (( $#values )); then
        _describe value values
    else
        _files
    fi
}}
compdef _forgetting forgetting"""


def fish(texts: Mapping[str, str], following: Mapping[str, Words]) -> str:
    """For fish 3 or newer."""
    lines = [
        f"complete -c forgetting -n __fish_use_subcommand -f -a {name} -d {_fish_quoted(text)}"
        for name, text in texts.items()
    ]
    for name, after in following.items():
        rule = f"complete -c forgetting -n '__fish_seen_subcommand_from {name}'"
        lines += [f"{rule} -f -a {value}" for value in after.values]
        lines += [f"{rule} -l {key.removeprefix('--')} -d {_fish_quoted(text)}" for key, text in after.options.items()]
    return "\n".join(lines)


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
