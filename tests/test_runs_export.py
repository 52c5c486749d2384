"""A finished run as a folder to share, on the hub, and its responses before and after training."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import HfApi, parse_eval_result_entries
from peft import PeftModel
from small_experiment import METHOD, RUN, adapter_bytes
from test_runs_card import run_snippet
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting.cli import main
from forgetting.corpus.exported_chat import rendered_ids
from forgetting.errors import UserError
from forgetting.evaluation.results import FORMAT
from forgetting.model.adapter_folder import adapter_hash
from forgetting.runs.generate import Pair, Response, Sampling, generate, read_prompts, user_prompt
from forgetting.runs.generate_command import _show
from forgetting.runs.trained import find_trained

COMMIT = "0123456789" * 4
TOKEN = "hf_secretsecretsecret"


@pytest.fixture(scope="module")
def trained_experiment(scored_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "work"
    shutil.copytree(scored_experiment, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config", METHOD])
    return folder


@pytest.fixture
def trained(trained_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy with a finished run, to be in and to change."""
    folder = tmp_path / "work"
    shutil.copytree(trained_experiment, folder)
    monkeypatch.chdir(folder)
    return folder


def base_model():
    return AutoModelForCausalLM.from_pretrained("backbone", dtype=torch.float32)


def write_results(name: str, adapter: str, **task: object) -> None:
    """A results file of two tasks, the second of which has its documents from a file."""
    entry = {
        "status": "ok", "identity": "x", "metric": "acc", "metrics": {"acc": 0.625}, "documents": 8,
        "documents_total": 8, "shots": 5, "data": {"path": "org/questions", "name": None, "revision": COMMIT},
    }  # fmt: skip
    local = {**entry, "data": {"path": "json", "name": None, "revision": None}}
    columns = {"Both": {"value": 62.5, "stderr": 1.0, "documents": 16, "tasks": ["one", "two"], "metric": "acc"}}
    content = {
        "format": FORMAT, "suite": "main", "protocol": "corrected", "average": 62.5, "columns": columns,
        "target": {"adapter": {"hash": adapter}, "merged": False}, "tasks": {"one": {**entry, **task}, "two": local},
        "versions": {"lm_eval": "0.4.13"},
    }  # fmt: skip
    (RUN / name).write_text(json.dumps(content))


def test_merged_logits_are_the_adapters(trained, capsys):
    main(["export", str(RUN), "merged", "--merge"])
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype="auto")
    adapted = PeftModel.from_pretrained(base_model(), RUN / "adapter")
    ids = torch.arange(2, 34)[None]
    with torch.no_grad():
        after, expected, before = merged(ids).logits, adapted(ids).logits, base_model()(ids).logits
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-4)
    assert (before - expected).abs().max() > 0.1  # the control
    assert type(merged).__name__ == type(base_model()).__name__
    assert merged.generation_config.eos_token_id in (1, [1])
    assert not list(Path("merged").glob("adapter*"))
    card = Path("merged/README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "transformers"
    texts = [path for path in Path("merged").iterdir() if path.suffix != ".safetensors"]
    assert not [path for path in texts if str(trained) in path.read_text()]
    capsys.readouterr()
    assert "<|user|>" in run_snippet(card, Path("merged"), capsys)


def test_an_exported_adapter_is_the_runs(trained, capsys):
    main(["export", str(RUN), "shared"])
    assert Path("shared/adapter_model.safetensors").read_bytes() == adapter_bytes()
    assert adapter_hash(Path("shared")) == adapter_hash(RUN / "adapter")
    own, messages = AutoTokenizer.from_pretrained(RUN / "adapter"), user_prompt("What is 2?")
    assert rendered_ids(AutoTokenizer.from_pretrained("shared"), messages) == rendered_ids(own, messages)
    assert "## Evaluation" not in Path("shared/README.md").read_text()
    assert not Path("shared/.eval_results").exists()
    assert "fill in `license`" in capsys.readouterr().out


def test_results_of_this_adapter_are_in_the_card_and_for_the_hub(trained, capsys):
    write_results("results.main.json", adapter_hash(RUN / "adapter"))
    write_results("results.main.published.json", "another")
    write_results("results.other.trial.json", adapter_hash(RUN / "adapter"))
    main(["export", str(RUN), "shared"])
    card = Path("shared/README.md").read_text()
    assert "| Both | acc | 62.50 ± 1.00 | 16 |" in card
    assert card.count("Suite `main`") == 1
    assert "results.main.published.json is of another adapter" in capsys.readouterr().out
    (file,) = Path("shared/.eval_results").iterdir()
    assert file.name == "main.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value, entry.dataset_revision) == (
        "org/questions",
        "one",
        62.5,
        COMMIT,
    )
    assert entry.notes == "lm-evaluation-harness 0.4.13, acc, 5-shot, protocol corrected"


