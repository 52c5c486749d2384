from typing import Any

from forgetting.arguments import refuse_no_experiment


def prepare_command(arguments: list[str]) -> None:
    """Make the corpus and its tokens, as `fit` would, and say what is in it."""
    from forgetting.runs.parsed import ParsedExperiment

    parsed = ParsedExperiment(arguments)
    refuse_no_experiment("prepare", arguments)
    _, data = parsed.instantiate()
    corpus, tokens = data.open_corpus()
    print(f"corpus {corpus.folder} ({corpus.content_hash[:12]})\ntokens {tokens.folder} ({tokens.content_hash[:12]})\n")
    print(corpus_table(corpus.manifest))
    for line in unmapped_columns(corpus.manifest):
        print(line)
    for name in corpus.manifest["splits"]:
        record = tokens.manifest["splits"][name]
        without, cut, forged = (sum(record[key].values()) for key in ("without_target", "truncated", "forged_headers"))
        print(
            f"{name}: {record['examples']:,} examples, {record['tokens']:,} tokens, {record['targets']:,} to predict; "
            f"{cut:,} cut at {data.max_length} tokens, {without:,} dropped for lack of a response token"
        )
        if forged:
            rows = ", ".join(
                f"{_cell(source)} ({number:,} rows)" for source, number in record["forged_headers"].items()
            )
            print(f"{name}: messages that hold a header of the template {data.template} as text: {rows}")


def corpus_table(manifest: dict[str, Any]) -> str:
    """Samples and percentages a source and split, in the form of the paper's Table 1, as Markdown."""
    splits = manifest["splits"]
    sources = sorted({source for split in splits.values() for source in split["sources"]})
    lines = ["| source | " + " | ".join(splits) + " |", "|---" * (len(splits) + 1) + "|"]
    for source in sources:
        cells = [split["sources"].get(source, {"samples": 0, "percentage": 0.0}) for split in splits.values()]
        lines.append(
            f"| {_cell(source)} | " + " | ".join(f"{c['samples']:,} ({c['percentage']:.2f}%)" for c in cells) + " |"
        )
    lines.append("| all | " + " | ".join(f"{split['samples']:,}" for split in splits.values()) + " |")
    return "\n".join(lines) + "\n"


def _cell(name: str) -> str:
    """A name in a table: those of a `source_column` may hold anything."""
    return "".join(c if c.isprintable() else " " for c in name).replace("|", "\\|")


def unmapped_columns(manifest: dict[str, Any]) -> list[str]:
    """A line per source whose rows hold text that no mapping names: it is not in the corpus."""
    read = manifest["read"]
    lines = []
    for name, record in [*read["sources"].items(), *read["published"].items()]:
        if record["unmapped"]:
            columns = ", ".join(f"{_cell(column)} ({number:,} rows)" for column, number in record["unmapped"].items())
            lines.append(f"{_cell(name)}: not in the corpus, as no mapping names them: {columns}")
    return lines
