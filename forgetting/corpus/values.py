"""Single values of a row: blank ones, and text that can be written and shown."""

from typing import Any


def is_blank(value: Any) -> bool:
    """Return whether a column's value is null or nothing but whitespace."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def is_unicode(text: str) -> bool:
    """Return whether a text is valid Unicode: JSON can hold half of a surrogate pair, which no file can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def visible(text: str) -> str:
    """Return a text without characters that would steer a terminal; line breaks and tabs stay."""
    return "".join(character if character.isprintable() or character in "\n\t" else "�" for character in text)


def holds_text(value: Any) -> bool:
    """Return whether there is text in a value, or anywhere in a list or an object."""
    stack = [value]
    while stack:
        inner = stack.pop()
        if isinstance(inner, dict):
            stack += inner.values()
        elif isinstance(inner, list):
            stack += inner
        elif isinstance(inner, str) and inner.strip():
            return True
    return False
