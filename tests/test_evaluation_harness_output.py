"""The output of `lm_eval --log_samples`, compared."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from evaluation_files import write_bigram_model, write_lines, write_local_tasks
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.evaluation.compare import compare

TIME = "2026-01-02T03-04-05.678901"


def write_output(
    folder: Path, scores: dict[str, Sequence[float]], time: str = TIME, metric: str = "acc", filter_name: str = "none",
    prompt: str = "p", **changes: Any,
) -> Path:  # fmt: skip
    """What the harness's command writes of these documents' scores; `changes` replace keys of the results."""
    for task, values in scores.items():
        samples = [
            {"doc_id": i, "doc_hash": f"{task}{i}", "prompt_hash": f"{prompt}{i}", "filter": filter_name, metric: value}
            for i, value in enumerate(values)
        ]
        write_lines(folder / f"samples_{task}_{time}.jsonl", reversed(samples))
    results = {
        "results": {
            task: {"alias": task, f"{metric},{filter_name}": sum(values) / len(values), f"{metric}_stderr,none": "N/A"}
            for task, values in scores.items()
        },
        "configs": {
            task: {"metric_list": [{"metric": metric}], "filter_list": [{"name": filter_name}]} for task in scores
        },
        "versions": dict.fromkeys(scores, 1.0), "n-shot": dict.fromkeys(scores, 0), "chat_template": None,
        "higher_is_better": {task: {metric: True} for task in scores}, "config": {"fewshot_seed": 1234},
        "n-samples": {task: {"original": 99, "effective": len(values)} for task, values in scores.items()},
    }  # fmt: skip
    (folder / f"results_{time}.json").write_text(json.dumps(results | changes))
    return folder


A, B = [1, 1, 1, 1, 0, 1], [1, 0, 0, 0, 1, 1]


def test_documents_are_paired_by_their_hash_and_not_by_their_place(tmp_path: Path) -> None:
    a, b = write_output(tmp_path / "a", {"t": A}), write_output(tmp_path / "b", {"t": B})
    (file,) = b.glob("samples_*")
    file.write_text("".join(sorted(file.read_text().splitlines(keepends=True))))
    (task,), columns, notes = compare(a, b)
    assert (task.a, task.b, task.documents, task.seeds) == pytest.approx((100 * 5 / 6, 50, 6, 1))
    assert task.test is not None
    assert (task.test.only_a, task.test.only_b, task.test.p) == (3, 1, pytest.approx(2 * (1 + 4) / 2**4))
    assert (columns, notes) == ([], [])


def test_the_p_of_several_tasks_are_adjusted_and_other_scores_have_a_t_test(tmp_path: Path) -> None:
    a = write_output(tmp_path / "a", {"t": [1.0] * 9 + [0.0], "u": [0.3, 0.5, 0.9, 0.2]})
    b = write_output(tmp_path / "b", {"t": [0.0] * 9 + [0.0], "u": [0.2, 0.1, 0.7, 0.2]})
    tasks, (average,), _ = compare(a, b)
    first, second = (task.test for task in tasks)
    assert first is not None
    assert second is not None
    assert (first.p, first.adjusted_p) == pytest.approx((2 / 2**9, 2 * 2 / 2**9))
    assert (second.only_a, second.adjusted_p) == (None, second.p)
    assert second.p > first.adjusted_p
    assert average.difference == pytest.approx((90 + 17.5) / 2)
    assert average.test is None


@pytest.mark.parametrize(("changes", "message"), [
    ({"versions": {"t": 2.0}}, r"evaluated t differently: version 1\.0 and 2\.0.*--tasks leaves a task out"),
    ({"n-shot": {"t": 5}}, "evaluated t differently: few-shot examples 0 and 5"),
    ({"metric": "f1"}, "evaluated t differently: metric acc and f1"),
    ({"filter_name": "strict"}, "evaluated t differently: metric acc and acc,strict"),
    ({"chat_template": "{{ messages }}"}, "evaluated t differently: chat template False and True"),
    ({"system_instruction": "Be brief."}, "evaluated t differently: system instruction None and Be brief."),
    ({"prompt": "other"}, r"evaluated t with different prompts \(6 of 6\)"),
])  # fmt: skip
def test_what_was_evaluated_differently_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    a, b = write_output(tmp_path / "a", {"t": A}), write_output(tmp_path / "b", {"t": A}, **changes)
    with pytest.raises(UserError, match=message):
        compare(a, b)
    assert compare(b, b)[0][0].difference == 0


def test_other_documents_and_other_tasks_are_refused_and_tasks_are_chosen(tmp_path: Path) -> None:
    a = write_output(tmp_path / "a", {"t": A, "u": A})
    with pytest.raises(UserError, match=r"evaluated t on different documents \(6 and 4, 4 of them the same\).*--limit"):
        compare(a, write_output(tmp_path / "b", {"t": A[:4]}), tasks=["t"])
    c = write_output(tmp_path / "c", {"t": B, "v": B})
    with pytest.raises(UserError, match=r"a was not evaluated on v, and another was.*--tasks t"):
        compare(a, c)
    assert [task.name for task in compare(a, c, tasks=["t"]).tasks] == ["t"]
    with pytest.raises(UserError, match=r"--tasks names u; the tasks that .* both finished are t"):
        compare(a, c, tasks=["u"])


def test_models_may_have_chat_templates_of_their_own_but_not_other_few_shot_examples(tmp_path: Path) -> None:
    options: dict[str, Any] = {"n-shot": {"t": 2}, "chat_template": "x"}
    a = write_output(tmp_path / "a", {"t": A}, **options)
    b = write_output(tmp_path / "b", {"t": B}, prompt="other", **{**options, "chat_template": "y"})
    assert compare(a, b)[0][0].documents == 6
    c = write_output(tmp_path / "c", {"t": B}, config={"fewshot_seed": 5}, **options)
    with pytest.raises(UserError, match="evaluated t differently: few-shot seed 1234 and 5"):
        compare(a, c)


def test_the_latest_evaluation_of_a_task_is_compared_and_a_file_is_its_own(tmp_path: Path) -> None:
    earlier, later = "2026-01-02T03-04-05.1", "2026-01-03T03-04-05.1"
    folder = tmp_path / "out/model"
    write_output(folder, {"t": A, "u": A}, earlier)
    write_output(folder, {"t": B}, later)
    other = write_output(tmp_path / "b", {"t": A, "u": A})
    comparison = compare(tmp_path / "out", other)
    assert [task.difference for task in comparison.tasks] == pytest.approx([-100 / 3, 0])
    assert comparison.notes == [f"{folder} holds several evaluations of a task; the latest is compared: t (2, the "
                                f"latest {later})."]  # fmt: skip
    assert [task.name for task in compare(folder / f"results_{earlier}.json", other).tasks] == ["t", "u"]
    for time, difference in ((earlier, 0), (later, -100 / 3)):
        (task,), *_ = compare(folder / f"samples_t_{time}.jsonl", other / f"samples_t_{TIME}.jsonl")
        assert task.difference == pytest.approx(difference)


def test_a_metric_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_output(tmp_path / "a", {"t": A}), write_output(tmp_path / "b", {"t": B})
    for folder, values in ((a, B), (b, A)):
        file = folder / f"samples_t_{TIME}.jsonl"
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        write_lines(file, [{**sample, "acc_norm": values[sample["doc_id"]]} for sample in samples])
        content = json.loads((folder / f"results_{TIME}.json").read_text())
        content["results"]["t"]["acc_norm,none"] = sum(values) / 6
        content["higher_is_better"]["t"]["acc_norm"] = True
        (folder / f"results_{TIME}.json").write_text(json.dumps(content))
    assert compare(a, b)[0][0].difference == pytest.approx(100 / 3)
    main(["compare", str(a), str(b), "--metrics", "t=acc_norm", "--output", str(tmp_path / "out.json")])
    assert "acc_norm" in capsys.readouterr().out
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["tasks"][0]["difference"] == pytest.approx(-100 / 3)
    assert content["tasks"][0]["test"]["metric"] == "acc_norm"
    for metrics, message in (
        ("t=bleu", "--metrics wants bleu of t, which has acc,none, acc_norm,none"),
        ("u=acc", "--metrics names the task u; there are t"), ("t", "--metrics t: TASK=METRIC"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            main(["compare", str(a), str(b), "--metrics", metrics])


def test_damaged_and_missing_output_is_said(tmp_path: Path) -> None:
    a = write_output(tmp_path / "a", {"t": A})
    samples, results = a / f"samples_t_{TIME}.jsonl", a / f"results_{TIME}.json"
    text = samples.read_text()
    samples.write_text(text[:-20])
    with pytest.raises(UserError, match=r"samples_t_.* is damaged: a JSON object per line"):
        compare(a, a)
    samples.write_text("".join(text.splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match=r"holds 5 documents, 5 of them different, and its results 6: it is damaged"):
        compare(a, a)
    samples.write_text(text.replace('"acc": 0', '"acc": 1'))
    with pytest.raises(UserError, match="acc of t in .* is no mean over documents"):
        compare(a, a)
    samples.write_text(text)
    content = json.loads(results.read_text())
    results.write_text(json.dumps(content | {"results": {}}))
    with pytest.raises(UserError, match=r"The results of .* are not those of samples_t"):
        compare(a, a)
    results.unlink()
    with pytest.raises(UserError, match=r"no results_2026.*Run `lm_eval` again"):
        compare(a, a)
    results.write_text(json.dumps(content))
    samples.unlink()
    for name in (a, results):
        with pytest.raises(UserError, match="results without documents, which a comparison needs"):
            compare(name, name)
    for name in ("x/m", "x/n"):
        write_output(tmp_path / name, {"t": A})
    with pytest.raises(UserError, match=r"output of several models: give one of .*m, .*n"):
        compare(tmp_path / "x", tmp_path / "x/m")


def test_output_of_the_harness_is_not_compared_with_anything_else(tmp_path: Path) -> None:
    from test_evaluation_compare import write_results

    a = write_output(tmp_path / "a", {"t": A})
    with pytest.raises(UserError, match=r"a holds output of `lm_eval`, and .*b results of `evaluate`"):
        compare(a, write_results(tmp_path / "b", {"t": A}))
    with pytest.raises(UserError, match=r"no folder .*gone"):
        compare(a, tmp_path / "gone")
    with pytest.raises(UserError, match="leave --suite, --protocol and --apply-chat-template out"):
        compare(a, a, suite="main")
    with pytest.raises(UserError, match="--metrics is for the output of `lm_eval`"):
        compare(tmp_path / "b", tmp_path / "b", metrics={"t": "acc"})


def test_what_the_harness_itself_writes_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its numbers come back from its documents; with a chat template, too."""
    tasks = write_local_tasks(tmp_path / "tasks", ["first", "second"])
    models = [write_bigram_model(tmp_path / name, after_answer=name, sharpness=9) for name in ("Q", "t")]
    tokenizer = AutoTokenizer.from_pretrained(models[1])
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(models[1])
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)  # it asks pip and the drivers: minutes
    simple_evaluate: Any = lm_eval.simple_evaluate
    for number, (model, chat) in enumerate([(models[0], False), (models[1], False), (models[1], True)]):
        tracker = EvaluationTracker(output_path=str(tmp_path / f"out-{number}"))
        results = simple_evaluate(
            "hf", f"pretrained={model}", ["first", "second"], batch_size=4, device="cpu", evaluation_tracker=tracker,
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False), apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )  # fmt: skip
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in ("first", "second"):
            tracker.save_results_samples(task_name=task, samples=samples[task])
    comparison = compare(tmp_path / "out-0", tmp_path / "out-1")
    (file,) = (tmp_path / "out-0").rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    assert [task.a for task in comparison.tasks] == [100 * results[task]["acc,none"] for task in ("first", "second")]
    assert {task.documents for task in comparison.tasks} == {12}
    with pytest.raises(UserError, match="evaluated first differently: chat template False and True"):
        compare(tmp_path / "out-1", tmp_path / "out-2")
    main(["compare", str(tmp_path / "out-2"), str(tmp_path / "out-2")])
    assert "12" in capsys.readouterr().out
