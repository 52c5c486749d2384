import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from forgetting import artifacts
from forgetting.corpus import prepare
from forgetting.corpus.configuration import CorpusConfig, Source
from forgetting.corpus.pool import content_key
from forgetting.corpus.prepare import Corpus, prepare_corpus
from forgetting.errors import UserError

ALPACA = {"prompt": "{instruction}\n\n{input}", "prompt_without_input": "{instruction}", "response": "{output}"}


def write_sources(folder: Path) -> dict[str, Source]:
    """Two sources: 60 and 40 rows, ten of them the same, one null and one blank response."""
    folder.mkdir(parents=True, exist_ok=True)
    alpaca = [{"instruction": f"do {i}", "input": "it" if i % 2 else "", "output": f"done {i}"} for i in range(58)]
    alpaca += [{"instruction": "x", "input": "", "output": None}, {"instruction": "x", "input": "", "output": " "}]
    (folder / "alpaca.json").write_text(json.dumps(alpaca))
    chats = [
        [("user", f"do {i}" if i < 10 and i % 2 == 0 else f"chat {i}"), ("assistant", f"done  {i}")] for i in range(40)
    ]
    lines = [{"messages": [{"role": r, "content": c} for r, c in chat]} for chat in chats]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    old = 1_700_000_000_000_000_000
    for path in folder.iterdir():
        os.utime(path, ns=(old, old))
    return {
        "Alpaca": Source(str(folder / "alpaca.json"), **ALPACA),  # type: ignore[arg-type]
        "Chats": Source(str(folder / "chats.jsonl"), messages="messages"),
    }


def corpus_config(folder: Path, **changes: Any) -> CorpusConfig:
    sizes = {"num_train": 50, "num_reference": 20, "num_validation": 10}
    return CorpusConfig(write_sources(folder), **{**sizes, **changes})


def content_of(corpus: Corpus) -> dict[str, bytes]:
    files = sorted(corpus.folder.rglob("*.arrow"))
    return {str(file.relative_to(corpus.folder)): file.read_bytes() for file in files}


def test_splits_and_manifest(tmp_path: Path) -> None:
    corpus = prepare_corpus(corpus_config(tmp_path / "data"), tmp_path / "corpora")
    content = corpus.manifest
    assert [len(corpus.split(name)) for name in ("train", "reference", "validation")] == [50, 20, 10]
    train = corpus.split("train")
    assert train.column_names == ["messages", "source", "source_row", "noise"]
    assert set(map(tuple, train["noise"])) == {()}
    assert content["noise_kinds"] is None
    first = train[0]
    raw = json.loads((tmp_path / "data/alpaca.json").read_text())
    for row in train:
        if row["source"] == "Alpaca":
            origin = raw[row["source_row"]]
            assert row["messages"][1] == {"role": "assistant", "content": origin["output"]}
            assert row["messages"][0]["content"] == origin["instruction"] + ("\n\nit" if origin["input"] else "")
    assert first["messages"][0]["role"] == "user"
    pool = content["pool"]
    assert (pool["rows"], pool["examples"], pool["duplicates"], pool["distinct"]) == (100, 98, 5, 93)
    assert pool["sources"]["Alpaca"]["dropped"] == {"empty response": 1, "null response": 1}
    assert pool["sources"]["Chats"] == {"examples": 40, "duplicates": 5, "dropped": {}}
    shares = content["splits"]["train"]["sources"]
    assert sum(entry["samples"] for entry in shares.values()) == 50
    assert sum(entry["percentage"] for entry in shares.values()) == pytest.approx(100)
    read = content["read"]["sources"]["Chats"]["files"][0]
    assert read["bytes"] == (tmp_path / "data/chats.jsonl").stat().st_size
    assert len(read["sha256"]) == 64
    assert content["seed"] == 0


def test_the_splits_are_memory_mapped(tmp_path: Path) -> None:
    corpus = prepare_corpus(corpus_config(tmp_path / "data"), tmp_path / "corpora")
    assert [file["filename"] for file in corpus.split("train").cache_files] == [str(corpus.folder / "train/data.arrow")]