def test_a_part_of_the_documents_is_no_result_for_the_hub(trained):
    write_results("results.main.json", adapter_hash(RUN / "adapter"), documents=7)
    main(["export", str(RUN), "shared"])
    assert not Path("shared/.eval_results").exists()


class Hub:
    """Stands in for the hub's API: what was asked of it."""

    def __init__(self, patch: pytest.MonkeyPatch, private: bool = True, error: Exception | None = None) -> None:
        self.created: list[tuple[str, bool]] = []
        self.uploaded: dict[str, bytes] = {}
        self.error = error

        def create_repo(api, repo_id, private, exist_ok):
            assert exist_ok
            self.created.append((repo_id, private))
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(api, repo_id, folder_path, commit_message):
            if self.error:
                raise self.error
            files = [path for path in Path(folder_path).rglob("*") if path.is_file()]
            self.uploaded = {path.relative_to(folder_path).as_posix(): path.read_bytes() for path in files}
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/{commit_message}")

        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(HfApi, "create_repo", create_repo)
        patch.setattr(HfApi, "model_info", lambda api, repo_id: SimpleNamespace(private=private))
        patch.setattr(HfApi, "upload_folder", upload_folder)


def test_a_push_is_private_and_holds_the_folder(trained, monkeypatch, capsys):
    hub = Hub(monkeypatch)
    main(["export", str(RUN), "merged", "--merge", "--push", "mine"])
    assert hub.created == [("mine", True)]
    assert {"model.safetensors", "README.md", "tokenizer.json", "chat_template.jinja", "config.json"} <= set(
        hub.uploaded
    )
    output = capsys.readouterr().out
    assert "https://hub/me/mine/tiny/forgetting, seed 0" in output
    assert TOKEN not in output


def test_a_public_repository_is_pushed_to_on_request_alone(trained, monkeypatch):
    hub = Hub(monkeypatch, private=False)
    with pytest.raises(UserError, match=r"me/mine is there already and public"):
        main(["export", str(RUN), "merged", "--merge", "--push", "mine"])
    assert not Path("merged").exists()
    assert not hub.uploaded
    main(["export", str(RUN), "merged", "--merge", "--push", "mine", "--public"])
    assert hub.created[-1] == ("mine", False)
    assert hub.uploaded


def test_a_failed_upload_keeps_the_folder_and_hides_the_token(trained, monkeypatch):
    assert huggingface_hub.get_token() != TOKEN
    Hub(monkeypatch, error=OSError(f"403 for {TOKEN}"))
    with pytest.raises(UserError, match=r"`hf upload me/mine merged` tries again") as caught:
        main(["export", str(RUN), "merged", "--merge", "--push", "mine"])
    assert "403 for <token>" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert caught.value.__suppress_context__
    assert Path("merged/model.safetensors").is_file()


