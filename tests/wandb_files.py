"""What Weights & Biases has on disk of a run: its files are LevelDB logs of protocol buffers."""

import json
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768  # bytes; a record that does not fit is continued in the next block
HEADER = 7  # bytes of the file's own header, and of each record's
FULL, LAST = 1, 4  # kinds of records after which one is complete


def offline_parts(folder: Path) -> list[Path]:
    """The files that a folder's launches have logged offline, in their order, once the last one is written."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.parent.name)
    deadline = time.monotonic() + 30  # a process of wandb's own writes them, and may be behind
    while files and not any(record.HasField("exit") for record in read_records(files[-1])):
        assert time.monotonic() < deadline, f"{files[-1]} has no end"
        time.sleep(0.05)
    return files


def read_records(file: Path) -> Iterator[Record]:
    """Every complete record of a file."""
    content, position, whole = file.read_bytes(), HEADER, b""
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:  # no room for a header: the rest of the block is padding
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + HEADER])
        whole += content[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (FULL, LAST):
            yield Record.FromString(whole)
            whole = b""


def _values(items: Iterable[Any]) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def history(file: Path) -> list[dict[str, Any]]:
    """What was logged, a row for each call."""
    return [_values(record.history.item) for record in read_records(file) if record.HasField("history")]


def summary(file: Path) -> dict[str, Any]:
    """The last value of each key of the summary."""
    records = [record for record in read_records(file) if record.HasField("summary")]
    return {key: value for record in records for key, value in _values(record.summary.update).items()}


def config(file: Path) -> dict[str, Any]:
    """The run's configuration, its groups as dictionaries."""
    values: dict[str, Any] = {}
    for record in read_records(file):
        for part in (record.run.config, record.config):
            values |= _values(part.update)
    return values


def description(file: Path) -> Any:
    """The run's id, name, group, tags and job type."""
    return next(record.run for record in read_records(file) if record.HasField("run"))


def artifacts(file: Path) -> list[Any]:
    """What was uploaded."""
    requests = (record.request.log_artifact for record in read_records(file) if record.HasField("request"))
    logged = [request.artifact for request in requests if request.artifact.name]
    return [*logged, *(record.artifact for record in read_records(file) if record.HasField("artifact"))]
