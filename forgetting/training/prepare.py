from typing import Any

from forgetting.training.data import ForgettingData


def prepare_command(arguments: list[str]) -> None:
    """Make the corpus and its tokens, as `fit` would, and say what is in it."""
    from jsonargparse import capture_parser

    from forgetting.cli import build_cli

    # The same parser as fit's: any experiment, overlay and override that fit takes.
    parser = capture_parser(lambda: build_cli(["fit", *arguments]))
    config = parser.parse_args(["fit", *arguments])
    data = parser.instantiate_classes(config)["fit"]["data"]
    assert isinstance(data, ForgettingData)
    data.prepare_data()
    corpus, tokens = data.open_corpus()
    print(f"corpus {corpus.folder}\ntokens {tokens.folder}")
    print(corpus_table(corpus.manifest))


def corpus_table(manifest: dict[str, Any]) -> str:
    """Counts a source and split, in the form of the paper's Table 1."""
    return str(manifest)