def test_a_hub_out_of_reach_is_noticed_before_anything_is_written(trained, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UserError, match=r"The hub did not take mine: OfflineModeIsEnabled: .* Check the id") as caught:
        main(["export", str(RUN), "merged", "--merge", "--push", "mine"])
    assert TOKEN not in str(caught.value)
    assert not Path("merged").exists()


def test_an_interrupted_export_leaves_nothing(trained, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("forgetting.runs.model_folder.model_card", killed)
    with pytest.raises(KeyboardInterrupt):
        main(["export", str(RUN), "merged", "--merge"])
    assert not [path for path in Path.cwd().iterdir() if "merged" in path.name]


def test_a_folder_that_cannot_be_replaced_is_an_error_and_not_a_model(trained):
    Path("empty").mkdir()
    main(["export", str(RUN), "empty"])  # one that can
    assert Path("empty/adapter_config.json").is_file()
    Path("elsewhere").mkdir()
    Path("link").symlink_to("elsewhere")
    with pytest.raises(UserError, match=r"link cannot be replaced .*: another process made it .* or it is a link"):
        main(["export", str(RUN), "link"])
    assert not list(Path("elsewhere").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "folder"], r"none is no run: it has no provenance.json"),
        ([str(RUN.parent), "folder"], r"holds 1 run\(s\): name one of them \(runs/tiny/forgetting/seed-0\)"),
        ([str(RUN), "backbone"], r"backbone exists already"),
        ([str(RUN)], r"either a FOLDER for the model, or --token-weights"),
        ([str(RUN), "folder", "--token-weights", "w.parquet"], r"either a FOLDER for the model, or --token-weights"),
        ([str(RUN), "--token-weights", "w.parquet", "--merge"], r"--merge and --push are for a model FOLDER"),
        ([str(RUN), "folder", "--public"], r"give --push ID with it"),
        ([str(RUN), "folder", "--push", "mine"], r"The base model of .* is the folder backbone, which nobody else has"),
    ],
)
def test_what_cannot_be_exported_is_refused(trained, arguments, message):
    before = sorted(Path.cwd().iterdir())
    with pytest.raises(UserError, match=message):
        main(["export", *arguments])
    assert sorted(Path.cwd().iterdir()) == before


