"""What the command line says of itself: help in groups, settings from the code's docstrings, completion of a shell."""

import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser, capture_parser

from forgetting.cli import COMMANDS, GROUPS, SETTINGS_COMMANDS, TRAINER_COMMANDS, build_cli, command, main, usage
from forgetting.completion import SHELLS, words
from forgetting.errors import UserError
from forgetting.paths import CONFIGS, shipped
from forgetting.settings_help import CLASSES, EXAMPLES, LINKED, TRAINER, settings

REPOSITORY = Path(__file__).parents[1]
MIXED = ("inspect", "probe")
"""Commands with options of their own and every setting of an experiment."""
LIGHT = [name for name in COMMANDS if name not in (*SETTINGS_COMMANDS, *MIXED)]


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with suppress(SystemExit):  # argparse's own --help
        main(arguments)
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def fit_parser() -> ArgumentParser:
    return capture_parser(lambda: build_cli(["fit"]))._subcommands_action._name_parser_map["fit"]


def test_every_command_is_in_a_group_that_is_shown() -> None:
    assert {group for _, _, group in COMMANDS.values()} <= set(GROUPS)
    text = usage()
    for name in [*TRAINER_COMMANDS, *COMMANDS]:
        assert text.count(f"\n  {name} ") == 1
    titles = [line[:-1] for line in text.splitlines() if line[:-1] in GROUPS]
    assert titles == [group for group in GROUPS if group in titles]


@pytest.mark.parametrize("name", SETTINGS_COMMANDS)
def test_help_on_settings_comes_without_the_libraries(name: str) -> None:
    code = (
        "import sys; from forgetting.cli import main; main(sys.argv[1:]);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'transformers')))"
    )
    run = subprocess.run([sys.executable, "-c", code, name, "-h"], capture_output=True, text=True, check=True)
    assert "--data.positive_fraction" in run.stdout
    assert len(run.stdout.splitlines()) < 200
    assert SETTINGS_COMMANDS[name] in run.stdout


def test_the_short_help_has_every_setting_of_the_code(fit_parser: ArgumentParser) -> None:
    """The docstrings are read as text: what the parser made of the classes is the control."""
    texts = {key: text for group in CLASSES for key, text in settings(group).items()}
    defaults = set(fit_parser.get_defaults(skip_validation=True).keys())
    keys = {key for key in defaults if key.split(".")[0] in ("run", "model", "data")}
    without_arguments = {key.split(".class_path")[0].split(".init_args")[0] for key in keys}
    tops = {key for key in without_arguments if not key.startswith("data.corpus.sources.")}
    assert texts.keys() == tops - {*LINKED, *CLASSES}
    assert all(texts.values())
    assert defaults >= TRAINER.keys()
    assert {link.target[0] for link in fit_parser._links_group._group_actions} == set(LINKED)