def test_same_seed_and_files_give_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    first = prepare_corpus(corpus_config(tmp_path / "here"), tmp_path / "corpora")
    (tmp_path / "other/deep").mkdir(parents=True)
    second = prepare_corpus(corpus_config(tmp_path / "other/deep/there"), tmp_path / "elsewhere")
    assert first.folder.name == second.folder.name
    assert content_of(first) == content_of(second)
    assert first.content_hash == second.content_hash
    remade = prepare_corpus(corpus_config(tmp_path / "here"), tmp_path / "again")
    manifests = [(corpus.folder / "manifest.json").read_bytes() for corpus in (first, remade)]
    assert manifests[0] == manifests[1]
    other = prepare_corpus(corpus_config(tmp_path / "here", seed=1), tmp_path / "corpora")
    assert other.content_hash != first.content_hash
    assert other.folder != first.folder


def test_table_6_changes_the_reference_alone(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"q {i % 60}"}, {"role": "assistant", "content": "a"}]}
        for i in range(300)
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Source(name="S", path=str(tmp_path / "x.jsonl"), messages="messages")
    sizes = {"num_train": 20, "num_reference": 20, "num_validation": 5}
    clean = prepare_corpus(CorpusConfig({"made": source}, **sizes), tmp_path / "corpora")  # type: ignore[arg-type]
    noisy = prepare_corpus(CorpusConfig({"made": source}, **sizes, deduplicate_reference=False), tmp_path / "corpora")  # type: ignore[arg-type]
    assert clean.folder != noisy.folder
    for split in ("train", "validation"):
        assert content_of(clean)[f"{split}/data.arrow"] == content_of(noisy)[f"{split}/data.arrow"]
        assert clean.manifest["splits"][split] == noisy.manifest["splits"][split]
    keys = {
        split: [content_key(m) for m in noisy.split(split)["messages"]]
        for split in ("train", "reference", "validation")
    }
    assert len(set(keys["reference"])) < 20  # duplicates are there
    assert not set(keys["reference"]) & (set(keys["train"]) | set(keys["validation"]))
    assert len({content_key(m) for m in clean.split("reference")["messages"]}) == 20


def test_a_second_call_opens_without_reading_any_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "SETTLED_NS", -(10**18))  # the files of a test are younger than its two seconds
    config = corpus_config(tmp_path / "data")
    made = prepare_corpus(config, tmp_path / "corpora")
    prepare_corpus(config, tmp_path / "corpora")  # the corpus's own files are hashed after their last rename

    def refuse(*_: object) -> Any:
        raise AssertionError("a source was read")

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    monkeypatch.setattr(prepare, "read_source", refuse)
    assert prepare_corpus(config, tmp_path / "corpora").folder == made.folder
    os.utime(tmp_path / "data/alpaca.json")  # control: a touched file is looked at again
    with pytest.raises(AssertionError, match="a source was read"):
        prepare_corpus(config, tmp_path / "corpora")


def test_a_changed_file_is_another_corpus_and_a_touched_one_is_not(tmp_path: Path) -> None:
    config = corpus_config(tmp_path / "data")
    made = prepare_corpus(config, tmp_path / "corpora")
    os.utime(tmp_path / "data/alpaca.json")
    assert prepare_corpus(config, tmp_path / "corpora").folder == made.folder
    text = (tmp_path / "data/alpaca.json").read_text()
    (tmp_path / "data/alpaca.json").write_text(text.replace("done 3", "done E"))  # of the same size
    assert prepare_corpus(config, tmp_path / "corpora").folder != made.folder


@pytest.mark.parametrize(
    "change", [{"num_train": 40}, {"num_validation": 9}, {"seed": 5}, {"deduplicate_reference": False}]
)
def test_every_setting_makes_another_corpus(tmp_path: Path, change: dict[str, Any]) -> None:
    folders = {prepare_corpus(corpus_config(tmp_path / "data", **c), tmp_path / "corpora").folder for c in ({}, change)}
    assert len(folders) == 2


def test_published_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    config = corpus_config(tmp_path / "data", num_validation=10)
    config.train = config.reference = config.sources.pop("Chats")
    corpus = prepare_corpus(config, tmp_path / "corpora")
    assert corpus.split("train")["source_row"][:] == list(range(40))
    assert corpus.manifest["splits"]["train"]["from"] == "published"
    assert corpus.manifest["splits"]["validation"]["from"] == "drawn"
    assert corpus.manifest["overlap"] == {"train and reference": 40}
    seen = {content_key(messages) for messages in corpus.split("train")["messages"]}
    assert not seen & {content_key(messages) for messages in corpus.split("validation")["messages"]}


