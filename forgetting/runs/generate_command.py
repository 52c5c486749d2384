"""The command `generate`: the same prompts before and after training, side by side."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from forgetting.arguments import command_parser, parse
from forgetting.errors import UserError

if TYPE_CHECKING:
    from forgetting.runs.generate import Pair


def generate_command(arguments: list[str]) -> None:
    """Generate responses by a run's base model and by the trained model, and print them side by side."""
    options = parse(_parser(), arguments)
    if (options.prompts is None) == (options.prompt is None):
        raise UserError("Give prompts: either --prompts FILE or --prompt TEXT.")
    output = None if options.output is None else Path(options.output).expanduser()
    if output is not None and output.is_dir():
        raise UserError(f"--output {output} is a folder; give a file.")
    from forgetting.artifacts import write_text
    from forgetting.evaluation.harness import usable_device
    from forgetting.runs.generate import Sampling, generate, read_prompts, user_prompt
    from forgetting.runs.trained import find_trained

    sampling = Sampling(options.max_new_tokens, options.temperature, options.seed)
    prompts = (
        [user_prompt(options.prompt)] if options.prompts is None else read_prompts(Path(options.prompts).expanduser())
    )
    device = usable_device(options.device)
    run = find_trained(options.run)
    pairs = []
    for pair in generate(run, prompts, sampling, device):
        pairs.append(pair)
        _show(pair)
    if output is not None:
        lines = [json.dumps(pair.record(), ensure_ascii=False) + "\n" for pair in pairs]
        write_text(output, "".join(lines))
        print(f"{len(pairs)} prompt(s): {output}")


def _show(pair: "Pair") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from forgetting.corpus.values import visible

    title = Text(visible(pair.messages[-1]["content"]))
    table = Table("before", "after", title=title, title_justify="left", expand=True)
    texts = [r.text if r.is_complete else f"{r.text} … (cut)" for r in (pair.before, pair.after)]
    table.add_row(*(Text(visible(text)) for text in texts))
    Console().print(table)


def _parser() -> ArgumentParser:
    parser = command_parser(
        "generate",
        "Generate responses to the same prompts before (base model) and after training (with the adapter).",
        (
            "generate runs/my/forgetting/seed-0 --prompt Hello",
            "generate runs/my/full/seed-0 --prompts p.txt --seed 1",
        ),
    )
    add = parser.add_argument
    add("run", type=str, help="a run folder (runs/<experiment>/seed-<n>)")
    add(
        "--prompts", type=str | None, help="JSONL with `prompt` or `messages` in each row, or a text, a prompt per line"
    )
    add("--prompt", type=str | None, help="one prompt")
    add("--max-new-tokens", type=int, default=256, help="of a response, at most")
    add("--temperature", type=float, default=0.0, help="0 takes the most likely token; above 0 tokens are drawn")
    add("--seed", type=int, default=0, help="of the draws")
    add("--device", type=str | None, help="such as cuda:1 or cpu")
    add("--output", type=str | None, help="also write messages and both responses as JSONL")
    return parser
