"""The command `new`: from files of one's own to experiments over them, and a study that compares those.

It looks at the files, says how it takes them and shows an example, then writes a folder of short files. Nothing is
written before everything has been looked at.
"""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from forgetting.arguments import parse
from forgetting.artifacts import complete_folder
from forgetting.errors import UserError
from forgetting.paths import EXPERIMENTS

if TYPE_CHECKING:
    from forgetting.corpus.guess import Given, Guess
    from forgetting.corpus.sources import LoadedSource

ROWS_TO_GUESS_FROM = 1000
FEWEST = 10
"""Distinct examples below which there is nothing to learn from."""


def new_command(arguments: list[str]) -> None:
    """Look at files of examples, show how they are taken, and write experiments and a study over them."""
    options = parse(_parser(), arguments)
    if not options.model:
        raise UserError("new needs a base model: --model FOLDER, or --model NAME of one on the hub.")
    folder = _folder(options.folder, options.files[0])
    from forgetting.corpus.guess import Given
    from forgetting.studies.new_files import Setup, files_of
    from forgetting.studies.new_preview import Preview, visible

    given = Given(_typed(options.prompt), _typed(options.response), options.messages)
    names = options.column_names
    inputs = [read_input(name, path, given, names) for name, path in _named(options.files).items()]
    for each in inputs:
        print(visible(each.report()))
    texts = {key: text for each in inputs for key, text in each.distinct()}
    if len(texts) < FEWEST:
        raise UserError(
            f"There are {len(texts)} distinct examples; at least {FEWEST} were expected, of which some train the "
            "reference and some are held out. Give more files."
        )
    preview = Preview.of(options.model, list(texts.values()))
    setup = Setup(options.model, folder, {each.name: each.entry() for each in inputs}, len(texts), preview.max_length)
    print(f"{setup.sizes()}\n\n{preview.report()}\n")
    with complete_folder(folder) as temporary:
        for name, content in files_of(setup).items():
            (temporary / name).write_text(content, encoding="utf-8")
    print(setup.ending())


@dataclass(frozen=True)
class Input:
    """One argument's files: a source of the corpus.

    Attributes:
        name: Of the source.
        path: As it was given.
        column_names: Of CSV and TSV files without a header.
        guess: How its rows become messages.
        read: What they became.
    """

    name: str
    path: str
    column_names: list[str] | None
    guess: "Guess"
    read: "LoadedSource"

    def entry(self) -> dict[str, Any]:
        """The source as an experiment says it."""
        names = {} if self.column_names is None else {"column_names": self.column_names}
        return {"path": self.path, **names, **self.guess.mapping}

    def distinct(self) -> list[tuple[bytes, str]]:
        """Key and JSON of its examples."""
        return list(zip(self.read.examples.keys, self.read.examples.texts, strict=True))

    def report(self) -> str:
        """How the files were taken, and what became of their rows."""
        lines = [f"{self.path}: {self.read.num_rows:,} rows, taken as {self.guess.form}"]
        lines += [f"  {key}: {value!r}" for key, value in self.guess.mapping.items()]
        dropped = sum(self.read.dropped.values(), Counter[str]())
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in dropped.most_common())
        lines.append(f"  {len(self.read.examples):,} examples" + (f"; dropped rows: {reasons}" if reasons else ""))
        if self.read.unmapped:
            columns = ", ".join(f"{column} ({number:,} rows)" for column, number in self.read.unmapped.items())
            lines.append(f"  columns that hold text and are not used: {columns}")
        return "\n".join(lines)


def read_input(name: str, path: str, given: "Given", column_names: list[str] | None = None) -> Input:
    """Read the files behind one argument, by the mapping that is guessed from the first of them.

    Raises:
        UserError: There is no file, one is not what its suffix says, its columns are not clear, or no row is usable.
    """
    from forgetting.corpus.configuration import Source
    from forgetting.corpus.files import is_local_data, local_files, read_rows
    from forgetting.corpus.guess import guess_mapping
    from forgetting.corpus.sources import SourceCache, read_source, resolve_source

    files = local_files(Source(path, name=name)) if is_local_data(path) else None
    if files is None:
        raise UserError(
            f"There is no file or folder {path} (from {Path.cwd()}). `new` looks at local files; for a data set on the "
            "hub write its source into an experiment, as docs/corpus.md says."
        )
    columns, rows = read_rows(Source(path, name=name, column_names=column_names), files[0])
    guess = guess_mapping(columns, list(islice(rows, ROWS_TO_GUESS_FROM)), given, str(files[0]))
    source = Source(path, name=name, column_names=column_names, **guess.mapping)  # pyright: ignore[reportArgumentType]
    source.check()
    read = read_source(resolve_source(source, SourceCache(Path("corpora/.sources.json"))), 0)
    return Input(name, path, column_names, guess, read)


def _typed(template: str | None) -> str | None:
    r"""A template as it was typed: a shell hands `\n` on as two characters."""
    return None if template is None else template.replace("\\n", "\n").replace("\\t", "\t")


def _named(paths: list[str]) -> dict[str, str]:
    """Each path under a name of its own."""
    named: dict[str, str] = {}
    for path in paths:
        name = stem = _stem(path)
        number = 1
        while name in named:
            number += 1
            name = f"{stem}-{number}"
        named[name] = path
    return named


def _stem(path: str) -> str:
    """A name for a file, a folder or a pattern: its last part that has letters, without suffixes."""
    stems = (re.sub(r"[^\w-]+", "-", part.split(".")[0]).strip("-_") for part in reversed(Path(path).parts))
    return next((stem for stem in stems if stem), "mine")


def _folder(given: str | None, first: str) -> Path:
    """The folder to write.

    Raises:
        UserError: Its name is none, or it is there already.
    """
    name = _stem(first) if given is None else given
    if not all(re.fullmatch(r"\w[\w.-]*", part) for part in name.split("/")):
        raise UserError(
            f"--folder is {name!r}; a name below {EXPERIMENTS}/ was expected, of letters, digits, '_', '-' and '.', "
            "such as mine or team/mine."
        )
    folder = Path(EXPERIMENTS) / name
    if folder.exists():
        raise UserError(
            f"{folder} is already there, and nothing is overwritten. Give another name with --folder, or remove it."
        )
    return folder


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        prog="python -m forgetting new",
        description="Look at files of examples, show how they are taken, and write experiments and a study over them.",
    )
    add = parser.add_argument
    add("files", type=str, nargs="+", help="JSON, JSON Lines, CSV, TSV or Parquet files, folders or patterns of them")
    add("--model", type=str | None, help="base model: a folder, or a name on the hub")
    add("--folder", type=str | None, help=f"name of the folder below {EXPERIMENTS}/ (default: the first file's name)")
    add("--prompt", type=str | None, help=r'template of prompts, such as "{title}\n{text}" (default: guessed)')
    add("--response", type=str | None, help='template of responses, such as "{answer}" (default: guessed)')
    add("--messages", type=str | None, help="column of whole conversations (default: guessed)")
    add("--column-names", type=str, nargs="+", help="columns of CSV and TSV files without a header")
    return parser
