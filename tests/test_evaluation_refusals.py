"""What is refused before a model is loaded, and where results of a model go."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from evaluation_files import write_bigram_model, write_local_tasks, write_suite
from safetensors.torch import load_file, save_file
from test_evaluation_run import write_run
from transformers import AutoModelForCausalLM

import forgetting.evaluation.evaluate as evaluation
from forgetting.cli import main
from forgetting.corpus.encoding import tokenizer_hash
from forgetting.errors import UserError
from forgetting.evaluation.harness import load_model
from forgetting.evaluation.naming import base_folder, name_of_tasks, results_name
from forgetting.evaluation.suite import Suite
from forgetting.evaluation.target import find_target
from forgetting.model.backbone import backbone_identity, load_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bigram_model(tmp_path_factory.mktemp("base") / "bigram")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "suite.yaml", ["first"], write_local_tasks(tmp_path / "tasks", ["first"]))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when a model is loaded: what is refused is refused before."""

    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(evaluation, "load_model", load)


def evaluate(target: Path, suite: Path, *options: str) -> None:
    main(["evaluate", str(target), "--suite", str(suite), *options])


def trained_on(run: Path, base: Path) -> None:
    inputs = {"base": backbone_identity(str(base))}
    (run / "provenance.json").write_text(json.dumps({"format": 1, "inputs": inputs}))


def test_a_base_that_was_replaced_since_is_refused_with_both_named(tmp_path: Path, base: Path, suite: Path) -> None:
    mine = tmp_path / "base"
    shutil.copytree(base, mine)
    run = write_run(tmp_path / "run", mine)
    trained_on(run, mine)
    evaluate(run, suite)
    before = backbone_identity(str(mine))["hash"]
    write_bigram_model(mine, sharpness=10.0)
    now = backbone_identity(str(mine))["hash"]
    for target in (run, run / "adapter"):
        with pytest.raises(UserError, match=rf"trained on the base .*{before}.* now has the hash {now}: the base was"):
            evaluate(target, suite)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("content", ["[]", "{}", '{"inputs": []}', '{"inputs": {"base": null}}', "{", "\x00"])
def test_a_damaged_provenance_is_refused(tmp_path: Path, base: Path, suite: Path, content: str) -> None:
    run = write_run(tmp_path / "run", base)
    (run / "provenance.json").write_text(content)
    with pytest.raises(UserError, match=r"provenance.json .*run its `fit` again"):
        evaluate(run, suite)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("content", ["[]", "{}", '{"base_model_name_or_path": 3}', "{", "null"])
