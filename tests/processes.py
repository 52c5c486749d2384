"""The command line in processes of their own: real ones, with real signals and ranks, but forked.

They are forked from a process that has imported what they need and has computed nothing. A process that ran tests has
threads of torch's by then, and what is forked from such a one may crash: a rank once did, with `double free`.
"""

import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from forgetting.cli import main

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["forgetting.cli", "forgetting.runs.trainer_cli", "forgetting.evaluation.evaluate"])

LAUNCHERS = ("SLURM_", "MASTER_", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE", "TORCHELASTIC", "GROUP_")
"""Beginnings of the variables by which a launcher says to a process which rank it is."""


class Forked:
    """The command line in a process of its own, forked from one that has imported it, which spares seconds.

    Args:
        arguments: Of the command line.
        folder: In which it runs.
        program: Another one than ours, which takes the arguments: a function of a module.
        variables: Of its environment, in which there are none of a launcher but these.
    """

    def __init__(
        self, arguments: Sequence[str], folder: Path = Path(),
        program: Callable[[list[str]], object] = main, variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        number, name = tempfile.mkstemp(prefix="printed-")
        os.close(number)
        self._output = Path(name)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
        settings = (program, list(arguments), folder.absolute(), {**kept, **variables}, self._output)
        self._process = SERVER.Process(target=_run, args=(list(warnings.filters), *settings))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self._process.kill()

    def finish(self, timeout: float = 150) -> tuple[int, str]:
        """Its status, or minus the signal that ended it, and what it printed. It is killed when the time is over."""
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            self.kill()
            self._process.join()
        printed = self._output.read_text(encoding="utf-8")
        self._output.unlink()
        if status is None:
            raise TimeoutError(f"after {timeout} s:\n{printed}")
        return status, printed


def _run(
    filters: Sequence[Any], program: Callable[[list[str]], object], arguments: list[str], folder: Path,
    variables: dict[str, str], output: Path,
) -> None:  # fmt: skip
    """What is forked does: all that a process of the tests has set but the server has not."""
    status = 70
    try:
        file = os.open(output, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)
        multiprocessing.set_start_method(None, force=True)  # the platform's, as in a process started by hand
        torch.set_num_threads(1)
        warnings.resetwarnings()
        warnings.filters = filters
        rank_zero_only.rank = int(variables.get("LOCAL_RANK", variables.get("SLURM_PROCID", 0)))  # as on import
        program(arguments)
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:  # noqa: BLE001 - the test is told by the status and reads why
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def in_process(arguments: Sequence[str]) -> int:
    """Run the command line in a process of its own: its status, or minus the signal that ended it."""
    status, said = Forked(arguments).finish(500)
    os.write(2, said.encode())  # not printed: a test may read what this process prints
    return status


def free_port() -> str:
    """A port that nobody listens at."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return str(opened.getsockname()[1])


def on_ranks(arguments: Sequence[str], number: int = 2, folder: Path = Path()) -> list[tuple[int, str]]:
    """Run the command line on several ranks as a launcher would: status and output of each."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NODE_RANK": "0", "WORLD_SIZE": str(number)}
    ranks = [{**shared, "LOCAL_RANK": str(rank)} for rank in range(number)]
    started = [Forked(arguments, folder, variables=variables) for variables in ranks]
    return finish(*started)


def finish(*started: Forked) -> list[tuple[int, str]]:
    """Status and output of each process; none may hang."""
    try:
        return [process.finish() for process in started]
    except TimeoutError:
        for process in started:
            process.kill()
        raise