def test_a_run_on_four_bits_is_not_merged(trained):
    content = yaml.safe_load((RUN / "fit.yaml").read_text())
    content["model"]["four_bit"] = True
    (RUN / "fit.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"trained on a base in 4 bits, and merging would round"):
        main(["export", str(RUN), "merged", "--merge"])
    assert not Path("merged").exists()


def test_another_base_is_refused(trained):
    from conftest import write_backbone

    write_backbone(Path("backbone"), seed=1)
    for command in (["export", str(RUN), "merged", "--merge"], ["generate", str(RUN), "--prompt", "What?"]):
        with pytest.raises(UserError, match=r"the base was replaced since"):
            main(command)


def test_greedy_responses_are_those_of_base_and_adapter(trained, capsys):
    Path("prompts.jsonl").write_text(
        '{"prompt": "What is 5 plus 5?"}\n\n'
        '{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 plus 1?"}]}\n'
    )
    options = ["--prompts", "prompts.jsonl", "--max-new-tokens", "12", "--output", "out.jsonl"]
    main(["generate", str(RUN), *options])
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(RUN / "adapter")
    models = {"before": base_model(), "after": PeftModel.from_pretrained(base_model(), RUN / "adapter")}
    for row, messages in zip(rows, read_prompts(Path("prompts.jsonl")), strict=True):
        assert row["messages"] == messages
        for name, model in models.items():
            ids = rendered_ids(tokenizer, messages, generation=True)
            count = len(ids)
            while len(ids) < count + 12 and ids[-1] != 1:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            assert row[f"{name}_complete"] == (ids[-1] == 1)
            assert row[name] == tokenizer.decode(ids[count:-1] if ids[-1] == 1 else ids[count:])
    assert any(row["before"] != row["after"] for row in rows)
    shown = capsys.readouterr().out
    assert re.search(r"before.*after", shown)
    assert "What is 5 plus 5?" in shown


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.txt"])
def test_a_prompt_is_the_same_with_a_mark_of_byte_order_and_separators_of_unicode(tmp_path: Path, name: str) -> None:
    prompts = ["One\u2028line, \x85 and\x0cmore", "Two"]
    lines = prompts if name == "a.txt" else [json.dumps({"prompt": text}, ensure_ascii=False) for text in prompts]
    for ends in ("\n", "\r\n"):
        (tmp_path / name).write_text(ends.join([*lines, ""]), encoding="utf-8-sig", newline="")
        assert read_prompts(tmp_path / name) == [user_prompt(text) for text in prompts]


def test_prompts_and_responses_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _show(Pair(user_prompt("red \x1b[31m"), Response("up \x1b[A", True), Response("bell \x9b", False)))
    shown = capsys.readouterr().out
    assert {"red", "up", "bell"} <= set(shown.split())
    assert not {"\x1b", "\x9b"} & set(shown)


def test_a_response_ends_where_the_template_ends_it(trained, monkeypatch):
    run = find_trained(str(RUN))
    first = next(generate(run, [user_prompt("What is 5?")], Sampling(8), "cpu")).after
    assert not first.is_complete
    ids = AutoTokenizer.from_pretrained("backbone").encode(first.text, add_special_tokens=False)
    chat = replace(run.chat(run.load_tokenizer()), end_id=ids[3])
    monkeypatch.setattr(type(run), "chat", lambda self, tokenizer: chat)
    ended = next(generate(run, [user_prompt("What is 5?")], Sampling(8), "cpu")).after
    assert ended.is_complete
    assert ended.text == run.load_tokenizer().decode(ids[: ids.index(ids[3])])


def test_draws_follow_from_the_seed_and_the_prompt_alone(trained):
    run = find_trained(str(RUN))
    state = torch.get_rng_state()
    first, second = user_prompt("What is 5?"), user_prompt("What is 6?")

    def responses(prompts, seed):
        return [(pair.before.text, pair.after.text) for pair in generate(run, prompts, Sampling(8, 1.0, seed), "cpu")]

    both = responses([first, second], 0)
    assert responses([second], 0) == both[1:]
    assert responses([second], 1) != both[1:]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"either --prompts FILE or --prompt TEXT"),
        (["--prompt", "x", "--prompts", "y"], r"either --prompts FILE or --prompt TEXT"),
        (["--prompts", "none.txt"], r"There is no file none.txt of prompts"),
        (["--prompts", "bad.jsonl"], r"bad.jsonl, line 2: an object with \"prompt\""),
        (["--prompts", "broken.jsonl"], r"broken.jsonl, line 1 is not valid JSON"),
        (["--prompts", "empty.txt"], r"empty.txt holds no prompt"),
        (["--prompt", "x", "--output", "runs"], r"--output runs is a folder; give a file"),
        (["--prompt", "x", "--temperature", "-1"], r"--temperature is -1"),
        (["--prompt", "x", "--max-new-tokens", "0"], r"--max-new-tokens is 0"),
        (["--prompt", "x", "--seed", "-1"], r"--seed is -1"),
        (["--prompt", "x" * 300], r"so there is no room for a response"),
        (["--prompt", "x", "--device", "nowhere"], r"--device nowhere is no device"),
    ],
)
def test_prompts_and_options_that_cannot_be_used_are_refused(trained, options, message):
    Path("bad.jsonl").write_text('{"prompt": "x"}\n{"messages": [{"role": "assistant", "content": "x"}]}\n')
    Path("broken.jsonl").write_text("{\n")
    Path("empty.txt").write_text("\n")
    with pytest.raises(UserError, match=message):
        main(["generate", str(RUN), *options])
