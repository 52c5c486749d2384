"""Run a command on free GPUs of this machine: `python gpu.py NUMBER COMMAND…`.

Snakemake counts GPUs but does not say which one a job has. Each GPU has a lock file; the command starts when NUMBER of
them are free and holds their locks, through its open files, until it ends (however it ends). Under SLURM, which assigns
GPUs itself, the locks are those of the SLURM job alone. On a machine without GPUs the command just runs.
"""

import fcntl
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by index or UUID."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name and name != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.split() if answer.returncode == 0 else []


def lock_folder() -> Path:
    """The folder of this user's lock files on this machine, made if it is not there.

    Its name can be guessed and everyone may write into the temporary directory, so what lies there is only used if it
    is a folder, no link, that is ours and that nobody else may enter.
    """
    job = os.environ.get("SLURM_JOB_ID", "none")
    folder = Path(tempfile.gettempdir()) / f"forgetting-gpus-{os.getuid()}-{socket.gethostname()}-{job}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        sys.exit(
            f"error: the lock files of the GPUs cannot be made: {error}. Set TMPDIR to a folder that you may write."
        )
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        sys.exit(
            f"error: {folder} is not a folder of yours alone; somebody else may have put it there. Remove it, or set "
            "TMPDIR to a folder of your own."
        )
    return folder


def take(names: list[str], number: int, folder: Path) -> list[str]:
    """Lock `number` of the GPUs for this process and the one it becomes; none if too few are free."""
    files, taken = [], []
    for name in names:
        descriptor = os.open(folder / f"{name.replace('/', '-')}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        files.append(descriptor)
        taken.append(name)
        if len(taken) == number:
            for descriptor in files:
                os.set_inheritable(descriptor, True)
            return taken
    for descriptor in files:
        os.close(descriptor)
    return []


def main() -> None:
    """Wait for the GPUs, then become the command."""
    number, command = int(sys.argv[1]), sys.argv[2:]
    names = visible_gpus()
    if names:
        if number > len(names):
            sys.exit(f"error: {number} GPUs are wanted for one job, this machine has {len(names)} for it.")
        folder = lock_folder()
        while not (taken := take(names, number, folder)):
            time.sleep(2)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
