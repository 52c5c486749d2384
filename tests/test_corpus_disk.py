"""Corpora on disks that are full or read-only, and what killed processes leave."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from forgetting.cli import main
from forgetting.corpus.configuration import CorpusConfig, Source
from forgetting.corpus.prepare import Corpus, prepare_corpus
from forgetting.corpus.sources import SourceCache
from forgetting.corpus.tokens import tokenize_corpus
from forgetting.errors import UserError


def config_of(folder: Path, num_rows: int = 400) -> CorpusConfig:
    rows = [{"q": f"question {i}", "a": f"answer {i} " + "long " * 20} for i in range(num_rows)]
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Source(str(folder / "x.jsonl"), prompt="{q}", response="{a}")
    return CorpusConfig({"S": source}, num_rows - 20, 15, 5)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Mount a file system of its own, where that is allowed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not possible here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a failed test may hold a file


def command(tmp_path: Path, backbone: Path) -> list[str]:
    """`prepare` with a corpus of about 70 kB and tokens of about 500 kB."""
    source = config_of(tmp_path).sources["S"]
    corpus = {
        "sources": {"S": {"path": source.path, "prompt": "{q}", "response": "{a}"}},
        "num_train": 380, "num_reference": 15, "num_validation": 5,
    }  # fmt: skip
    content = {
        "model": {"backbone": str(backbone)}, "data": {"corpus": corpus, "corpora": str(tmp_path / "mount/corpora")},
    }  # fmt: skip
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    return ["prepare", "--config", str(tmp_path / "x.yaml")]


@pytest.mark.parametrize(("size", "num_complete"), [("32k", 0), ("160k", 1)], ids=["corpus", "tokens"])
def test_a_full_disk_is_one_message_and_nothing_half_written(
    tmp_path: Path, tiny_llama: Path, size: str, num_complete: int
) -> None:
    arguments = command(tmp_path, tiny_llama)
    with mounted(tmp_path / "mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        with pytest.raises(UserError, match="No space left on device.*free some space"):
            main(arguments)
        left = list((tmp_path / "mount/corpora").glob("*"))
        assert len(left) == num_complete  # the corpus, where the tokens had no room
        assert [name for name in files_of(tmp_path / "mount") if ".partial" in name or "tokens" in name] == []
        for folder in left:
            Corpus(folder)


def test_a_limit_of_file_size_is_one_message(tmp_path: Path, tiny_llama: Path) -> None:
    arguments = command(tmp_path, tiny_llama)
    limit = f"import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" \
            f"from forgetting.cli import main\n" \
            f"resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, {resource.RLIM_INFINITY}))\nmain()"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", limit, *arguments], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(".partial" in name for name in files_of(tmp_path / "mount"))


def test_a_complete_corpus_on_a_read_only_disk_opens(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    config, root = config_of(tmp_path, 60), tmp_path / "corpora"
    made = tokenize_corpus(prepare_corpus(config, root), tiny_tokenizer, "tulu", 512)
    with mounted(root, "--bind", str(root)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(root)], check=True)
        with pytest.raises(OSError, match="Read-only"):  # control
            (root / "x").touch()
        corpus = prepare_corpus(config, root)
        assert len(corpus.split("train")) == 40
        assert tokenize_corpus(corpus, tiny_tokenizer, "tulu", 512).content_hash == made.content_hash
        cache = SourceCache(root / ".sources.json")
        cache.commits["hub:org/x@main"] = "0" * 40
        cache.save()  # an optional file is no reason to fail
    assert not (root / ".sources.json").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import byte_tokenizer
from test_corpus_disk import config_of
from forgetting.corpus import prepare, tokens
from forgetting.corpus.prepare import prepare_corpus
from forgetting.corpus.tokens import tokenize_corpus
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
folder = Path(sys.argv[2])
if sys.argv[3] == "tokens":
    corpus = prepare_corpus(config_of(folder, 60), folder / "corpora")
    tokens.write_manifest = die  # the last thing that is written
    tokenize_corpus(corpus, byte_tokenizer(), "tulu", 512)
prepare.write_manifest = die
prepare_corpus(config_of(folder, 60), folder / "corpora")
"""


@pytest.mark.parametrize("what", ["corpus", "tokens"])
def test_the_next_process_removes_what_a_killed_one_left(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, what: str
) -> None:
    tests = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", KILLED, tests, str(tmp_path), what], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(path.name.endswith(".partial") for path in (tmp_path / "corpora").rglob("*"))
    corpus = prepare_corpus(config_of(tmp_path, 60), tmp_path / "corpora")
    tokens = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 512)
    assert not any(".partial" in name for name in files_of(tmp_path))

    fresh = tmp_path / "fresh"
    fresh.mkdir()
    shutil.copy(tmp_path / "x.jsonl", fresh)
    other = tokenize_corpus(prepare_corpus(config_of(fresh, 60), fresh / "corpora"), tiny_tokenizer, "tulu", 512)
    assert other.content_hash == tokens.content_hash
    assert os.listdir(tmp_path / "corpora") == os.listdir(fresh / "corpora")