def test_an_empty_validation_split_is_a_split(tmp_path: Path) -> None:
    corpus = prepare_corpus(corpus_config(tmp_path / "data", num_validation=0), tmp_path / "corpora")
    assert len(corpus.split("validation")) == 0
    assert corpus.split("validation").column_names == ["messages", "source", "source_row", "noise"]


def test_processes_at_once_make_one_corpus(tmp_path: Path) -> None:
    config = corpus_config(tmp_path / "data")
    with ThreadPoolExecutor(4) as pool:
        folders = {
            corpus.folder for corpus in pool.map(lambda _: prepare_corpus(config, tmp_path / "corpora"), range(8))
        }
    assert len(folders) == 1
    assert sorted(path.name for path in (tmp_path / "corpora").iterdir()) == [folders.pop().name]


def _prepare_and_die(config: CorpusConfig, root: Path) -> None:
    prepare.write_manifest = lambda *_: os._exit(9)  # killed just before the manifest is written
    prepare_corpus(config, root)


def test_what_a_killed_process_leaves_is_harmless(tmp_path: Path) -> None:
    config = corpus_config(tmp_path / "data")
    process = multiprocessing.get_context("spawn").Process(target=_prepare_and_die, args=(config, tmp_path / "corpora"))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert any(path.name.endswith(".partial") for path in (tmp_path / "corpora").iterdir())
    assert len(prepare_corpus(config, tmp_path / "corpora").split("train")) == 50