@pytest.mark.parametrize("arguments", [[], *([name] for name in [*SETTINGS_COMMANDS, *LIGHT, *MIXED])])
def test_help_fits_a_terminal(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown([*arguments, "--help"], capsys).splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert len(lines) < 150


def test_the_values_are_those_of_the_files_that_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    paper = shown(["fit", "--help"], capsys)
    lab = shown(["fit", "--config", str(REPOSITORY / "experiments/lab/full.yaml"), "--help"], capsys)
    assert "meta-llama/Llama-3.2-1B" in paper
    assert "worlds/100/base" in lab
    assert "meta-llama" not in lab
    assert "--data.corpus.sources {tulu_300k}\n" in paper
    assert "--run.id\n" in paper  # null is not said


def test_help_on_a_group_is_the_parsers(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(["fit", "--help.trainer"], capsys)
    assert "--trainer.max_epochs" in text
    assert "--data.corpora" not in text
    others = shown(["score", "--help.all"], capsys)
    assert "--data.corpora" in others
    assert "--ckpt_path" not in others
    with pytest.raises(UserError, match=r"no help on 'lora'; there is: --help\.all, .*--help\.trainer"):
        main(["fit", "--help.lora"])


@pytest.mark.parametrize("name", LIGHT)
def test_help_of_a_command_ends_with_examples_that_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown([name, "--help"], capsys)
    _, _, examples = text.partition("\nexamples:\n")
    lines = [line.partition(" >")[0].split() for line in examples.replace("\\\n", "").splitlines()]
    assert lines
    parser = capture_parser(lambda: command(name)([]))
    for line in lines:
        assert line[:4] == ["python", "-m", "forgetting", name]
        parser.parse_args(line[4:])
    assert "type: Union" not in text


def test_the_examples_of_settings_name_files_that_exist() -> None:
    assert EXAMPLES.keys() == SETTINGS_COMMANDS.keys()
    for line in (line for lines in EXAMPLES.values() for line in lines):
        files = [word for word in line.split() if word.endswith(".yaml")]
        assert files
        assert all((REPOSITORY / file).is_file() for file in files)


def test_a_zero_default_is_said_and_none_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(["compare", "--help"], capsys).split())
    assert "of the bootstrap (default: 0)" in text
    assert "None" not in text


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_names_every_command_and_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = shown(["completion", shell], capsys)
    for name in [*SETTINGS_COMMANDS, *COMMANDS]:
        assert name in script
        for option in words(name).options:
            assert option.removeprefix("--") in script


def test_completion_of_another_shell_is_refused() -> None:
    with pytest.raises(UserError, match=r"invalid choice: 'tcsh'"):
        main(["completion", "tcsh"])


ASK = {
    "bash": 'source $FILE; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _forgetting; printf "%s\\n" "${COMPREPLY[@]}"',
    # The completion system of zsh needs a terminal: its functions are stood in for by ones that print.
    "zsh": 'compdef() {}; _files() { print files }; _describe() { print -l -- ${(P)@[-1]%%:*} }; source $FILE;'
           'words=("$@"); CURRENT=$#; _forgetting',
    "fish": 'source $FILE; complete -C "$argv"',
}  # fmt: skip
"""What makes a shell complete the words that follow, with the script in FILE."""

COMPLETED = [
    ("forgetting eval", {"evaluate"}),
    ("forgetting fit --data.positive", {"--data.positive_fraction"}),
    ("forgetting table --see", {"--seeds"}),
    ("forgetting completion ", set(SHELLS)),
]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "mine.yaml").touch()
    file = tmp_path / "script"
    file.write_text(shown(["completion", shell], capsys))
    alone = {"bash": ["--norc", "-c"], "zsh": ["-f", "-c"], "fish": ["--no-config", "-c"]}[shell]

    def answers(line: str) -> set[str]:
        words = line.split(" ")
        given = [line] if shell == "fish" else ["-", *words] if shell == "bash" else [shell, *words]
        run = subprocess.run(
            [program, *alone, ASK[shell], *given], cwd=tmp_path, check=True, capture_output=True, text=True,
            env={"FILE": str(file), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        assert run.stderr == ""
        return {found.split("\t")[0] for found in run.stdout.splitlines() if found}

    for line, expected in COMPLETED:
        last = line.split(" ")[-1]
        found = answers(line)
        # zsh filters by what is typed in its completion system, which is stood in for here.
        assert (found if shell != "zsh" else {name for name in found if name.startswith(last)}) == expected, line
    files = {"bash": set(), "zsh": {"files"}, "fish": {"mine.yaml"}}[
        shell
    ]  # bash: readline adds files, by `-o default`
    assert answers("forgetting table mi") == files
    assert not {name for name in answers("forgetting none --") if name.startswith("--data")}
    assert "-o default" in file.read_text() or shell != "bash"


def test_files_of_the_package_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = CONFIGS.parent / "experiments/tables/table3.yaml"
    assert shipped("experiments/tables/table3.yaml") == str(study)
    assert shipped("--config=configs/machines/cpu.yaml") == f"--config={CONFIGS / 'machines/cpu.yaml'}"
    assert shipped("experiments/tables/none.yaml") == "experiments/tables/none.yaml"
    assert shipped("experiments/tables") == "experiments/tables"
    own = tmp_path / "experiments/tables/table3.yaml"
    own.parent.mkdir(parents=True)
    own.touch()
    assert shipped("experiments/tables/table3.yaml") == "experiments/tables/table3.yaml"
