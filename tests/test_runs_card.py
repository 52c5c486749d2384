"""The folder of an adapter: its tokenizer and card, which its identity and its check sums do not depend on."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from corpus_tokenizers import dialogue, encode
from small_experiment import METHOD, RUN
from transformers import AutoTokenizer

from forgetting.cli import main
from forgetting.corpus.exported_chat import rendered_ids
from forgetting.corpus.templates import template_for
from forgetting.model.adapter_folder import CONFIG, SUMS, WEIGHTS, adapter_hash, refuse_damaged_adapter
from forgetting.runs import card, records


def run_snippet(card: str, folder: Path, capsys) -> str:
    """Execute a card's block of Python on a folder; its output."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert 'folder = "."' in code
    exec(code.replace('folder = "."', f'folder = "{folder}"').replace("=256", "=3"), {})
    return capsys.readouterr().out


def test_an_adapter_carries_its_tokenizer_and_a_card(scored_work, capsys):
    main(["fit", "--config", METHOD])
    adapter = RUN / "adapter"
    tokenizer, base = AutoTokenizer.from_pretrained(adapter), AutoTokenizer.from_pretrained("backbone")
    messages = dialogue("What is 1?", "It is 1.", "And 2?", "2.", system="Be brief.")
    expected = encode(template_for("tulu", base), base, messages).input_ids.tolist()
    assert rendered_ids(tokenizer, messages) == expected
    card = (adapter / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["library_name"] == "peft"
    for part in ("tiny/forgetting, seed 0", "The top 0.7", "`source.jsonl`", "in nats per token", "License"):
        assert part in card
    assert str(Path.cwd()) not in card
    assert "<|user|>\n...\n<|assistant|>\n" in run_snippet(card, adapter, capsys)
    before = adapter_hash(adapter)
    for name in ("README.md", "chat_template.jinja", "tokenizer.json"):
        (adapter / name).write_text("another")
    refuse_damaged_adapter(adapter)
    assert adapter_hash(adapter) == before
    (adapter / WEIGHTS).write_bytes(b"another")  # the control
    assert adapter_hash(adapter) != before


def test_a_class_is_named_with_the_arguments_that_were_given_and_those_of_its_terms():
    term = {"class_path": "forgetting.method.terms.TokenNPO", "init_args": {"beta": 0.5}}
    objective = {"class_path": "Forgetting", "init_args": {"t_max": 0.2, "negative": term, "positive": None}}
    assert card._class(objective) == "`Forgetting(t_max=0.2, negative=TokenNPO(beta=0.5))`"
    assert card._class("MeanNLL") == "`MeanNLL`"


def test_a_save_that_is_stopped_leaves_no_adapter_and_a_second_one_the_same_bytes(scored_work, monkeypatch):
    def stopped(*arguments):
        raise OSError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(records, "write_adapter_card", stopped)
        with pytest.raises(OSError, match="stopped"):
            main(["fit", "--config", METHOD])
    assert not [path for path in RUN.iterdir() if "adapter" in path.name]
    with monkeypatch.context() as patch:  # the control: what is saved without a card
        patch.setattr(records, "write_adapter_card", lambda *arguments: None)
        main(["fit", "--config", METHOD])
    assert sorted(path.name for path in (RUN / "adapter").iterdir()) == sorted([CONFIG, WEIGHTS, SUMS])
    bare = {name: (RUN / "adapter" / name).read_bytes() for name in (CONFIG, WEIGHTS, SUMS)}
    shutil.rmtree(RUN / "adapter")
    main(["fit", "--config", METHOD])
    assert {name: (RUN / "adapter" / name).read_bytes() for name in bare} == bare
    assert (RUN / "adapter/README.md").is_file()