def test_a_damaged_adapter_configuration_is_refused(tmp_path: Path, base: Path, suite: Path, content: str) -> None:
    run = write_run(tmp_path / "run", base)
    (run / "adapter/adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=r"adapter_config.json"):
        evaluate(run, suite)
    (run / "fit.yaml").write_text("- a list")
    with pytest.raises(UserError, match=r"adapter_config.json|fit.yaml"):
        evaluate(run, suite)


@pytest.mark.usefixtures("no_model")
def test_a_task_cannot_write_outside(tmp_path: Path, base: Path) -> None:
    tasks = write_local_tasks(tmp_path / "tasks", ["first"])
    content = yaml.safe_load((tasks / "first.yaml").read_text())
    (tasks / "first.yaml").write_text(yaml.safe_dump({**content, "task": "../../../evil"}))
    out = tmp_path / "a/b/c/out"
    with pytest.raises(UserError, match=r"'../../../evil' is no name of something inside"):
        main(["evaluate", str(base), "--tasks", "../../../evil", "--include-path", str(tasks), "--output", str(out)])
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(("options", "message"), [
    (["--device", "xyz"], "--device xyz is no device"),
    (["--device", "cuda:99"], "cuda:99 is not on this machine. It has: cpu"),
    (["--device", "meta"], "meta is not on this machine"),
    (["--seed", "-1"], r"the seed is -1; it must be in \[0"),
    (["--seed", str(2**32)], r"the seed is 4294967296"),
    (["--batch-size", "0"], "the batch size is 0"),
    (["--batch-size", "-3"], "the batch size is -3"),
    (["--batch-size", ""], "the batch size is ;"),
    (["--documents", "0"], "documents 0; it must be at least 1"),
    (["--tasks", ","], "--tasks names no task"),
    (["--protocol", "wrong"], "no protocol wrong. Known: corrected"),
    (["--revision", "main"], "--revision is only for a model on the hub"),
])  # fmt: skip
def test_a_value_out_of_its_range_is_said_first(base: Path, suite: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(base, suite, *options)


@pytest.mark.usefixtures("no_model")
def test_shots_cannot_be_negative_nor_a_suite_have_any_name(tmp_path: Path, base: Path, suite: Path) -> None:
    with pytest.raises(UserError, match="shots -1; it must be at least 0"):
        main(["evaluate", str(base), "--tasks", "first", "--shots", "-1"])
    for name in ("../out", "main.trial", ""):
        suite.write_text(yaml.safe_dump({**yaml.safe_load(suite.read_text()), "name": name}))
        with pytest.raises(UserError, match=rf"the suite is called {re.escape(repr(name))}"):
            evaluate(base, suite)


# --- names


def test_different_models_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    targets = ["org/model", "/org/model", "./org/model", "gpt2", "./gpt2", ".", "..", "/", "worlds/7/base", "./a/-b",
               "./a-/b", "./a--b", "./a/b", "./a%2Db", f"./{'x' * 300}/a", f"./{'x' * 300}/b",
               "./org--model"]  # fmt: skip
    folders = [base_folder(target) for target in targets]
    assert len(set(folders)) == len(targets)
    assert len({folder.name for folder in folders}) == len(targets)
    for folder in folders:
        assert folder.parent == Path("base")
        assert ".." not in folder.parts
        assert len(folder.name) < 250
    same = ["worlds/7/base", "./worlds/7/base", "worlds/7/../7/base/", str(tmp_path / "worlds/7/base")]
    assert {base_folder(target) for target in same} == {Path("base/folder=worlds--7--base")}
    assert base_folder("org/model") == Path("base/org--model")
    (tmp_path / "org/model").mkdir(parents=True)
    assert base_folder("org/model") == base_folder("./org/model")
    with pytest.raises(UserError, match="a model on the hub cannot be called so"):
        base_folder("org--model")


def test_a_model_in_a_folder_above_is_kept_below_runs(
    tmp_path: Path, base: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model/here").mkdir()
    monkeypatch.chdir(tmp_path / "model/here")
    main(["evaluate", "..", "--suite", str(suite), "--device", "cpu"])
    (file,) = tmp_path.rglob("results*.json")
    assert file.is_relative_to(tmp_path / "model/here/runs/base")


def test_results_of_different_suites_protocols_and_tasks_have_different_names() -> None:
    names = [
        results_name(suite, protocol, trial)
        for suite in ("main", "published", "trial", name_of_tasks(["a"], None), name_of_tasks(["a"], 2),
                      name_of_tasks(["b"] * 99, None), name_of_tasks(["b"] * 98, None), name_of_tasks(["../a"], None))
        for protocol in ("corrected", "published", "token_stop")
        for trial in (False, True)
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert all("/" not in name and len(name) < 200 for name in names)


# --- 4 bits


def test_a_run_in_four_bits_needs_a_gpu_and_is_loaded_in_four_bits(
    tmp_path: Path, base: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: refused; and what the harness would hand to transformers is caught at its door."""
    run = write_run(tmp_path / "run", base)
    (run / "fit.yaml").write_text("model: {revision: null, dtype: bfloat16, four_bit: true}\n")
    with pytest.raises(UserError, match=r"base in 4 bits \(model.four_bit\), which needs a CUDA device; this is cpu"):
        evaluate(run, suite, "--device", "cpu")
    arguments = find_target(str(run)).model_arguments("bfloat16")
    assert arguments["load_in_4bit"] is True
    seen: dict[str, Any] = {}

    def refuse(*_: object, **options: Any) -> None:
        seen.update(options)
        raise OSError("caught")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    with pytest.raises(UserError, match="caught"):
        load_model(arguments, Suite("x", {}), "cpu", merge=False)
    quantization = seen["quantization_config"]
    assert (quantization.load_in_4bit, quantization.bnb_4bit_quant_type) == (True, "nf4")
    assert quantization.bnb_4bit_compute_dtype == torch.bfloat16
    assert not {name for name in seen if name.startswith(("load_in", "bnb"))}
    seen.clear()
    with pytest.raises(UserError, match="caught"):
        load_model({"pretrained": str(base)}, Suite("x", {}), "cpu", merge=False)
    assert seen["quantization_config"] is None


# --- experiments


def test_an_experiments_folder_is_each_of_its_seeds_and_one_that_fails_stops_no_other(
    tmp_path: Path, base: Path, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiments = [tmp_path / name for name in ("a", "b")]
    for number, experiment in enumerate(experiments):
        for seed in (0, 1, 10):
            write_run(experiment / f"seed-{seed}", base, scale=0.1 + number + seed)
        write_run(experiment / "seed-0.old", base)
    (experiments[0] / "seed-0/adapter/adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"1 of 3 runs were not evaluated: .*seed-0 \(.*has no adapter_model"):
        evaluate(experiments[0], suite, "--device", "cpu")
    done = sorted(file.parent.name for file in experiments[0].rglob("results*.json"))
    assert done == ["seed-1", "seed-10"]
    with pytest.raises(UserError, match="holds 3 runs, whose results --output would mix"):
        evaluate(experiments[0], suite, "--output", str(tmp_path / "out"))
    with pytest.raises(UserError) as refused:
        main(["compare", *map(str, experiments), "--suite", "suite"])
    advice = re.search(r"python -m forgetting (evaluate .*)$", str(refused.value))
    assert advice, refused.value
    command = advice[1].replace("<the file of suite>", str(suite))
    main([*command.split(), "--device", "cpu"])
    capsys.readouterr()
    main(["compare", *map(str, experiments), "--resamples", "10"])
    assert "2 pair(s) of runs" in capsys.readouterr().out


def change_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_gets_no_number(tmp_path: Path, base: Path, suite: Path, value: float) -> None:
    model = tmp_path / "model"
    shutil.copytree(base, model)

    def damage(weights: dict[str, torch.Tensor]) -> None:
        next(iter(weights.values())).view(-1)[0] = value

    change_weights(model, damage)
    with pytest.raises(UserError, match="holds numbers that are not finite"):
        evaluate(model, suite)
    assert not (tmp_path / "runs").exists()


def test_a_model_whose_weights_are_not_those_of_its_configuration_gets_no_number(
    tmp_path: Path, base: Path, suite: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(base, model)
    configuration = json.loads((model / "config.json").read_text())
    key = "num_hidden_layers" if "num_hidden_layers" in configuration else "num_layers"
    (model / "config.json").write_text(json.dumps({**configuration, key: configuration[key] + 1}))
    with pytest.raises(UserError, match="are not those of the .* they lack"):
        evaluate(model, suite)


def test_a_tokenizer_that_was_replaced_since_is_refused(tmp_path: Path, base: Path, suite: Path) -> None:
    mine = tmp_path / "base"
    shutil.copytree(base, mine)
    run = write_run(tmp_path / "run", mine)
    trained_on(run, mine)
    provenance = json.loads((run / "provenance.json").read_text())
    provenance["inputs"]["tokenizer"] = tokenizer_hash(load_tokenizer(str(mine)))
    (run / "provenance.json").write_text(json.dumps(provenance))
    evaluate(run, suite)
    tokenizer = json.loads((mine / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (mine / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="trained with another tokenizer than"):
        evaluate(run, suite)
