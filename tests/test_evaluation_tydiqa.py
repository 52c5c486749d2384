import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_files import (
    LANGUAGES,
    results_file,
    task_records,
    write_bigram_model,
    write_data_files,
    write_lines,
    write_tydiqa,
)
from transformers import AutoTokenizer

from forgetting.errors import UserError
from forgetting.evaluation.command import evaluate_command
from forgetting.evaluation.tydiqa import questions, scores


@pytest.fixture(scope="module")
def runs_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ends its answers with the token of two newlines and goes on."""
    return write_bigram_model(tmp_path_factory.mktemp("base") / "runs-on", after_answer="\n\n")


@pytest.fixture(scope="module")
def stops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ends its answers with the token of one newline."""
    return write_bigram_model(tmp_path_factory.mktemp("base") / "stops", after_answer="\n")


def evaluate(model: Path, folder: Path, protocol: str) -> tuple[dict[str, Any], list[str]]:
    """The metrics of one language under a protocol, and the answers."""
    files = {split: str(file) for split, file in write_tydiqa(folder / "data").items()}
    data = write_data_files(folder / "data.yaml", {"tydiqa_*": files})
    task = "tydiqa_goldp_en" if protocol == "corrected" else f"tydiqa_{protocol}_en"
    import lm_eval

    include = ["--include-path", str(Path(lm_eval.__file__).parent / "tasks/tydiqa")]
    evaluate_command([
        str(model), "--suite", "main", "--tasks", task, "--protocol", protocol, "--data-files", str(data), *include,
        "--batch-size", "4", "--dtype", "float32", "--output", str(folder / "out"),
    ])  # fmt: skip
    metrics = json.loads(results_file(folder / "out").read_text())["tasks"][task]["metrics"]
    return metrics, [record["answer"][0] for record in task_records(folder / "out", task)]


def test_the_token_stop_shows_a_gap_for_a_model_that_writes_two_newlines_in_one_token(
    tmp_path: Path, runs_on: Path
) -> None:
    metrics, answers = evaluate(runs_on, tmp_path, "token_stop")
    assert all(answer.startswith(" 7\n\nQQ") for answer in answers)
    assert metrics["ran_on"] == 1
    assert metrics["f1_cut"] == 0.5  # every other answer is 7
    assert metrics["f1"] == pytest.approx(0.5 * (2 / 3))  # "7 QQ…" against "7": precision 1/2, recall 1


@pytest.mark.parametrize("protocol", ["corrected", "published"])
def test_a_stop_string_shows_none(tmp_path: Path, runs_on: Path, protocol: str) -> None:
    metrics, answers = evaluate(runs_on, tmp_path, protocol)
    assert answers == [" 7"] * 6
    assert metrics["f1"] == 0.5
    if protocol == "published":
        assert (metrics["f1_cut"], metrics["ran_on"]) == (0.5, 0)


def test_the_token_stop_shows_none_for_a_model_that_writes_that_token(tmp_path: Path, stops: Path) -> None:
    metrics, answers = evaluate(stops, tmp_path, "token_stop")
    assert answers == [" 7\n"] * 6
    assert (metrics["f1"], metrics["f1_cut"], metrics["ran_on"]) == (0.5, 0.5, 0)


def test_scores_are_squads() -> None:
    whole = scores({"answers": ["the Eiffel Tower", "Eiffel"]}, [" Eiffel tower.\n\nQuestion: more"])
    assert whole == pytest.approx({"f1": 2 * 0.5 / 1.5, "f1_cut": 1.0, "exact_match": 0.0, "ran_on": 1.0})
    assert scores({"answers": ["7"]}, ["  7 \n"]) == {"f1": 1.0, "f1_cut": 1.0, "exact_match": 1.0, "ran_on": 0.0}
    assert scores({"answers": ["7"]}, [""]) == {"f1": 0.0, "f1_cut": 0.0, "exact_match": 0.0, "ran_on": 0.0}


def test_a_hundred_questions_and_one_few_shot_example_per_language_from_one_stream(tmp_path: Path, stops: Path) -> None:
    files = {split: [str(file)] for split, file in write_tydiqa(tmp_path, num_validation=120, num_train=9).items()}
    stream = random.Random(42)
    drawn = {language: stream.sample(range(120), 100) for language in LANGUAGES}
    shown = {language: stream.sample(range(9), 1) for language in LANGUAGES}
    for language in ("arabic", "korean"):
        made = questions(language, str(stops), data_files=files)
        assert [row["id"] for row in made["validation"]] == [f"{language}-dev-{i}" for i in drawn[language]]
        assert [row["id"] for row in made["train"]] == [f"{language}-train-{i}" for i in shown[language]]


def test_a_language_with_fewer_questions_keeps_them_all(tmp_path: Path, stops: Path) -> None:
    files = {split: [str(file)] for split, file in write_tydiqa(tmp_path).items()}
    assert len(questions("telugu", str(stops), data_files=files)["validation"]) == 6
    labels = tmp_path / "labels.yaml"
    labels.write_text("dutch: {instruction: I, passage: P, question: Q, answer: A}")
    with pytest.raises(ValueError, match="no question, or too few few-shot examples, in dutch"):
        questions("dutch", str(stops), data_files=files, labels=str(labels))


def test_a_long_context_is_cut_to_512_tokens_and_shows_its_bos(tmp_path: Path, stops: Path) -> None:
    long, short = "x" * 600, "y" * 500
    rows = [
        {"id": f"english-{i}", "context": text, "question": "?", "answers": {"text": ["x"], "answer_start": [0]}}
        for i, text in enumerate([long, short])
    ]
    file = [str(write_lines(tmp_path / "rows.jsonl", rows))]
    made = questions("english", str(stops), data_files={"validation": file, "train": file})
    assert [row["context"] for row in made["validation"]] == ["<s>" + "x" * 511, short]
    assert len(AutoTokenizer.from_pretrained(stops).encode(long)) == 601


def test_labels_are_in_the_questions_language_and_can_be_another_files(tmp_path: Path, stops: Path) -> None:
    files = {split: [str(file)] for split, file in write_tydiqa(tmp_path).items()}
    labels = {questions(one, str(stops), data_files=files)["validation"][0]["answer_label"] for one in LANGUAGES}
    assert len(labels) == 9
    words = {"instruction": "I", "passage": "P", "question": "Q", "answer": "A"}
    mine = tmp_path / "labels.yaml"
    mine.write_text(yaml.safe_dump({"english": words}))
    row = questions("english", str(stops), data_files=files, labels=str(mine))["validation"][0]
    assert (row["instruction"], row["passage_label"], row["question_label"], row["answer_label"]) == (
        "I",
        "P",
        "Q",
        "A",
    )
    with pytest.raises(UserError, match="korean needs instruction, passage, question and answer"):
        questions("korean", str(stops), data_files=files, labels=str(mine))
    with pytest.raises(UserError, match=r"labels .*gone.yaml does not exist"):
        questions("english", str(stops), data_files=files, labels=str(tmp_path / "gone.yaml"))
