"""One process at a time writes into a folder."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from forgetting.errors import UserError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold a folder while inside. The kernel drops the lock of a process that dies, so none is ever left over.

    A record lock (POSIX) belongs to the process alone: a loader's worker, which outlives a killed parent by seconds,
    does not inherit it. It also works on NFS.

    Args:
        folder: Made if it does not exist, and removed again if nothing was put into it.
        wait: Wait for another holder instead of refusing.

    Raises:
        UserError: Another process holds it; which one.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    descriptor = _acquire(path, wait)
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever waits for it sees that the file is another
        os.close(descriptor)
        with contextlib.suppress(OSError):  # not empty, or another process's by now
            for made in missing:
                made.rmdir()


def _acquire(path: Path, wait: bool) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # the holder before us may have removed it
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):  # POSIX allows either
            holder = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise UserError(
                f"{path.parent} is being written by another process{_named(holder)}. Wait until it ends, or stop it."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
            print(f"The file system of {path.parent} has no locks: see to it that one process alone writes there.",
                  file=sys.stderr)  # fmt: skip
            return descriptor
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)  # the holder before us removed it between our two calls


def _named(holder: bytes) -> str:
    try:
        content = json.loads(holder)
        return f" ({content['process']} on {content['host']})"
    except (ValueError, KeyError, TypeError):
        return ""
