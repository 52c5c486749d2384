"""What docs/corpus.md shows works as it stands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from forgetting.corpus.configuration import CorpusConfig
from forgetting.corpus.prepare import prepare_corpus

PAGE = (Path(__file__).parents[1] / "docs/corpus.md").read_text()
ROWS = "\n".join(json.dumps({"q": f"question {i}", "a": f"answer {i}"}) for i in range(1000))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def corpus_of(content: dict[str, object]) -> CorpusConfig:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--corpus", type=CorpusConfig)
    config = parser.instantiate_classes(parser.parse_object({"corpus": content})).corpus
    assert isinstance(config, CorpusConfig)
    return config


def test_every_source_of_the_page_is_a_valid_one() -> None:
    text = re.sub("<the full commit>", "a" * 40, blocks("yaml")[1])
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip())
    sources = [yaml.safe_load(entry) for entry in entries if entry.strip()]  # one name is shown twice
    assert len(sources) >= 9
    for source in sources:
        corpus_of({"sources": source}).check()


def test_the_known_noise_of_the_page_is_read(tmp_path: Path) -> None:
    (source,) = yaml.safe_load(blocks("yaml")[2]).values()
    corpus_of({"sources": {"S": source}}).check()
    (tmp_path / "annotated.jsonl").write_text(blocks("json")[0])
    source["path"] = str(tmp_path / "annotated.jsonl")
    config = corpus_of({"sources": {"S": source}, "num_train": 1, "num_reference": 0, "num_validation": 0})
    (row,) = prepare_corpus(config, tmp_path / "corpora").split("train")
    response = row["messages"][-1]["content"]
    assert [(response[span["start"] : span["end"]], span["kind"]) for span in row["noise"]] == [
        ("Well,", "filler"), ("6", "wrong"),
    ]  # fmt: skip


def test_the_published_splits_of_the_page_are_valid() -> None:
    corpus_of(yaml.safe_load(blocks("yaml")[3])["corpus"]).check()


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import byte_tokenizer
from forgetting.corpus.configuration import CorpusConfig, Source
from forgetting.corpus.prepare import prepare_corpus
from forgetting.corpus.tokens import tokenize_corpus
sources = {name: Source("mine.jsonl", prompt="{q}", response="{a}", source_column="q") for name in ("A", "B")}
corpus = prepare_corpus(CorpusConfig(sources, 900, 90, 10, deduplicate_reference=False), Path(sys.argv[2]))
tokenize_corpus(corpus, byte_tokenizer(), "tulu", 48)
"""


@pytest.mark.slow
def test_other_processes_with_other_hash_seeds_and_locales_make_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(ROWS)
    tests = str(Path(__file__).parent)
    made = []
    for seed, locale in (("1", "C"), ("2", "C.UTF-8")):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "LC_ALL": locale,
            "TZ": "Asia/Tokyo" if seed == "1" else "",
        }
        command = [sys.executable, "-c", PROGRAM, tests, f"corpora-{seed}"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        root = tmp_path / f"corpora-{seed}"
        made.append({path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()})
    assert len(made[0]) == 3 + 1 + 15 + 1
    assert made[0] == made[1]
