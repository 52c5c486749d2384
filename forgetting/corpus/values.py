"""Single values of a row: which are nothing, and which are text that can be written."""

from typing import Any


def is_blank(value: Any) -> bool:
    """Whether a column's value is null or nothing but whitespace."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def is_unicode(text: str) -> bool:
    """Whether a text is valid Unicode: JSON can hold half of a surrogate pair, which no file can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
