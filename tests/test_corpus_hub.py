"""Hub data sets, against a small imitation of the hub on this machine."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from forgetting.corpus import sources
from forgetting.corpus.configuration import Source
from forgetting.corpus.hub import load_hub, resolved_commit
from forgetting.corpus.sources import SourceCache
from forgetting.errors import UserError

COMMIT = "1234567890abcdef1234567890abcdef12345678"
OTHER = "f" * 40
ROWS = [
    {"dataset": "flan" if i % 2 else "dolly",
     "messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]}
    for i in range(20)
]  # fmt: skip
FILES = {"train.jsonl": "\n".join(map(json.dumps, ROWS)).encode()}

PROGRAM = """
import sys, json
from pathlib import Path
from forgetting.corpus.configuration import CorpusConfig, Source
from forgetting.corpus.prepare import prepare_corpus
from forgetting.errors import UserError
for change in json.loads(sys.argv[2]):
    fixed = {"name": "Pool", "path": "lab/pool", "messages": "messages", "source_column": "dataset"}
    source = Source(**{**fixed, **change})
    try:
        corpus = prepare_corpus(CorpusConfig({"made": source}, 5, 3, 2), Path(sys.argv[1]))
        print(corpus.folder.name, corpus.manifest["read"]["sources"]["Pool"]["commit"],
              ",".join(corpus.manifest["splits"]["train"]["sources"]))
    except UserError as error:
        print(error)
"""


class Hub(BaseHTTPRequestHandler):
    """`lab/pool` with one commit, `lab/gated`, and nothing else."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        listing = [
            {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()} for n, b in FILES.items()
        ]
        if found := re.fullmatch(r"/api/datasets/lab/(?:pool|gated)(?:/revision/(.+))?", path):
            if found[1] not in (None, "main", COMMIT):
                return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            files = [{"rfilename": name} for name in FILES]
            return self.answer(200, json.dumps({"id": "lab/pool", "sha": COMMIT, "siblings": files}).encode())
        if "gated" in path:
            return self.answer(401, b"{}", X_Error_Code="GatedRepo")
        if re.fullmatch(r"/api/datasets/lab/pool/tree/[^/]+", path):
            return self.answer(200, json.dumps(listing).encode())
        if "/tree/" in path:
            return self.answer(404, b"{}", X_Error_Code="EntryNotFound")
        if found := re.fullmatch(r"/datasets/lab/pool/resolve/[^/]+/(.+)", path):
            if found[1] in FILES:
                tag = hashlib.sha1(FILES[found[1]]).hexdigest()
                return self.answer(200, FILES[found[1]], ETag=f'"{tag}"', X_Repo_Commit=COMMIT)
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        return self.answer(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def prepared(root: Path, endpoint: str, offline: bool, *changes: dict[str, str]) -> list[str]:
    """What `prepare_corpus` returns or says for each change of the source, in a process of its own."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HOME": str(root / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-c", PROGRAM, str(root / "corpora"), json.dumps(changes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.slow
def test_hub_data_sets_with_and_without_network(tmp_path: Path, hub: str) -> None:
    read, pinned, missing, gated, revision, split, config = prepared(
        tmp_path, hub, False, {}, {"revision": COMMIT}, {"path": "lab/missing"}, {"path": "lab/gated"},
        {"revision": "v9"}, {"split": "test"}, {"config": "x"},
    )  # fmt: skip
    assert read.count(" ") == 2, read
    folder, commit, names = read.split()
    assert commit == COMMIT
    assert names == "dolly,flan"
    assert pinned == read  # main is that commit
    assert "lab/missing is neither a file or folder here nor a data set on the hub that you can see" in missing
    assert "the data set lab/gated is gated. Ask for access at https://huggingface.co/datasets/lab/gated" in gated
    assert "the data set lab/pool has no revision 'v9' on the hub" in revision
    assert "the data set lab/pool has no split 'test'" in split
    assert "config 'x' does not fit the data set lab/pool" in config

    opened, absent, unknown = prepared(tmp_path, hub, True, {}, {"path": "lab/missing"}, {"revision": "v9"})
    assert opened == read
    assert "HF_HUB_OFFLINE is set, and the data set lab/missing is not in the local cache" in absent
    assert "it is unknown which commit revision 'v9' of lab/pool is" in unknown

    (tmp_path / "corpora" / ".sources.json").unlink()
    (tmp_path / "corpora" / folder).rename(tmp_path / "set-aside")
    remade, other = prepared(tmp_path, hub, True, {}, {"revision": OTHER})
    assert remade == read  # from the cache of `datasets` alone, with the commit it holds
    assert (tmp_path / "set-aside/train/data.arrow").read_bytes() == (
        tmp_path / "corpora" / folder / "train/data.arrow"
    ).read_bytes()
    assert f"commit {OTHER} of lab/pool cannot be fetched, and the local cache holds commit {COMMIT}" in other


def test_an_unreachable_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'lab/pool' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(
        UserError, match="the hub cannot be reached, and the data set lab/pool is not in the local cache"
    ):
        load_hub(Source(name="Pool", path="lab/pool", messages="messages"), None)


def test_a_name_that_is_neither_file_nor_hub_id() -> None:
    with pytest.raises(UserError, match=r"'a b/c' is neither a file here nor a hub id"):
        resolved_commit(Source(name="Pool", path="a b/c", messages="messages"))


def test_the_commit_last_resolved_is_taken_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = Source(name="Pool", path="lab/pool", messages="messages"), tmp_path / ".sources.json"
    monkeypatch.setattr(sources, "resolved_commit", lambda _: COMMIT)
    cache = SourceCache(path)
    assert cache.commit(source) == COMMIT
    cache.save()
    monkeypatch.setattr(sources, "resolved_commit", lambda _: None)
    assert SourceCache(path).commit(source) == COMMIT
    written = path.stat().st_mtime_ns
    SourceCache(path).save()
    assert path.stat().st_mtime_ns == written  # nothing new: nothing written


@pytest.mark.parametrize(
    "content",
    ["", "[]", "3", "null", "{", "[" * 100_000, '{"hub:lab/pool@main": ["x"]}', '{"hub:lab/pool@main": "x"}', b"\xff"],
)
def test_a_damaged_cache_of_commits_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes
) -> None:
    source, path = Source(name="Pool", path="lab/pool", messages="messages"), tmp_path / ".sources.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(sources, "resolved_commit", lambda _: None)
    assert SourceCache(path).commit(source) is None
    monkeypatch.setattr(sources, "resolved_commit", lambda _: COMMIT)
    cache = SourceCache(path)
    assert cache.commit(source) == COMMIT
    cache.save()
    assert SourceCache(path).commits == {"hub:lab/pool@main": COMMIT}