def test_nothing_is_left_behind_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="93 distinct examples"):
        prepare_corpus(corpus_config(tmp_path / "data", num_train=500), tmp_path / "corpora")
    assert list((tmp_path / "corpora").iterdir()) == []


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _cut(folder / "train/data.arrow"), r"train/data.arrow was changed or damaged"),
        (lambda folder: (folder / "reference/data.arrow").unlink(), r"reference/data.arrow is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), r"not a complete corpus: it has no manifest.json"),
        (lambda folder: _cut(folder / "manifest.json"), r"manifest.json is not valid JSON"),
        (
            lambda folder: (folder / "manifest.json").write_text('{"kind": "corpus", "format": 99}'),
            r"format 4 \(found corpus of format 99\)",
        ),
    ],
)
def test_a_damaged_corpus_is_refused_with_the_way_out(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    config = corpus_config(tmp_path / "data")
    corpus = prepare_corpus(config, tmp_path / "corpora")
    damage(corpus.folder)
    with pytest.raises(UserError, match=message) as caught:
        prepare_corpus(config, tmp_path / "corpora")
    assert "emove it" in str(caught.value)
    shutil.rmtree(corpus.folder)
    assert prepare_corpus(config, tmp_path / "corpora").content_hash == corpus.content_hash


def flip(path: Path, place: int) -> None:
    """Change one bit, keeping size and time of modification."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("split", ["train", "reference", "validation"])
def test_one_flipped_bit_of_a_split_is_refused(tmp_path: Path, split: str) -> None:
    config = corpus_config(tmp_path / "data")
    file = prepare_corpus(config, tmp_path / "corpora").folder / split / "data.arrow"
    flip(file, file.read_bytes().index(b"done"))
    with pytest.raises(UserError, match=rf"{split}/data.arrow was changed or damaged .* Remove it \(rm -r"):
        prepare_corpus(config, tmp_path / "corpora")
    with pytest.raises(UserError, match="was changed or damaged"):
        Corpus(file.parents[1])
    flip(file, file.read_bytes().index(b"eone"))  # control: the bit flipped back
    assert prepare_corpus(config, tmp_path / "corpora").folder == file.parents[1]


def _change(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(content_hash="0" * 64),
        lambda content: content["splits"]["train"].update(content_hash="0" * 64),
        lambda content: content["splits"]["train"].update(samples=49),
        lambda content: content["splits"]["train"]["files"].clear(),
        lambda content: content["splits"].pop("validation"),
        lambda content: content["splits"].update({"../../x": content["splits"]["train"]}),
        lambda content: content["config"].update(seed=5),
        lambda content: content.update(splits=[]),
        lambda content: content.pop("hash"),
        lambda content: content.pop("identity"),
    ],
)
def test_a_changed_manifest_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = corpus_config(tmp_path / "data")
    folder = prepare_corpus(config, tmp_path / "corpora").folder
    _change(folder, lambda content: None)
    prepare_corpus(config, tmp_path / "corpora")  # control: another layout of the same content is no change
    _change(folder, change)
    with pytest.raises(UserError, match=r"manifest.json was changed or damaged .* Remove it \(rm -r"):
        prepare_corpus(config, tmp_path / "corpora")


@pytest.mark.parametrize(
    "content", ["[]", "{}", "3", "null", '"x"', '{"kind": "corpus"}', '{"kind": [], "format": {}}']
)
def test_json_that_is_no_manifest_is_refused(tmp_path: Path, content: str) -> None:
    config = corpus_config(tmp_path / "data")
    folder = prepare_corpus(config, tmp_path / "corpora").folder
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"Remove it \(rm -r .* python -m forgetting prepare"):
        prepare_corpus(config, tmp_path / "corpora")


@pytest.mark.parametrize("name", ["../../outside", "/outside", ""])
def test_a_manifest_cannot_name_a_split_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = prepare_corpus(corpus_config(tmp_path / "data"), tmp_path / "corpora").folder
    content = json.loads((folder / "manifest.json").read_text())
    del content["hash"]
    for path in (tmp_path / "outside", folder):  # so that only the name can be at fault
        shutil.copytree(folder / "train", path, dirs_exist_ok=True)
    content["splits"][name] = content["splits"]["train"]
    artifacts.write_manifest(folder / "manifest.json", content)
    with pytest.raises(UserError, match="is no name of something inside"):
        Corpus(folder)


def test_a_corpus_under_another_ones_name_is_refused(tmp_path: Path) -> None:
    config = corpus_config(tmp_path / "data")
    first = prepare_corpus(config, tmp_path / "corpora").folder
    second = prepare_corpus(corpus_config(tmp_path / "data", seed=1), tmp_path / "corpora").folder
    shutil.rmtree(first)
    second.rename(first)
    with pytest.raises(UserError, match=rf"{first} is not what its name says: it was made as {second.name}"):
        prepare_corpus(config, tmp_path / "corpora")


def test_a_source_without_a_usable_row(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"q": "x", "a": null}\n{"q": "x", "a": " "}\n{"q": "y", "a": ""}\n')
    source = Source(name="S", path=str(tmp_path / "x.jsonl"), prompt="{q}", response="{a}")
    with pytest.raises(
        UserError, match=r"none of its 3 rows has a usable example: empty response \(2\), null response"
    ):
        prepare_corpus(CorpusConfig({"made": source}), tmp_path / "corpora")


def test_an_unknown_split_and_a_folder_that_is_no_corpus(tmp_path: Path) -> None:
    corpus = prepare_corpus(corpus_config(tmp_path / "data"), tmp_path / "corpora")
    with pytest.raises(UserError, match="no split 'test'; it has train, reference, validation"):
        corpus.split("test")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        Corpus(tmp_path)


def test_a_tree_source_and_a_size(tmp_path: Path) -> None:
    tree = {"role": "prompter", "text": "q", "replies": [{"role": "assistant", "text": "a", "rank": 0, "replies": []}]}
    lines = [json.dumps({"prompt": {**tree, "text": f"q{i}"}}) for i in range(30)]
    (tmp_path / "trees.jsonl").write_text("\n".join(lines))
    source = Source(name="OASST", path=str(tmp_path / "trees.jsonl"), tree="prompt", size=12)
    corpus = prepare_corpus(
        CorpusConfig({"made": source}, num_train=10, num_reference=2, num_validation=0), tmp_path / "corpora"
    )
    assert corpus.manifest["pool"]["examples"] == 12
    assert corpus.split("train")[0]["messages"][1] == {"role": "assistant", "content": "a"}


def test_flat_messages_of_a_tree(tmp_path: Path) -> None:
    rows = [
        {"message_id": f"{kind}{i}", "parent_id": None if kind == "q" else f"q{i}", "text": f"{kind} {i}", "role": role}
        for i in range(5)
        for kind, role in (("q", "prompter"), ("a", "assistant"))
    ]
    (tmp_path / "flat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Source(name="OASST", path=str(tmp_path / "flat.jsonl"), tree="parent_id")
    corpus = prepare_corpus(
        CorpusConfig({"made": source}, num_train=5, num_reference=0, num_validation=0), tmp_path / "corpora"
    )
    found = {row["source_row"]: [m["content"] for m in row["messages"]] for row in corpus.split("train")}
    assert found == {2 * i: [f"q {i}", f"a {i}"] for i in range(5)}
