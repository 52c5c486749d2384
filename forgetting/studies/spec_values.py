"""Values of a study's YAML, each of the kind that is expected, or one message that names the place."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from forgetting.errors import UserError
from forgetting.studies.spec import Value

MOST_DECIMALS = 10


def text(value: Any, place: str) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: text was expected, not {kind(value)}.")
    return value


def texts(value: Any, place: str) -> tuple[str, ...]:
    """A list of texts."""
    return tuple(text(item, place) for item in items(value, place))


def items(value: Any, place: str) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise UserError(f"{place}: a list was expected, not {kind(value)}.")
    return value


def mapping(value: Any, place: str, purpose: str) -> dict[str, Any]:
    """A mapping with text as its keys."""
    if not isinstance(value, dict):
        raise UserError(f"{place}: a mapping {purpose} was expected, not {kind(value)}.")
    return {text(key, place): item for key, item in value.items()}


def pair(value: Any, place: str) -> tuple[str, str]:
    """Names of two rows."""
    names = texts(value, place)
    if len(names) != 2:
        raise UserError(f"{place}: two names of rows were expected, not {len(names)}.")
    return names[0], names[1]


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
    """Seeds of runs: `3` is 0, 1 and 2; a list, or text such as `0,5,7`, names them.

    Args:
        value: Of a study or of the command line.
        place: Named in the message.

    Raises:
        UserError: It is neither a number of at least 1 nor a list of whole numbers.
    """
    listed = isinstance(value, (list, tuple)) or "," in str(value)
    words = [str(word).strip() for word in (value if isinstance(value, (list, tuple)) else str(value).split(","))]
    words = [word for word in words if word]
    single = not listed
    if not words or not all(re.fullmatch(r"[0-9]+", word) for word in words) or (single and int(words[0]) == 0):
        raise UserError(f"{place}={value}: a number of seeds, at least 1, or a list such as 0,5,7 is expected.")
    numbers = [int(word) for word in words]
    return tuple(range(numbers[0])) if single else tuple(dict.fromkeys(numbers))


def mean_and_sd(value: Any, place: str) -> Value:
    """`44.83±0.45`, or a number without a standard deviation."""
    digits = r"\d+(?:\.\d*)?|\.\d+"
    match = re.fullmatch(rf"(-?(?:{digits}))(?:\s*±\s*({digits}))?", str(value)) if not _is_container(value) else None
    if match is None:
        raise UserError(f"{place}: {kind(value)} is not a number nor mean±sd.")
    return Value(float(match[1]), None if match[2] is None else float(match[2]))


def optional(content: dict[str, Any], key: str, read: Callable[[Any, str], Any], place: str) -> Any:
    """The value of a key that may be absent; None then."""
    return read(content[key], f"{place}, {key}") if key in content else None


def check_keys(content: Any, required: set[str], known: set[str], place: str) -> None:
    """Refuse what is no mapping, lacks a key or has one that is unknown."""
    if not isinstance(content, dict):
        raise UserError(f"{place} is not a mapping.")
    if missing := required - set(content):
        raise UserError(f"{place} lacks {', '.join(sorted(missing))}.")
    if unknown := {str(key) for key in content if key not in known}:
        raise UserError(f"{place} has unknown keys {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}.")


def refuse_twice(names: Iterable[str], what: str) -> None:
    """Refuse a name that two parts of a study have."""
    if twice := [(name, times) for name, times in Counter(names).items() if times > 1]:
        name, times = twice[0]
        raise UserError(f"{what} {name!r} is there {times} times: what names it would be ambiguous.")


def kind(value: Any) -> str:
    """A value in a message, a large one by its kind alone."""
    if _is_container(value):
        return "a list" if isinstance(value, list) else "a mapping"
    return "nothing" if value is None else repr(value)[:80]


def _is_container(value: Any) -> bool:
    return isinstance(value, (list, dict))
