"""Columns of a file → the mapping that its rows most likely have, or an error that says what to write."""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from forgetting.corpus.configuration import MOST_SHOWN, columns_of
from forgetting.corpus.messages import INSERTED, DroppedRow, Row, normalized, validated
from forgetting.corpus.trees import FLAT_COLUMNS
from forgetting.corpus.values import is_blank, visible
from forgetting.errors import UserError

PROMPTS = (
    "instruction", "instructions", "prompt", "question", "query", "request", "problem", "input", "user", "human",
    "q", "src", "frage", "pregunta", "pergunta", "domanda", "指令", "问题",
)  # fmt: skip
"""Words of a column of prompts, the more telling ones first."""

RESPONSES = (
    "output", "response", "completion", "answer", "answers", "reply", "target", "assistant", "solution", "chosen",
    "bot", "gpt", "a", "tgt", "antwort", "respuesta", "resposta", "risposta", "réponse", "reponse",
    "输出", "回答", "答案",
)  # fmt: skip
"""Words of a column of responses, the more telling ones first."""

WORDS = {"prompt": PROMPTS, "response": RESPONSES}

CONTEXTS = ("input", "context", "passage", "document")
"""Names of a column that a prompt may come with."""

TURNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
"""Names of a column with whole conversations. A list of plain texts is one only under such a name."""

SYSTEMS = (("system",), ("system", "prompt"), ("system", "message"))

ABOUT_ROWS = frozenset(
    {"id", "ids", "idx", "index", "type", "category", "lang", "language", "date", "time", "timestamp", "url", "length",
     "len", "count", "num", "score", "rating", "hash", "tokens", "model", "name"}
)  # fmt: skip
"""Words that end the name of a column which says something about a row, such as question_id."""

KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}
SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Given:
    """What the user says of the mapping: templates, or the column of messages. None is guessed."""

    prompt: str | None = None
    response: str | None = None
    messages: str | None = None

    def __post_init__(self) -> None:
        if self.messages is not None and (self.prompt is not None or self.response is not None):
            raise UserError("--messages names whole conversations: leave --prompt and --response out.")


@dataclass(frozen=True)
class Guess:
    """A mapping of rows to messages.

    Attributes:
        form: What the rows are, for a reader.
        mapping: The keys of a `Source` that say it.
    """

    form: str
    mapping: dict[str, str]


def guess_mapping(columns: Sequence[str], rows: Sequence[Row], given: Given, where: str) -> Guess:
    """Guess how the rows of a file become messages.

    Names decide among columns whose values fit. What the user gave is taken as it is.

    Args:
        columns: Of the file, in their order.
        rows: Its first rows.
        given: What the user said.
        where: The file, for messages.

    Raises:
        UserError: No columns, or several equally well, look like prompts and responses. The message lists the columns
            with a value of each and proposes the option to write.
    """
    values = {name: [row[name] for row in rows if not is_blank(row[name])] for name in columns}
    if given.messages is not None:
        turns = values.get(given.messages, [])
        key = next((key for key in KEYS if _are_turns(turns, key, any_texts=True)), "messages")
        return Guess(f"conversations in {given.messages!r}", {key: given.messages})
    if given.prompt is None and given.response is None:
        if (tree := _tree(values)) is not None:
            return Guess("Open Assistant's message trees", {"tree": tree})
        if (turns := _turns(values, where)) is not None:
            return turns
    return _templates(values, given, where)


# --- conversations ---------------------------------------------------------------------------------------------------


def _tree(values: dict[str, list[Any]]) -> str | None:
    if set(FLAT_COLUMNS) <= values.keys():
        return "parent_id"
    trees = values.get("prompt", [])
    return "prompt" if trees and all(isinstance(tree, dict) and "replies" in tree for tree in trees) else None


def _turns(values: dict[str, list[Any]], where: str) -> Guess | None:
    found = {
        name: key
        for name, filled in values.items()
        for key in reversed(KEYS)  # {role, content} where a list of texts fits both
        if _are_turns(filled, key, any_texts=name.lower() in TURNS)
    }
    named = sorted((name for name in found if name.lower() in TURNS), key=lambda name: TURNS.index(name.lower()))
    if len(found) > 1 and not named:
        raise _unclear(f"{where} has several columns of conversations", values, f"--messages {next(iter(found))}")
    name = next(iter([*named, *found]), None)
    if name is None:
        return None
    return Guess(f"conversations ({', '.join(KEYS[found[name]])})", {found[name]: name})


def _are_turns(filled: list[Any], key: str, any_texts: bool) -> bool:
    """Whether at least half of the values are conversations."""
    return sum(_flaw(value, key, any_texts) is None for value in filled) * 2 >= max(len(filled), 1)


def _flaw(value: Any, key: str, any_texts: bool) -> str | None:
    """The reason why a value is no conversation with a question and an answer; None for one."""
    if isinstance(value, INSERTED) and not (isinstance(value, str) and value.lstrip().startswith(("[", "{"))):
        return "text"
    if isinstance(value, list) and not any_texts and all(isinstance(turn, str) for turn in value):
        return "a list of texts"
    try:
        roles = {message["role"] for message in validated(normalized(value, *KEYS[key]))}
    except DroppedRow as reason:
        return str(reason)
    return None if "user" in roles else "no user turn"


# --- prompt and response ---------------------------------------------------------------------------------------------


