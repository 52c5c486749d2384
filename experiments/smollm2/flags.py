"""Flags that need no reader, for the rows of an Alpaca file, and how well a mean score finds them.

    python flags.py alpaca.json flagged.jsonl    # writes the rows with their flags
    python flags.py rows.jsonl                   # reads what `inspect --jsonl` wrote of them

The whole response of a flagged row is noise of that kind (column `noise`), so the ordinary pipeline carries the flags.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from forgetting.inspection.detection import detection

RESAMPLES = 1000
PLACEHOLDER = re.compile(r"\W*(no\s?-?input( needed| required)?|none|n/?a|not applicable)\W*", re.IGNORECASE)
REFERS = re.compile(
    r"\b(the|this|these|those) (following|given|provided|below)\b"
    r"|\b(text|sentence|paragraph|passage|article|list|data) below\b",
    re.IGNORECASE,
)
MAY_HOLD_THE_INPUT = re.compile(r"""[:"'“”‘’\n(\[]|[.?!] """)
"""A quotation, a colon or a second sentence of an instruction may be the text that it speaks of."""
REFUSES = re.compile(
    r"\W*(sorry, |I('m| am) (sorry, but|unable|not able)\b|I (can't|cannot) (answer|do|help|provide|create|see)\b"
    r"|as an AI\b|(this|it) is not possible\b|no\s?output|not applicable\b|unfortunately\b)",
    re.IGNORECASE,
)
NUMBER = r"(\d[\d,]*(?:\.\d+)?)"
EQUATION = re.compile(
    rf"(?<![\d.,)^*/×÷+\-−=])(?<![)^*x/×÷+\-−=]\s){NUMBER}\s*([-+*x×/÷])\s*{NUMBER}\s*=\s*\$?{NUMBER}(?![\d.,]*\d|\s*[-+*x×/÷])"
)
COUNTS = {word: n for n, word in enumerate(("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 2)}
WANTED = re.compile(
    r"\b(?:list of|list|name|give|suggest|provide|identify|generate) (?:me |the top |top )?"
    rf"(\d+|{'|'.join(COUNTS)})\b(?! ?-| to | or )",
    re.IGNORECASE,
)
ITEM = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s*\S", re.MULTILINE)
Row = dict[str, str]


def wrong_arithmetic(row: Row) -> bool:
    """An equation of two numbers in the response is wrong."""
    return not all(equations(row["output"]))


def equations(text: str) -> Iterator[bool]:
    """Whether each equation of two numbers in a text is right, up to the decimals that it gives."""
    for first, operation, second, result in EQUATION.findall(text):
        a, b, given = (float(number.replace(",", "")) for number in (first, second, result))
        decimals = len(result.partition(".")[2])
        yield abs(_value(a, operation, b) - given) <= (10.0**-decimals if decimals else 1e-9)


def _value(a: float, operation: str, b: float) -> float:
    if operation in "/÷":
        return a / b if b else float("nan")
    return a + b if operation == "+" else a - b if operation == "-" else a * b


def refusal(row: Row) -> bool:
    """The response opens with a refusal."""
    return REFUSES.match(row["output"]) is not None


def without_input(row: Row) -> bool:
    """The instruction speaks of a text that is not there, and is answered."""
    instruction, given = row["instruction"], row["input"].strip()
    absent = not given or PLACEHOLDER.fullmatch(given) is not None
    return absent and REFERS.search(instruction) is not None and not MAY_HOLD_THE_INPUT.search(instruction)


def placeholder(row: Row) -> bool:
    """The input says that there is none, so the prompt holds a line of boilerplate."""
    return PLACEHOLDER.fullmatch(row["input"].strip()) is not None


def truncated(row: Row) -> bool:
    """Running text of more than 20 words that stops without a mark."""
    text = row["output"].rstrip()
    is_running = not re.search(r"[\n#@{}=<>]|http", text)
    return is_running and len(text.split()) > 20 and (text[-1].isalpha() or text[-1] in ",;-")


def wrong_count(row: Row) -> bool:
    """A list of another number of items than the instruction asks for."""
    wanted, items = WANTED.search(row["instruction"]), len(ITEM.findall(row["output"]))
    if wanted is None or items < 2 or " and " in row["instruction"]:
        return False
    number = wanted[1].lower()
    return items != (COUNTS[number] if number in COUNTS else int(number))


FLAGS: tuple[Callable[[Row], bool], ...] = (
    wrong_arithmetic, refusal, without_input, placeholder, truncated, wrong_count,
)  # fmt: skip
"""A row with several has the first."""


def flag(source: Path, target: Path) -> None:
    """Write the rows of an Alpaca file with their flags, as known noise; those without a response are left out."""
    counts: Counter[str] = Counter()
    with target.open("w", encoding="utf-8") as file:
        for row in json.loads(source.read_text(encoding="utf-8")):
            if not row["output"].strip():
                continue
            found = [is_so.__name__.replace("_", " ") for is_so in FLAGS if is_so(row)][:1]
            counts.update(found or ["none"])
            print(json.dumps({**row, "noise": [[0, len(row["output"]), kind] for kind in found]}), file=file)
    for kind, number in counts.most_common():
        print(f"{kind}: {number:,}")


def measure(path: Path) -> None:
    """Print AUC by flag of an example's mean score, mean nlls and length: below 0.5, flagged examples have more."""
    means: dict[str, list[float]] = {"score": [], "nll_base": [], "nll_reference": [], "tokens": []}
    flags: list[str] = []
    with path.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            for name in ("score", "nll_base", "nll_reference"):
                means[name].append(float(np.mean([value for value in row["metrics"][name] if value is not None])))
            means["tokens"].append(sum(value is not None for value in row["metrics"]["score"]))
            flags.append(next((kind for kind in row["annotations"]["noise"] if kind), ""))
    kinds = sorted({kind for kind in flags if kind})
    codes = np.array([1 + kinds.index(kind) if kind else 0 for kind in flags], np.uint8)
    one_each = np.ones(len(codes), np.int64)
    found = {
        name: detection(np.array(values, np.float64), codes > 0, codes, kinds, one_each, RESAMPLES).kinds
        for name, values in means.items()
    }
    print(f"| flag | examples of {len(codes):,} | {' | '.join(means)} |")
    print(f"|---|---:|{'---:|' * len(means)}")
    for kind in kinds:
        cells = [str(found[name][kind].auc) for name in means]
        print(f"| {kind} | {flags.count(kind)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    (flag if len(sys.argv) == 3 else measure)(*map(Path, sys.argv[1:]))
