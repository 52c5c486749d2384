"""The command line in processes of their own: real ones, with real signals and ranks, but forked."""

import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

import forgetting.evaluation.evaluate
import forgetting.runs.trainer_cli  # noqa: F401 - what a fork is to find imported
from forgetting.cli import main

LAUNCHERS = ("SLURM_", "MASTER_", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE", "TORCHELASTIC", "GROUP_")
"""Beginnings of the variables by which a launcher says to a process which rank it is."""


class Forked:
    """The command line in a process of its own, forked from this one, which spares it seconds of imports.

    Args:
        arguments: Of the command line.
        folder: In which it runs.
        keep_output: Keep what it prints for `finish`, instead of printing it here.
        program: Another one than ours, which takes the arguments.
        **variables: Of its environment, in which there are none of a launcher but these.
    """

    def __init__(
        self, arguments: Sequence[str], folder: Path = Path(), keep_output: bool = False,
        program: Callable[[list[str]], object] = main, **variables: str,
    ) -> None:  # fmt: skip
        self._output = tempfile.TemporaryFile() if keep_output else None  # noqa: SIM115 - closed by finish
        self.pid = os.fork()
        if self.pid == 0:
            self._run(program, list(arguments), folder, variables)

    def _run(
        self, program: Callable[[list[str]], object], arguments: list[str], folder: Path, variables: dict[str, str]
    ) -> None:
        status = 70
        try:
            if self._output is not None:
                os.dup2(self._output.fileno(), 1)
                os.dup2(self._output.fileno(), 2)
                sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
            os.chdir(folder)
            for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
                del os.environ[name]
            os.environ.update(variables)
            rank_zero_only.rank = int(variables.get("LOCAL_RANK", variables.get("SLURM_PROCID", 0)))  # as on import
            program(arguments)
            status = 0
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:  # noqa: BLE001 - whatever it was, the parent's tests must not run on in this process
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def is_running(self) -> bool:
        """Whether it has not ended yet; its status stays to be taken."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def finish(self, timeout: float = 150) -> tuple[int, str]:
        """Its status, or minus the signal that ended it, and what it printed. It is killed when the time is over."""
        deadline = time.monotonic() + timeout
        while (ended := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"after {timeout} s:\n{self._printed()}")
            time.sleep(0.01)
        return os.waitstatus_to_exitcode(ended[1]), self._printed()

    def _printed(self) -> str:
        if self._output is None:
            return ""
        with self._output as output:
            output.seek(0)
            return output.read().decode()


def in_process(arguments: Sequence[str]) -> int:
    """Run the command line in a process of its own: its status, or minus the signal that ended it."""
    return Forked(arguments).finish(500)[0]


def free_port() -> str:
    """A port that nobody listens at."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return str(opened.getsockname()[1])


def on_ranks(arguments: Sequence[str], number: int = 2, folder: Path = Path()) -> list[tuple[int, str]]:
    """Run the command line on several ranks as a launcher would: status and output of each."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NODE_RANK": "0", "WORLD_SIZE": str(number)}
    started = [Forked(arguments, folder, True, **shared, LOCAL_RANK=str(rank)) for rank in range(number)]
    return finish(*started)


def finish(*started: Forked) -> list[tuple[int, str]]:
    """Status and output of each process; none may hang."""
    try:
        return [process.finish() for process in started]
    except TimeoutError:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        raise
