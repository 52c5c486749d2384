"""Typed configuration of a corpus (`data.corpus` in an experiment's YAML)."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

from forgetting.corpus.values import is_unicode
from forgetting.errors import UserError

Format = Literal["json", "jsonl", "csv", "tsv", "parquet"]
SPLITS = ("train", "reference", "validation")
PIECE = re.compile(r"\{\{|\}\}|\{(?P<column>[^{}]+)\}|\{\}|[{}]|[^{}]+")
"""A piece of a template: a literal brace, a column in braces, a brace that is neither, or text."""

MOST_SHOWN = 20
"""Columns that an error lists."""


def template_columns(template: str) -> list[tuple[str, str | None]]:
    """Cut a template such as `"{instruction}: {input}"` into (literal text, column) pairs; `{{` and `}}` are literal.

    What stands in braces is a column's name as it is, whatever characters it holds: `{Question: long}` is the column of
    that name. There are no format codes, conversions or attributes, so that a template can do nothing but insert text.

    Raises:
        UserError: A brace is left alone, or a name is empty.
    """
    parts: list[tuple[str, str | None]] = []
    literal = ""
    for piece in PIECE.finditer(template):
        text, column = piece[0], piece["column"]
        if text in ("{{", "}}"):
            literal += text[0]
        elif text in ("{", "}", "{}"):
            raise UserError(
                f"The template {template!r} is not valid: {text!r} names no column. It may hold column names in braces "
                "and nothing else, such as {instruction}. Write a literal brace as {{ or }}."
            )
        elif column is not None:
            parts.append((literal, column))
            literal = ""
        else:
            literal += text
    return [*parts, (literal, None)] if literal else parts


def columns_of(template: str) -> list[str]:
    """The columns a template names, in order."""
    return [column for _, column in template_columns(template) if column is not None]


def shown_columns(columns: list[str]) -> str:
    """Names of columns for an error, the first twenty of them."""
    more = f" and {len(columns) - MOST_SHOWN:,} more" if len(columns) > MOST_SHOWN else ""
    return (", ".join(map(repr, columns[:MOST_SHOWN])) or "none") + more


@dataclass
class Source:
    r"""One data set and the mapping of its rows to examples.

    Exactly one mapping is given: `prompt` with `response`, or `messages`, or `conversations`, or `tree`.

    Args:
        path: A file, a folder, a glob pattern, a list of these, or a data set's id on the hub.
        config: Subset of a hub data set (the `name` of `load_dataset`).
        split: Split of a hub data set.
        revision: Branch, tag or commit of a hub data set. A full commit pins it; what was read is recorded either way.
        format: Format of local files. By default it follows from the suffix: .json, .jsonl, .csv, .tsv or .parquet;
            all but Parquet also with .gz.
        column_names: Names of the columns of a CSV or TSV file that has no header row.
        quoted: Whether fields of a CSV or TSV file may stand in double quotes. By default yes for CSV, no for TSV.
        unescape: Turn a literal backslash-n in CSV and TSV fields into a newline (and backslash-t into a tab),
            as Flan's chain-of-thought files need.
        prompt: Template of the user's message over columns, such as "{instruction}\n\n{input}".
        prompt_without_input: Template used instead for rows in which a column that only `prompt` names is empty,
            such as "{instruction}".
        response: Template of the assistant's message, such as "{output}".
        system: Template of the system message; left out where it comes out empty.
        history: Column with the turns before the prompt, as a list of [prompt, response] pairs, such as history.
        messages: Column with a list of {role, content}, the roles being system, user and assistant. Also JSON text of
            it, a list of texts (user and assistant in turn, as LIMA has it), and contents in parts of text.
        conversations: Column with a list of {from, value}, as WizardLM and ShareGPT have it: human, gpt, system.
        tree: Open Assistant: the column with a message tree ("prompt" in its `.trees.jsonl`), or "parent_id" where
            every row is one message (its hub data set).
        top_replies: How many of the best-ranked assistant replies to follow at each turn of a tree; null for all.
        languages: Keep only messages of a tree in these languages, such as [en]; null for all.
        noise: Column with the noise that is known in the response, as a list of [start, end, kind]: characters of the
            text that `response` makes, or of the last message. Nothing is trained on it; it shows what a score finds.
        source_column: Column that names each row's own source, as in a mixture's `dataset`; tables then count by it.
        unused_columns: Columns that are left out on purpose. `prepare` names the others that hold text and that no
            mapping names; a filled column `history` or `system` next to prompt and response is otherwise refused.
        size: Draw this many examples, uniformly, by the corpus's seed and the source's name; null for all.
        name: The name in tables and manifests; by default its key in `sources`, or the split it is published as.
    """

    path: str | list[str]
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    format: Format | None = None
    column_names: list[str] | None = None
    quoted: bool | None = None
    unescape: bool = False
    prompt: str | None = None
    prompt_without_input: str | None = None
    response: str | None = None
    system: str | None = None
    history: str | None = None
    messages: str | None = None
    conversations: str | None = None
    tree: str | None = None
    top_replies: int | None = 1
    languages: list[str] | None = None
    noise: str | None = None
    source_column: str | None = None
    unused_columns: list[str] = field(default_factory=list)
    size: int | None = None
    name: str = ""

    def columns(self) -> list[str]:
        """The columns that the mapping names, in no particular order."""
        named = [
            getattr(self, key) for key in ("messages", "conversations", "tree", "source_column", "history", "noise")
        ]
        templates = (self.prompt, self.prompt_without_input, self.response, self.system)
        named += [column for template in templates if template is not None for column in columns_of(template)]
        return [column for column in named if column is not None]

    def check(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            UserError: Naming the source, what was found and what is expected.
        """
        where = f"Source {self.name!r}"
        if not self.name.strip():
            raise UserError("A source has an empty name; give it the one its row in the tables shall have.")
        if not self.name.isprintable():
            raise UserError(f"{where}: the name holds a control character, which would break the tables. Leave it out.")
        if not is_unicode(json.dumps(asdict(self), ensure_ascii=False)):
            raise UserError(f"{where}: its configuration holds half of a surrogate pair, which is no valid Unicode.")
        if not self.path or (isinstance(self.path, list) and not all(self.path)):
            raise UserError(f"{where}: the path is empty; give a file, a folder, a glob pattern or a hub id.")
        by_template = self.prompt is not None or self.response is not None
        given = [key for key in ("messages", "conversations", "tree") if getattr(self, key) is not None]
        if len(given) + by_template != 1:
            mappings = [*(["prompt/response"] if by_template else []), *given]
            raise UserError(
                f"{where}: found {' and '.join(mappings) or 'no mapping'}, expected exactly one of prompt with "
                "response, messages, conversations, tree."
            )
        if by_template and (self.prompt is None or self.response is None):
            missing = "prompt" if self.prompt is None else "response"
            raise UserError(f"{where}: {missing} is missing; prompt and response go together.")
        template_only = [key for key in ("prompt_without_input", "system", "history") if getattr(self, key) is not None]
        if not by_template and template_only:
            raise UserError(f"{where}: {template_only[0]} belongs to prompt and response only.")
        if self.noise is not None and self.tree is not None:
            raise UserError(f"{where}: noise is known of a row's one response; a tree has several.")
        for key in ("prompt", "response", "prompt_without_input", "system"):
            template = getattr(self, key)
            if template is not None and not columns_of(template) and key in ("prompt", "response"):
                raise UserError(
                    f"{where}: {key} {template!r} names no column; write one in braces, such as {{output}}."
                )
        if self.prompt_without_input is not None and self.prompt is not None:
            shorter, longer = set(columns_of(self.prompt_without_input)), set(columns_of(self.prompt))
            if not shorter < longer:
                raise UserError(
                    f"{where}: prompt_without_input {self.prompt_without_input!r} must name fewer columns than "
                    f"prompt {self.prompt!r}: it is used where one of the others is empty."
                )
        if self.languages is not None and self.tree is None:
            raise UserError(f"{where}: languages belongs to tree only.")
        for key in ("size", "top_replies"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"{where}: {key} is {value}; expected at least 1, or null for all.")


