"""Progress of what takes long: a bar on a terminal, elsewhere a plain line every half minute."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS = 30.0
"""Between two lines, at least."""


class Clock:
    """When a line is due, and how long the rest takes."""

    def __init__(self) -> None:
        self._said = self._start = time.perf_counter()

    def is_due(self) -> bool:
        """Whether half a minute has gone by since the last line; if so, the next one is due half a minute from now."""
        now = time.perf_counter()
        due = now - self._said >= SECONDS
        self._said = now if due else self._said
        return due

    def left(self, done: int, total: int) -> str:
        """The time that is left, if the rest goes as what was done since the clock was started; empty before that."""
        if not done:
            return ""
        return f", about {duration((time.perf_counter() - self._start) / done * (total - done))} left"


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int], object]]:
    """Say how a loop goes on.

    Args:
        what: What is counted, such as "rows of chats.jsonl read".
        total: How many there are, where that is known.

    Yields:
        A function that takes how many more are done.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=what, total=total, leave=False, dynamic_ncols=True) as bar:
            yield bar.update
        return
    clock, done = Clock(), 0

    def advance(number: int) -> None:
        nonlocal done
        done += number
        if clock.is_due():
            of_all = "" if total is None else f" of {total:,}"
            print(f"{done:,}{of_all} {what}{'' if total is None else clock.left(done, total)}", flush=True)

    yield advance


def duration(seconds: float) -> str:
    """A time in the unit that suits it: `40 s`, `12 min`, `3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
