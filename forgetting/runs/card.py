"""A model card (README.md) of a run's adapter, or of the model that it is merged into."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import PreTrainedTokenizerBase

from forgetting.corpus.exported_chat import ExportedChat, exported_chat
from forgetting.paths import is_local
from forgetting.runs.run_facts import INPUTS, RunFacts

Kind = Literal["adapter", "merged"]
PAPER = "https://openreview.net/forum?id=s36smEoUoX"
TEMPLATES = {
    "tulu": "`<|user|>`, `<|assistant|>` and `<|system|>` on lines of their own, as plain text; EOS ends a response",
    "plain": "prompt, newline, completion, EOS; no headers",
    "chat": "the base tokenizer's own chat template (one that prints today's date prints 26 July 2024)",
}


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, template: str, folder: Path) -> ExportedChat:
    """Save a tokenizer whose chat template renders what was trained on. The tokenizer itself is left as it is.

    Args:
        tokenizer: The base model's.
        template: `data.template` of the run.
        folder: An existing folder.
    """
    chat, own = exported_chat(template, tokenizer), tokenizer.chat_template
    try:
        tokenizer.chat_template = chat.source
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = own
    return chat


def write_adapter_card(folder: Path, run: RunFacts, tokenizer: PreTrainedTokenizerBase) -> None:
    """Put tokenizer and card next to an adapter; its identity and its check sums do not depend on them.

    Args:
        folder: With PEFT's two files, inside `complete_folder`.
        run: The run.
        tokenizer: The base model's.
    """
    chat = write_tokenizer(tokenizer, run.data["template"], folder)
    (folder / "README.md").write_text(model_card(run, "adapter", chat), encoding="utf-8")


def model_card(run: RunFacts, kind: Kind, chat: ExportedChat, evaluations: Sequence[Mapping[str, Any]] = ()) -> str:
    """The card as Markdown, with the header that the hub reads.

    Args:
        run: The run.
        kind: What lies next to the card.
        chat: The chat template next to it.
        evaluations: Contents of results files, as `evaluate` writes them.
    """
    parts = [
        _header(run, kind), _summary(run, kind), _usage(run, kind, chat), _prompts(run, chat), _training(run),
        _data(run), _held_out(run), _evaluations(evaluations), _inputs(run), _license(run),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def hub_base(run: RunFacts) -> str | None:
    """The hub id of the base model; None where it is a folder, whose name means nothing elsewhere."""
    return None if is_local(run.model["backbone"]) else str(run.model["backbone"])


def _header(run: RunFacts, kind: Kind) -> str:
    base = hub_base(run)
    content: dict[str, Any] = {} if base is None else {"base_model": base}
    if base is not None:
        content["base_model_relation"] = "adapter" if kind == "adapter" else "finetune"
    content |= {
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "forgetting", "token-selection", "lightning"],
    }
    if datasets := sorted({str(s["path"]) for s in _sources(run).values() if _is_hub(s)}):
        content["datasets"] = datasets
    lines = yaml.safe_dump(content, sort_keys=False, allow_unicode=True).splitlines()
    if base is None:
        lines.insert(0, "# base_model: fill in (it was trained on a folder)")
    lines.append("# license: fill in (see License below)")
    return "\n".join(["---", *lines, "---"])


def _summary(run: RunFacts, kind: Kind) -> str:
    what = "A LoRA adapter on" if kind == "adapter" else "A LoRA adapter merged into"
    return f"# {run.provenance['id']}, seed {run.provenance['seed']}\n\n{what} {_base_name(run)}. {_method(run)}"


def _base_name(run: RunFacts) -> str:
    base, revision = hub_base(run), run.model.get("revision")
    if base is None:
        return f"the model folder `{Path(run.model['backbone']).name}`"
    return f"[{base}](https://huggingface.co/{base})" + (f" at revision `{revision}`" if revision else "")


def _method(run: RunFacts) -> str:
    data, objective = run.data, _class(run.model["objective"])
    if data["split"] == "reference":
        return f"It is a reference model: trained on every response token of a held-out sample D_ref, by {objective}."
    if "positive_fraction" in (run.model["objective"].get("init_args") or {}):
        return f"Which response tokens are positive is decided while it trains, by {objective}."
    if data["positive_fraction"] == "all":
        return f"Every response token is trained on, by {objective}."
    ranked = "sequences" if data["granularity"] == "sequence" else "response tokens"
    if data["threshold"] is not None:
        positive = f"The {ranked} with a score above {data['threshold']}"
    else:
        positive = f"The top {data['positive_fraction']} of the {ranked}"
    negative = (
        "the others are negative" if data["forget_fraction"] is None
        else f"the lowest {data['forget_fraction']} are negative and the rest ignored"
    )  # fmt: skip
    return (
        f"{positive} by {_class(data['score'])} are positive, {negative}; the objective is {objective} "
        f"([Taheri et al., TMLR 2026]({PAPER}))."
    )


def _class(content: Any) -> str:
    """A class with the arguments that are given, in code quotes: Forgetting(t_max=0.25)."""
    return f"`{_call(content)}`" if isinstance(content, dict) else f"`{content}`"


def _call(content: Any) -> str:
    if not isinstance(content, dict) or "class_path" not in content:
        return repr(content)
    given = {key: value for key, value in (content.get("init_args") or {}).items() if value is not None}
    arguments = ", ".join(f"{key}={_call(value)}" for key, value in given.items())
    return f"{str(content['class_path']).rsplit('.', 1)[-1]}({arguments})"


def _usage(run: RunFacts, kind: Kind, chat: ExportedChat) -> str:
    if kind == "merged":
        load = 'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")'
    else:
        base = hub_base(run) or Path(run.model["backbone"]).name
        load = f'base = AutoModelForCausalLM.from_pretrained("{base}", dtype="{run.model["dtype"]}")\n'
        load += "model = PeftModel.from_pretrained(base, folder)"
    stop = "" if chat.end_id is None else f", eos_token_id={chat.end_id}"
    return (
        "## Use\n\n```python\n"
        + ("from peft import PeftModel\n" if kind == "adapter" else "")
        + "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # or the id on the hub\n'
        f"{load}\ntokenizer = AutoTokenizer.from_pretrained(folder)\n"
        'messages = [{"role": "user", "content": "..."}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n'
        ")\n"
        f"output = model.generate(**inputs, max_new_tokens=256{stop})\n"
        "print(tokenizer.decode(output[0]))\n```"
    )


def _prompts(run: RunFacts, chat: ExportedChat) -> str:
    template = run.data["template"]
    agreement = (
        "The tokenizer's chat template gives the tokens of training"
        if chat.is_exact
        else "**The tokenizer's chat template does not give the tokens of training exactly**: this tokenizer treats "
        "the beginning of a text in a way of its own. Otherwise it gives the same text"
    )
    return (
        f"## Prompts\n\nTemplate `{template}`: {TEMPLATES.get(template, 'of its own')}. {agreement}, with these "
        "differences: training encoded a control token that stands in a message as plain text, while a tokenizer reads "
        f"it as what it is; and training cut sequences at {run.data['max_length']:,} tokens. A source whose rows are "
        "columns was written into the user's turn by the format below."
    )


def _training(run: RunFacts) -> str:
    model, data, lora = run.model, run.data, run.model["lora"]
    rows: dict[str, Any] = {
        "objective": _class(model["objective"]),
        "positive fraction ρ": data["positive_fraction"],
        "granularity, scope": f"{data['granularity']}, {data['scope']}",
        "score": _class(data["score"]),
        "LoRA rank, α, dropout": f"{lora['rank']}, {lora['alpha']}, {lora['dropout']}",
        "learning rate": f"{model['learning_rate']:g}, linear after a warm-up over {model['warmup_fraction']:g}",
        "weight decay": model["weight_decay"],
        "gradient clipping": model["gradient_clip"],
        "sequences per step": data["batch_size"],
        "optimizer steps": run.steps,
        "epochs": run.settings["trainer"]["max_epochs"],
        "longest sequence": f"{data['max_length']:,} tokens",
        "dtype of the base": model["dtype"] + (", quantized to NF4" if model.get("four_bit") else ""),
        "precision": run.settings["trainer"]["precision"],
        "seed": run.provenance["seed"],
    }
    if data["split"] == "reference":  # all its tokens are positive, whatever its method selects
        for name in ("positive fraction ρ", "granularity, scope", "score"):
            del rows[name]
    if (selected := run.provenance.get("selected")) is not None:
        rows["positive, negative"] = f"{selected['num_positive']:,}, {selected['num_negative']:,}"
    lines = [f"| {name} | {'–' if value is None else value} |" for name, value in rows.items()]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *lines])


def _sources(run: RunFacts) -> dict[str, dict[str, Any]]:
    corpus = run.data["corpus"]
    published = {split: corpus[split] for split in ("train", "reference", "validation") if corpus.get(split)}
    return {**(corpus.get("sources") or {}), **published}


def _is_hub(source: Mapping[str, Any]) -> bool:
    return (
        isinstance(source["path"], str) and not any(c in source["path"] for c in "*?[") and not is_local(source["path"])
    )


def _path(source: Mapping[str, Any]) -> str:
    if _is_hub(source):
        at = f" at `{source['revision']}`" if source.get("revision") else ""
        subset = f", {source['config']}" if source.get("config") else ""
        return f"[{source['path']}](https://huggingface.co/datasets/{source['path']}){subset}, {source['split']}{at}"
    paths = source["path"] if isinstance(source["path"], list) else [source["path"]]
    return ", ".join(f"`{Path(path).name}`" for path in paths)  # where the file lies is nobody else's business


def _format(source: Mapping[str, Any]) -> str:
    keys = ("prompt", "prompt_without_input", "response", "system", "messages", "conversations", "tree")
    return ", ".join(f"{key} `{source[key]!r}`" for key in keys if source.get(key)).replace("|", "\\|")


def _data(run: RunFacts) -> str:
    corpus = run.data["corpus"]
    rows = [f"| {name} | {_path(source)} | {_format(source)} |" for name, source in _sources(run).items()]
    counts = ", ".join(f"{corpus[f'num_{split}']:,} for {split}" for split in ("train", "reference", "validation"))
    text = f"Drawn: {counts}; corpus seed {corpus['seed']}."
    return "\n".join(["## Data", "", "| source | from | format |", "|---|---|---|", *rows, "", text])


def _held_out(run: RunFacts) -> str:
    if not run.held_out:
        return ""
    names = {"nll": "all response tokens", "nll_positive": "positive ones", "nll_negative": "negative ones"}
    values = ", ".join(f"{run.held_out[key]:.4f} ({name})" for key, name in names.items() if key in run.held_out)
    return f"## Held-out nll\n\nAt the end of training, on D_val, in nats per token: {values}."


def _evaluations(evaluations: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for content in evaluations:
        rows = [
            f"| {name} | {column.get('metric', '')} | {_number(column)} | {column.get('documents', '')} |"
            for name, column in content["columns"].items()
        ]
        average = content.get("average")
        rows += [] if average is None else [f"| average | | {average:.2f} | |"]
        title = f"Suite `{content['suite']}`, protocol `{content['protocol']}`, in percent:"
        parts.append("\n".join([title, "", "| | metric | value | documents |", "|---|---|---|---|", *rows]))
    return "## Evaluation\n\nBy lm-evaluation-harness.\n\n" + "\n\n".join(parts) if parts else ""


def _number(column: Mapping[str, Any]) -> str:
    if column.get("value") is None:
        return "–"
    return f"{column['value']:.2f}" + (f" ± {column['stderr']:.2f}" if column.get("stderr") else "")


def _inputs(run: RunFacts) -> str:
    inputs = run.provenance["inputs"]
    rows = [f"| base | `{inputs['base']['hash']}` |"]
    rows += [f"| {name} | `{inputs[name]}` |" for name in INPUTS if inputs.get(name)]
    rows.append(f"| configuration | `{run.provenance['config_hash']}` |")
    return "\n".join(["## Inputs by hash", "", "| input | hash |", "|---|---|", *rows])


def _license(run: RunFacts) -> str:
    base = hub_base(run) or "the base model"
    return (
        f"## License\n\nFill in before you share it: the license of {base}, those of the data sources above, and the "
        "one under which this model is shared (`license:` in the header). None is implied."
    )