@dataclass
class CorpusConfig:
    """Sources that D_train, D_ref and D_val are drawn from, or their published splits.

    Args:
        sources: The pool: each source under the name that it has in tables and manifests, such as "Stanford Alpaca",
            in the order in which the first of several duplicates is kept.
        num_train: Examples in D_train.
        num_reference: Examples in D_ref, on which the reference model is fine-tuned.
        num_validation: Examples in D_val, whose nll `fit` and `validate` report.
        seed: The corpus's seed: it decides every draw, and nothing else does.
        deduplicate_reference: False leaves duplicates in D_ref (the paper's Table 6); D_train and D_val stay the same.
        train: A published D_train, taken as it is instead of drawn.
        reference: A published D_ref.
        validation: A published D_val.
    """

    sources: dict[str, Source] = field(default_factory=dict)
    num_train: int = 50_000
    num_reference: int = 10_000
    num_validation: int = 1_000
    seed: int = 0
    deduplicate_reference: bool = True
    train: Source | None = None
    reference: Source | None = None
    validation: Source | None = None

    def __post_init__(self) -> None:
        for name, source in {**self.sources, **self.published()}.items():
            source.name = source.name or name

    def published(self) -> dict[str, Source]:
        """The splits that are named instead of drawn."""
        return {split: source for split in SPLITS if (source := getattr(self, split)) is not None}

    def drawn(self) -> dict[str, int]:
        """The splits that are drawn from the pool, with their sizes."""
        return {split: getattr(self, f"num_{split}") for split in SPLITS if getattr(self, split) is None}

    def all_sources(self) -> Iterator[Source]:
        """The pool's sources, then the published splits."""
        yield from self.sources.values()
        yield from self.published().values()

    def check(self) -> None:
        """Refuse a corpus that cannot be made.

        Raises:
            UserError: With what was found and what is expected.
        """
        for split, least in (("train", 1), ("reference", 0), ("validation", 0)):
            number = getattr(self, f"num_{split}")
            if number < least:
                raise UserError(f"data.corpus.num_{split} is {number}; expected at least {least}.")
        if self.seed < 0:
            raise UserError(f"data.corpus.seed is {self.seed}; expected 0 or more.")
        for source in self.all_sources():
            source.check()
        names = [source.name for source in self.sources.values()]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"data.corpus.sources: the name {repeated[0]!r} is given twice; names must differ.")
        wanted = [split for split, number in self.drawn().items() if number > 0]
        if not self.sources and wanted:
            raise UserError(
                f"data.corpus.sources is empty, but {', '.join(wanted)} must be drawn from it. Give sources, or name "
                f"the published split (data.corpus.{wanted[0]}), or set data.corpus.num_{wanted[0]} to 0."
            )