def _templates(values: dict[str, list[Any]], given: Given, where: str) -> Guess:
    templates = {"prompt": given.prompt, "response": given.response}
    taken = {name for template in templates.values() if template is not None for name in columns_of(template)}
    free = {name: filled for name, filled in values.items() if name not in taken and not set(name) & set("{}")}
    texts = [name for name, filled in free.items() if filled and all(isinstance(value, INSERTED) for value in filled)]
    parts = [part for part, template in templates.items() if template is None]
    chosen = _chosen(parts, free, texts, where, values)
    mapping = {part: f"{{{chosen[part]}}}" if template is None else template for part, template in templates.items()}
    # Columns without a value in these rows may have one in later rows.
    others = [name for name, filled in free.items() if name not in chosen.values() and (name in texts or not filled)]
    context = next(filter(_is_context, others), None)
    if given.prompt is None and context is not None:
        prompt = mapping["prompt"]
        with_context = {"prompt": f"{prompt}\n\n{{{context}}}", "prompt_without_input": prompt}
        mapping = with_context | {"response": mapping["response"]}
    system = next((name for name in others if _words(name) in SYSTEMS), None)
    if system is not None:
        mapping["system"] = f"{{{system}}}"
    if "history" in values and all(isinstance(pairs, list) for pairs in values["history"]):
        mapping["history"] = "history"
    is_alpaca = chosen == {"prompt": "instruction", "response": "output"}
    return Guess("Alpaca (instruction, input, output)" if is_alpaca else "prompt and response", mapping)


def _chosen(
    parts: list[str], free: dict[str, list[Any]], texts: list[str], where: str, values: dict[str, list[Any]]
) -> dict[str, str]:
    """The column of each part, prompt or response, that the user did not give.

    Args:
        parts: Those that were not given.
        free: Values of the columns that no given template names.
        texts: Those of them that a template can insert.
        where: The file, for messages.
        values: Of all columns, for messages.

    Raises:
        UserError: There is none for a part, or there are several.
    """
    chosen: dict[str, str] = {}
    for part in parts:
        best = _best([name for name in texts if name not in chosen.values()], values, where, part)
        if best is not None:
            chosen[part] = best
    missing = [part for part in parts if part not in chosen]
    others = [name for name in texts if name not in chosen.values()]
    fit = [name for name in others if not (_is_about_rows(name) or _is_context(name) or _words(name) in SYSTEMS)]
    if len(missing) == len(fit) == 1:  # the other part is known, and one column of text is left
        is_elsewhere = any(_place(name, WORDS[missing[0]]) is not None for name in free if name not in texts)
        if not is_elsewhere:
            chosen[missing.pop()] = fit.pop()
    if missing:
        proposed = iter(sorted(fit, key=lambda name: all(str(value).strip().isdecimal() for value in values[name])))
        options = " ".join(f"--{part} {_template(next(proposed, 'COLUMN'))}" for part in missing)
        raise _unclear(f"{where} has no column that looks like the {' or the '.join(missing)}", values, options)
    return chosen


def _best(names: Iterable[str], values: dict[str, Any], where: str, part: str) -> str | None:
    """The column whose name says most clearly that it holds prompts (or responses).

    Raises:
        UserError: Two say it equally well.
    """
    ranked: dict[tuple[bool, int], list[str]] = {}
    for name in names:
        place = _place(name, WORDS[part])
        if place is not None:
            ranked.setdefault(place, []).append(name)
    if not ranked:
        return None
    best = ranked[min(ranked)]
    if len(best) > 1:
        raise _unclear(
            f"{where} has several columns that look like the {part}", values, f"--{part} {_template(best[0])}"
        )
    return best[0]


def _place(name: str, known: tuple[str, ...]) -> tuple[bool, int] | None:
    """How clearly a name is one of the known words, to sort by: a whole name before a part of one."""
    words = _words(name)
    places = [known.index(word) for word in words if word in known and (len(word) > 1 or len(words) == 1)]
    if not places or (len(words) > 1 and _is_about_rows(name)):
        return None
    return len(words) > 1, min(places)


def _words(name: str) -> tuple[str, ...]:
    """The words of a name in lower case: of userQuestion, user_question and "User question:" user and question."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return tuple(word.lower() for word in re.findall(r"[^\W_]+", parted))


def _is_context(name: str) -> bool:
    return name.strip().lower() in CONTEXTS


def _is_about_rows(name: str) -> bool:
    return bool(set(_words(name)[-1:]) & ABOUT_ROWS)


def _unclear(what: str, values: dict[str, list[Any]], options: str) -> UserError:
    lines = [f"  {_shortened(name)}: {_shown(filled)}" for name, filled in list(values.items())[:MOST_SHOWN]]
    if len(values) > MOST_SHOWN:
        lines.append(f"  ... and {len(values) - MOST_SHOWN:,} more")
    listed = "\n".join(lines)
    return UserError(
        f"{what}. The columns, each with a value:\n{listed}\nName what to read, such as: {options}\n"
        'A template may hold several columns ("{title}: {text}") of text or numbers. --messages names a column of '
        "whole conversations: lists of {role, content} or {from, value}, by system, user and assistant. If the first "
        "row of a CSV or TSV file was taken for its header, --column-names names the columns."
    )


def _shown(filled: list[Any]) -> str:
    """A value of a column and, where it is a list or an object, the reason why it is no conversation."""
    if not filled:
        return "(empty)"
    value = filled[0]
    flaws = [] if isinstance(value, INSERTED) else [_flaw(value, key, any_texts=True) for key in KEYS]
    if not flaws or None in flaws:
        return _shortened(repr(value))
    flaw = next((flaw for flaw in flaws if flaw != "malformed messages"), flaws[0])
    return f"{_shortened(repr(value))} (no conversation: {flaw})"


def _template(name: str) -> str:
    """A template of one column, as it is typed in a shell."""
    return shlex.quote(f"{{{name if len(name) <= SHOWN_CHARACTERS and name.isprintable() else 'COLUMN'}}}")


def _shortened(text: str) -> str:
    return visible(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}...").replace("\n", " ")
