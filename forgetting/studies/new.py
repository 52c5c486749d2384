"""The command `new`: a user's files of examples → experiments on them, and the study that compares these.

It reads the files, prints how their rows become messages and one example, and writes a folder of short YAML files.
Nothing is written before everything has been read.
"""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from forgetting.arguments import command_parser, parse
from forgetting.artifacts import complete_folder
from forgetting.errors import UserError
from forgetting.paths import EXPERIMENTS

if TYPE_CHECKING:
    from forgetting.corpus.guess import Given
    from forgetting.corpus.sources import LoadedSource

ROWS_TO_GUESS_FROM = 1000
FEWEST = 10
"""Distinct examples below which no corpus is drawn."""


def new_command(arguments: list[str]) -> None:
    """Print how files become examples, and write experiments on them and their study."""
    options = parse(_parser(), arguments)
    if not options.model:
        raise UserError("new needs a base model: --model FOLDER, or --model NAME of one on the hub.")
    folder = _folder(options.folder, options.files[0])
    from forgetting.corpus.guess import Given
    from forgetting.corpus.values import visible
    from forgetting.studies.new_files import Setup, files_of
    from forgetting.studies.new_preview import preview_of

    given = Given(_typed(options.prompt), _typed(options.response), options.messages)
    inputs = [_read_input(name, path, given, options.column_names) for name, path in _named(options.files).items()]
    for each in inputs:
        print(visible(each.report()))
    texts = {key: text for each in inputs for key, text in each.distinct()}
    if len(texts) < FEWEST:
        raise UserError(
            f"There are {len(texts)} distinct examples; at least {FEWEST} were expected, as some train the reference "
            "and some are held out. Give more files."
        )
    preview = preview_of(options.model, list(texts.values()))
    setup = Setup(options.model, folder, {each.name: each.source for each in inputs}, len(texts), preview.max_length)
    print(f"{setup.sizes()}\n\n{preview.report()}\n")
    with complete_folder(folder, named_by_content=False) as temporary:
        for name, content in files_of(setup).items():
            (temporary / name).write_text(content, encoding="utf-8")
    print(setup.ending())


@dataclass(frozen=True)
class Input:
    """The files behind one argument: a source of the corpus.

    Attributes:
        name: Of the source.
        form: How its rows become messages, for a reader.
        source: The source as an experiment's YAML has it.
        loaded: Its examples.
    """

    name: str
    form: str
    source: dict[str, Any]
    loaded: "LoadedSource"

    def distinct(self) -> list[tuple[bytes, str]]:
        """Key and JSON of its examples."""
        return list(zip(self.loaded.examples.keys, self.loaded.examples.texts, strict=True))

    def report(self) -> str:
        """The mapping of the rows, and the counts of examples, dropped rows and columns that are not used."""
        lines = [f"{self.source['path']}: {self.loaded.num_rows:,} rows, read as {self.form}"]
        lines += [f"  {key}: {value!r}" for key, value in self.source.items() if key != "path"]
        dropped = sum(self.loaded.dropped.values(), Counter[str]())
        reasons = ", ".join(f"{reason} ({number:,})" for reason, number in dropped.most_common())
        lines.append(f"  {len(self.loaded.examples):,} examples" + (f"; dropped rows: {reasons}" if reasons else ""))
        if self.loaded.unmapped:
            columns = ", ".join(f"{column} ({number:,} rows)" for column, number in self.loaded.unmapped.items())
            lines.append(f"  not in the corpus, as no mapping names them: {columns}")
        return "\n".join(lines)


def _read_input(name: str, path: str, given: "Given", column_names: list[str] | None) -> Input:
    """Read the files behind one argument, by the mapping that is guessed from the first of them.

    Raises:
        UserError: There is no file, one is not what its suffix says, its columns are not clear, or no row is usable.
    """
    from forgetting.corpus.configuration import Source
    from forgetting.corpus.files import local_files, read_rows
    from forgetting.corpus.guess import guess_mapping
    from forgetting.corpus.sources import SourceCache, read_source, resolve_source

    options: dict[str, Any] = {"path": path} if column_names is None else {"path": path, "column_names": column_names}
    raw = Source(**options, name=name)
    files = local_files(raw)
    if files is None:
        raise UserError(
            f"There is no file or folder {path} (from {Path.cwd()}). `new` reads local files; for a data set on the "
            "hub write its source into an experiment, as docs/corpus.md says."
        )
    columns, rows = read_rows(raw, files[0])
    guess = guess_mapping(columns, list(islice(rows, ROWS_TO_GUESS_FROM)), given, str(files[0]))
    options |= guess.mapping
    source = Source(**options, name=name)
    source.check()
    loaded = read_source(resolve_source(source, SourceCache(Path("corpora/.sources.json"))), 0)
    return Input(name, guess.form, options, loaded)


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
        UserError: Its name is not valid, or it exists.
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
            f"{folder} exists already, and nothing is overwritten. Give another name with --folder, or remove it."
        )
    return folder


def _parser() -> ArgumentParser:
    parser = command_parser(
        "new",
        "Print how files become examples, and write experiments on them and the study that compares these.",
        (
            "new my.jsonl --model meta-llama/Llama-3.2-1B",
            "new a.csv --model ./m --prompt {title} --response {reply}",
        ),
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
