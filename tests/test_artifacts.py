"""Artifacts are complete or absent, of the shape that is expected, and what their manifests say, byte for byte."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forgetting import artifacts
from forgetting.artifacts import (
    complete_folder,
    complete_or_absent,
    hash_file,
    inside,
    read_json,
    refuse_changed,
    write_json,
)
from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.lock import locked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds a JSON array where object was expected"),
        ("1", "holds a JSON number or null where object"),
        ("{}", "lacks a"),
        ('{"a": 1', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("\udcff", "is not valid JSON"),
    ],
)
def test_json_of_another_shape_is_refused_with_its_remedy(tmp_path, text, message):
    file = tmp_path / "x.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message) as error:
        read_json(file, dict, ["a"], remedy="Score again.")
    assert str(error.value).endswith("Score again.")
    assert str(file) in str(error.value)


def test_a_hash_is_remembered_until_the_file_is_touched(tmp_path, monkeypatch):
    file = tmp_path / "x"
    file.write_bytes(b"abc")
    assert hash_file(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    monkeypatch.setattr(artifacts, "SETTLED_NS", -(10**12))  # as if it had been written long ago
    first = hash_file(file)

    def refuse(*_):
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.hashlib, "file_digest", refuse)
        assert hash_file(file) == first
    stat = file.stat()
    file.write_bytes(b"abd")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size and time of modification
    assert hash_file(file) != first


def test_a_changed_byte_is_found(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    files = {"x": hash_file(tmp_path / "x")}
    refuse_changed(tmp_path, files, "Make it again.")
    (tmp_path / "x").write_bytes(b"abb")
    with pytest.raises(UserError, match=r"x was changed or damaged .* Make it again\."):
        refuse_changed(tmp_path, files, "Make it again.")
    (tmp_path / "x").unlink()
    with pytest.raises(UserError, match="x is missing"):
        refuse_changed(tmp_path, files, "")


@pytest.mark.parametrize("name", ["", "..", "../x", "a/../../x", "/etc/passwd", "a\0b"])
def test_a_name_does_not_leave_its_root(tmp_path, name):
    with pytest.raises(UserError, match="is no name of something inside"):
        inside(tmp_path, name)


def test_a_name_inside_stays():
    assert inside(Path("runs"), "table3/x@y=1") == Path("runs/table3/x@y=1")


KILLED = """
import os, sys
from pathlib import Path
from forgetting.artifacts import complete_folder, complete_or_absent
with complete_or_absent(Path(sys.argv[1])) as file, complete_folder(Path(sys.argv[2])) as folder:
    file.write_text("half"); (folder / "part").write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_and_a_living_one_s_is_kept(tmp_path):
    file, folder = tmp_path / "x.json", tmp_path / "folder"
    assert subprocess.run([sys.executable, "-c", KILLED, str(file), str(folder)], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    ours = f"{socket.gethostname()}~{os.getpid()}"
    living = tmp_path / f".x.json.{ours}~abc.partial"
    living.write_text("of a process that lives")
    write_json(file, {})
    with complete_folder(folder):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", "folder", living.name}


def test_a_folder_that_another_process_made_is_not_said_to_be_ours(tmp_path):
    folder = tmp_path / "folder"
    with complete_folder(folder) as temporary:  # named by its content, whoever was faster
        (temporary / "ours").touch()
        folder.mkdir()
        (folder / "theirs").touch()
    message = r"folder cannot be replaced .* another process made it in the meantime"
    with pytest.raises(UserError, match=message), complete_folder(folder, named_by_content=False) as temporary:
        (temporary / "ours").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["folder", "folder/theirs"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "x.json", {"a": float("nan")})

    def fail() -> None:
        with complete_or_absent(tmp_path / "x.json") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert read_json(tmp_path / "x.json") == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def hold(folder: Path, ready: multiprocessing.Event) -> None:
    with locked(folder):
        ready.set()
        time.sleep(60)


def test_a_folder_is_held_by_one_process_and_free_when_it_is_killed(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(UserError, match=rf"being written by another process \({process.pid} on"), locked(tmp_path):
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_what_a_file_system_refuses_is_one_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*: Not a directory; a part of the path is a file"):
        main(["lab", "--runs", "file/below"])
    with pytest.raises(UserError, match=r"File name too long; give a shorter name"):
        main(["lab", "--runs", "x" * 300])
