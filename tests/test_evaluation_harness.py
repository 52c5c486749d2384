"""Our numbers against those of the harness's own command line."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_files import (
    results_file,
    task_records,
    write_benchmarks,
    write_bigram_model,
    write_data_files,
    write_local_tasks,
)
from lm_eval.tasks import TaskManager
from processes import Forked
from test_evaluation_run import write_run

from forgetting.evaluation.command import evaluate_command
from forgetting.evaluation.harness import silence
from forgetting.paths import CONFIGS

OWN = CONFIGS / "evaluation/tasks"
ZERO_SHOT = ["truthfulqa_mc2", "boolq", "logiqa_text", "asdiv", "arc_challenge", "lambada_openai", "arithmetic_2da"]


def write_overlays(folder: Path, files: dict[str, dict[str, str]]) -> Path:
    """Task files for the command line: the harness's own, by `include`, on our data. Independent of our overrides."""
    import lm_eval

    tasks = Path(lm_eval.__file__).parent / "tasks"
    originals = {
        "truthfulqa_mc2": tasks / "truthfulqa/truthfulqa_mc2.yaml",
        "boolq": tasks / "super_glue/boolq/default.yaml",
        "logiqa": tasks / "logiqa/logiqa.yaml",
        "asdiv": tasks / "asdiv/default.yaml",
        "arc_challenge": tasks / "arc/arc_challenge.yaml",
        "lambada_openai": tasks / "lambada/lambada_openai.yaml",
        "arithmetic_2da": tasks / "arithmetic/arithmetic_2da.yaml",
        "tydiqa_goldp_en": tasks / "tydiqa/tydiqa_goldp_en.yaml",
        "tydiqa_goldp_te": tasks / "tydiqa/tydiqa_goldp_te.yaml",
    }
    folder.mkdir()
    for name, original in originals.items():
        data = files["tydiqa_*" if name.startswith("tydiqa") else name]
        overlay: dict[str, Any] = {"include": str(original), "task": name, "dataset_path": "json", "dataset_name": None}
        overlay["dataset_kwargs"] = {"data_files": data}
        if name.startswith("tydiqa"):
            overlay["num_fewshot"] = 1
        else:
            overlay |= {"training_split": None}
            overlay |= {"validation_split": None} if "test" in data else {}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(overlay))
    published = {"include": str(OWN / "tydiqa_published_en.yaml"), "task": "tydiqa_published_en"}
    lists = {split: [file] for split, file in files["tydiqa_*"].items()}
    published["dataset_kwargs"] = {"language": "english", "data_files": lists}  # pyright: ignore
    (folder / "tydiqa_published_en.yaml").write_text(yaml.safe_dump(published))
    return folder


def harness(arguments: list[str]) -> None:
    """The program `lm_eval`, but that it does not ask pip for a minute what is installed."""
    import lm_eval.__main__
    import lm_eval.evaluator

    sys.argv = ["lm_eval", *arguments]
    lm_eval.evaluator.add_env_info = lambda results: None
    lm_eval.__main__.cli_evaluate()


