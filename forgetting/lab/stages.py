"""Progress of a long sequence of stages, with everything that the stages print kept in a file."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Stages:
    """Shows how far a sequence of stages is: a bar on a terminal, else a line a stage.

    Args:
        total: How many stages there are.
        console: Where to show it.
    """

    def __init__(self, total: int, console: Console) -> None:
        self.total = total
        self.done = 0
        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._whole = self._progress.add_task("", total=total)
        self._part: TaskID | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """While the stages run."""
        with self._progress:
            yield

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One stage."""
        self._progress.update(self._whole, description=name)
        start = time.perf_counter()
        yield
        self.done += 1
        self._progress.update(self._whole, completed=self.done)
        if self._part is not None:
            self._progress.remove_task(self._part)
            self._part = None
        if not self.console.is_terminal:
            seconds = time.perf_counter() - start
            self.console.print(f"[{self.done}/{self.total}] {name}, {seconds:.1f} s", markup=False, highlight=False)

    def step(self, done: int, total: int) -> None:
        """A step inside the present stage: a second bar on a terminal, else a line every quarter."""
        if self._part is None:
            self._part = self._progress.add_task("  steps", total=total)
        self._progress.update(self._part, completed=done)
        if not self.console.is_terminal and done < total and done % max(total // 4, 1) == 0:
            self.console.print(f"  step {done} of {total}", markup=False, highlight=False)


@contextlib.contextmanager
def output_in_file(path: Path) -> Iterator[None]:
    """Send what is printed, logged by Lightning or warned about inside to the end of a file; hide the libraries' bars.

    Args:
        path: Of the file.
    """
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
