"""Values of a study's YAML, each of the kind that is expected, or one message that names the place."""

import math
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

from forgetting.errors import UserError
from forgetting.studies.spec import Value

MOST_DECIMALS = 10

Reader = Callable[[Any, str], Any]
"""Reads a value; the place is named in the message where it is of another kind than expected."""


def text(value: Any, place: str) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: text was expected, not {kind(value)}.")
    return value


def items(value: Any, place: str) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise UserError(f"{place}: a list was expected, not {kind(value)}.")
    return value


def listed(read: Reader) -> Reader:
    """A reader of a list whose items another one reads."""
    return lambda value, place: tuple(read(item, place) for item in items(value, place))


def numbered(read: Reader) -> Reader:
    """The same, where a message names the item by its number: `rows` has a `row 1`."""
    return lambda value, place: tuple(
        read(item, f"{place.removesuffix('s')} {n}") for n, item in enumerate(items(value, place), start=1)
    )


def mapping(value: Any, place: str, purpose: str) -> dict[str, Any]:
    """A mapping with text as its keys."""
    if not isinstance(value, dict):
        raise UserError(f"{place}: a mapping {purpose} was expected, not {kind(value)}.")
    return {text(key, place): item for key, item in value.items()}


def pair(value: Any, place: str) -> tuple[str, str]:
    """Names of two rows."""
    names = listed(text)(value, place)
    if len(names) != 2:
        raise UserError(f"{place}: two names of rows were expected, not {len(names)}.")
    return names


def number(value: Any, place: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{place}: a number was expected, not {kind(value)}.")
    return float(value)


def decimals(value: Any, place: str) -> int:
    """Digits after the point."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_DECIMALS:
        raise UserError(f"{place}: a whole number from 0 to {MOST_DECIMALS} was expected, not {kind(value)}.")
    return value


def seeds(value: Any, place: str) -> tuple[int, ...]:
    """Seeds of runs: `3` is 0, 1 and 2; a list, or text such as `0,5,7`, names them."""
    is_list = isinstance(value, (list, tuple))
    is_single = not is_list and "," not in str(value)
    words = [str(word).strip() for word in (value if is_list else str(value).split(","))]
    words = [word for word in words if word]
    if not words or not all(re.fullmatch(r"[0-9]+", word) for word in words) or (is_single and int(words[0]) == 0):
        raise UserError(f"{place}={value}: a number of seeds, at least 1, or a list such as 0,5,7 is expected.")
    numbers = [int(word) for word in words]
    return tuple(range(numbers[0])) if is_single else tuple(dict.fromkeys(numbers))


def mean_and_sd(value: Any, place: str) -> Value:
    """`44.83±0.45`, or a number without a standard deviation."""
    digits = r"\d+(?:\.\d*)?|\.\d+"
    match = None
    if not isinstance(value, (list, dict)):
        match = re.fullmatch(rf"(-?(?:{digits}))(?:\s*±\s*({digits}))?", str(value))
    if match is None:
        raise UserError(f"{place}: {kind(value)} is not a number nor mean±sd.")
    return Value(float(match[1]), None if match[2] is None else float(match[2]))


def build(part: Any, content: Any, place: str, readers: dict[str, Reader] | None = None, **given: Any) -> Any:
    """Make a dataclass from a mapping: its fields are the known keys, those without a default are required.

    Args:
        part: The dataclass.
        content: The mapping. What it holds is read in the order of the fields.
        place: Named in messages.
        readers: By field; of the others text is expected.
        given: Fields that are not in the mapping.
    """
    own = [field for field in fields(part) if field.name not in given]
    required = {field.name for field in own if field.default is MISSING and field.default_factory is MISSING}
    check_keys(content, required, {field.name for field in own}, place)
    values = {}
    for name in (field.name for field in own if field.name in content):
        read = (readers or {}).get(name, text)
        values[name] = read(content[name], f"{place}, {name}")
    return part(**given, **values)


def check_keys(content: Any, required: set[str], known: set[str], place: str) -> None:
    """Refuse what is no mapping, lacks a key or has one that is unknown."""
    if not isinstance(content, dict):
        raise UserError(f"{place} is not a mapping.")
    if missing := required - set(content):
        raise UserError(f"{place} lacks {', '.join(sorted(missing))}.")
    if unknown := {str(key) for key in content if key not in known}:
        raise UserError(f"{place} has unknown keys {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}.")


def kind(value: Any) -> str:
    """A value in a message, a large one by its kind alone."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a mapping"
    return "nothing" if value is None else repr(value)[:80]
