"""Run a command on free GPUs of this machine: `python gpu.py NUMBER COMMAND…`.

Snakemake counts GPUs but does not say which one a job has. Each GPU has a lock file; the command starts when NUMBER of
them are free and holds their locks, through its open files, until it ends (however it ends). Under SLURM, which assigns
GPUs itself, and on a machine without GPUs the command just runs.
"""

import fcntl
import os
import shutil
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


def take(names: list[str], number: int, folder: Path) -> list[str]:
    """Lock `number` of the GPUs for this process and the one it becomes; none if too few are free."""
    files, taken = [], []
    for name in names:
        descriptor = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
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
    if names and "SLURM_JOB_ID" not in os.environ:
        if number > len(names):
            sys.exit(f"error: {number} GPUs are wanted for one job, this machine has {len(names)}.")
        folder = Path(tempfile.gettempdir()) / f"forgetting-gpus-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        while not (taken := take(names, number, folder)):
            time.sleep(2)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