def command_line(model_args: str, tasks: list[str], include: Path, output: Path, batch_size: int) -> dict[str, Any]:
    arguments = [
        "--model", "hf", "--model_args", model_args, "--tasks", ",".join(tasks), "--include_path", str(include),
        "--batch_size", str(batch_size), "--seed", "42", "--device", "cpu", "--output_path", str(output),
    ]  # fmt: skip
    status, said = Forked(arguments, program=harness).finish(500)
    assert status == 0, said[-3000:]
    (file,) = output.rglob("results_*.json")
    return json.loads(file.read_text())["results"]


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    compared = 0
    for key, value in theirs.items():
        name, separator, _ = key.partition(",")
        if separator and value != "N/A":
            assert ours["metrics"][name] == pytest.approx(value, rel=1e-12, abs=1e-12), name
            compared += 1
    assert compared >= 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bigram_model(tmp_path_factory.mktemp("base") / "bigram")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("benchmarks")
    files = write_benchmarks(folder)
    from forgetting.evaluation.logiqa import questions

    paragraphs = [{"text": text} for text in Path(files["logiqa_text"]["test"]).read_text().split("\n\n") if text]
    import datasets

    rows = questions(datasets.Dataset.from_list(paragraphs)).to_list()
    (folder / "logiqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {**files, "logiqa": {"test": str(folder / "logiqa.jsonl")}}


@pytest.mark.slow
def test_the_benchmarks_give_the_command_lines_numbers(
    tmp_path: Path, base: Path, files: dict[str, dict[str, str]]
) -> None:
    """Eight of the nine tasks (IFEval needs data that cannot be had), our LogiQA against the harness's own."""
    data = write_data_files(tmp_path / "data.yaml", files)
    tydiqa = ["tydiqa_goldp_en", "tydiqa_goldp_te"]
    shared = ["--data-files", str(data), "--batch-size", "1", "--device", "cpu"]
    evaluate_command([str(base), "--tasks", *ZERO_SHOT, "--output", str(tmp_path / "ours"), *shared])
    evaluate_command([str(base), "--tasks", *tydiqa, "--shots", "1", "--output", str(tmp_path / "one-shot"), *shared])
    evaluate_command([str(base), "--tasks", "tydiqa_published_en", "--output", str(tmp_path / "published"), *shared])
    theirs = command_line(
        f"pretrained={base}", [*(name.replace("_text", "") for name in ZERO_SHOT), *tydiqa, "tydiqa_published_en"],
        write_overlays(tmp_path / "overlays", files), tmp_path / "theirs", batch_size=1,
    )  # fmt: skip
    ours: dict[str, Any] = {}
    for folder in ("ours", "one-shot", "published"):
        ours |= json.loads(results_file(tmp_path / folder).read_text())["tasks"]
    assert len(ours) == 10
    for name, entry in ours.items():
        assert_same(entry, theirs[name.replace("_text", "")])
    values = [entry["metrics"][entry["metric"]] for entry in ours.values()]
    assert sum(0 < value < 1 for value in values) >= 8, "numbers at the ends of their range would hide a difference"


@pytest.mark.slow
def test_an_adapter_gives_the_command_lines_numbers(
    tmp_path: Path, base: Path, files: dict[str, dict[str, str]]
) -> None:
    run = write_run(tmp_path / "run", base)
    data = write_data_files(tmp_path / "data.yaml", files)
    evaluate_command([str(run), "--tasks", "boolq", "--data-files", str(data), "--batch-size", "4", "--device", "cpu"])
    theirs = command_line(
        f"pretrained={base},peft={run / 'adapter'},dtype=float32", ["boolq"],
        write_overlays(tmp_path / "overlays", files), tmp_path / "theirs", batch_size=4,
    )  # fmt: skip
    assert_same(json.loads(results_file(run).read_text())["tasks"]["boolq"], theirs["boolq"])


def simple_evaluate(model_args: str, task: str, include: Path) -> dict[str, Any]:
    """What the harness's command line calls, with its `--seed 42`."""
    import lm_eval

    manager = TaskManager(include_path=str(include), include_defaults=False)
    results = lm_eval.simple_evaluate(
        "hf", model_args, [task], batch_size=4, device="cpu", task_manager=manager, random_seed=42,
        numpy_random_seed=42, torch_random_seed=42, fewshot_random_seed=42,
    )  # fmt: skip
    assert results is not None
    return results["samples"][task]


def test_a_task_that_draws_at_random_draws_what_the_harness_would(tmp_path: Path, base: Path) -> None:
    """In loading its documents, in writing prompts and in scoring, from Python and NumPy; after another task, too."""
    tasks = write_local_tasks(tmp_path / "tasks", ["calm", "restless"])
    (tasks / "draws.py").write_text(
        "import random, numpy\n"
        "def shuffled(docs):\n    return docs.shuffle(seed=random.randrange(1000)).select(range(7))\n"
        "def text(doc):\n    return doc['text'] + random.choice('abc') + '\\nAnswer:'\n"
        "def score(doc, results):\n    return {'acc': random.random() + numpy.random.rand()}\n"
    )
    content = yaml.safe_load((tasks / "restless.yaml").read_text())
    del content["doc_to_text"]
    functions = {"process_docs": "shuffled", "doc_to_text": "text", "process_results": "score"}
    lines = "".join(f"{key}: !function draws.{name}\n" for key, name in functions.items())
    (tasks / "restless.yaml").write_text(yaml.safe_dump(content) + lines)
    evaluate_command([
        str(base), "--tasks", "calm", "restless", "--include-path", str(tasks), "--batch-size", "4", "--device", "cpu",
        "--output", str(tmp_path / "ours"), "--samples",
    ])  # fmt: skip
    ours = task_records(tmp_path / "ours", "restless")
    theirs = sorted(simple_evaluate(f"pretrained={base}", "restless", tasks), key=lambda sample: sample["doc_id"])
    assert [record["doc"] for record in ours] == [sample["doc"] for sample in theirs]
    assert [record["prompt"][0] for record in ours] == [sample["arguments"][0][0] for sample in theirs]
    assert [record["metrics"]["acc"] for record in ours] == [sample["acc"] for sample in theirs]
    assert len({record["metrics"]["acc"] for record in ours}) == 7


def test_a_sampled_answer_of_a_model_with_an_adapter_is_the_harnesss(tmp_path: Path, base: Path) -> None:
    """The loading of an adapter draws from torch, too."""
    sampled = {
        "output_type": "generate_until", "doc_to_choice": None, "doc_to_target": "{{label}}",
        "generation_kwargs": {"until": ["\n"], "do_sample": True, "temperature": 1.0, "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    tasks = write_local_tasks(tmp_path / "tasks", ["calm", "sampled"], {"sampled": sampled})
    run = write_run(tmp_path / "run", base)
    evaluate_command([
        str(run), "--tasks", "calm", "sampled", "--include-path", str(tasks), "--batch-size", "4", "--device", "cpu",
    ])  # fmt: skip
    theirs = simple_evaluate(f"pretrained={base},peft={run / 'adapter'},dtype=float32", "sampled", tasks)
    ours = [record["answer"] for record in task_records(run, "sampled")]
    assert ours == [sample["filtered_resps"] for sample in sorted(theirs, key=lambda sample: sample["doc_id"])]
    assert len({str(answer) for answer in ours}) > 3


def test_every_task_of_the_suites_is_in_the_installed_harness_or_ours() -> None:
    from forgetting.evaluation.suite import load_suite

    known = set(TaskManager(include_path=str(OWN)).all_tasks)
    for name in ("main", "architectures"):
        for protocol in ("corrected", "published"):
            for column in load_suite(name, protocol).columns.values():
                assert set(column.tasks) <= known


@pytest.mark.parametrize("name", ["lm_eval.x", "transformers.x", "datasets.x", "huggingface_hub.x"])
def test_quiet_hides_the_warnings_of_libraries(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, handled = logging.getLogger(name), logging.Handler()
    messages: list[str] = []
    monkeypatch.setattr(handled, "emit", lambda record: messages.append(record.getMessage()))
    monkeypatch.setattr(logger, "handlers", [handled])
    monkeypatch.setattr(logging.getLogger(name.split(".")[0]), "level", logging.WARNING)
    with silence(True):
        logger.warning("hidden")
        logger.error("shown")
    with silence(False):
        logger.warning("shown, too")
    logger.warning("as before")
    assert messages == ["shown", "shown, too", "as before"]
