"""Progress of a long sequence of jobs, with everything that they print kept in files."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars


class Progress:
    """Shows how far a sequence of jobs is: a bar on a terminal, else a line per job."""

    def __init__(self, total: int, console: Console) -> None:
        self.total, self.console = total, console
        self.done = 0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Bars(*columns, console=console, disable=not console.is_terminal)
        self._whole = self._bars.add_task("", total=total)
        self._part: TaskID | None = None

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    @contextlib.contextmanager
    def job(self, name: str) -> Iterator[None]:
        """One job. Where it raises, the line says that it failed."""
        self._bars.update(self._whole, description=name)
        start, failed = time.perf_counter(), True
        try:
            yield
            failed = False
        finally:
            self.done += 1
            self._bars.update(self._whole, completed=self.done)
            if self._part is not None:
                self._bars.remove_task(self._part)
                self._part = None
            if not self.console.is_terminal or failed:
                seconds = time.perf_counter() - start
                self.say(f"[{self.done}/{self.total}] {name}, {'failed after ' * failed}{seconds:.1f} s")

    def step(self, done: int, total: int) -> None:
        """A step inside the present job: a second bar on a terminal, else a line every quarter."""
        if self._part is None:
            self._part = self._bars.add_task("  steps", total=total)
        self._bars.update(self._part, completed=done)
        if not self.console.is_terminal and done < total and done % max(total // 4, 1) == 0:
            self.say(f"  step {done} of {total}")

    def say(self, text: str) -> None:
        """A line of its own, as it stands."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def output_in_file(path: Path) -> Iterator[None]:
    """Send what is printed, logged by Lightning or warned about to the end of a file; hide the libraries' bars."""
    import datasets
    import lightning.pytorch  # noqa: F401 - now, since it gives its loggers their handlers when it is imported
    import transformers

    path.parent.mkdir(parents=True, exist_ok=True)
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "py.warnings")]
    with path.open("a", encoding="utf-8") as file:
        handler = logging.StreamHandler(file)
        before = [(logger.handlers, logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.handlers, logger.propagate = [handler], False
        logging.captureWarnings(True)
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()
        try:
            with contextlib.redirect_stdout(file):
                yield
        finally:
            datasets.enable_progress_bars()
            transformers.utils.logging.enable_progress_bar()
            logging.captureWarnings(False)
            for logger, (handlers, propagate) in zip(loggers, before, strict=True):
                logger.handlers, logger.propagate = handlers, propagate
