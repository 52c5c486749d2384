import io
import logging
import sys
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from forgetting.lab.stages import Stages, output_in_file


def test_a_line_a_stage_where_there_is_no_terminal():
    text = io.StringIO()
    stages = Stages(2, Console(file=text, width=100))
    with stages.shown():
        with stages.stage("one"):
            for step in range(1, 9):
                stages.step(step, 8)
        with stages.stage("two [3]"):
            pass
    lines = text.getvalue().splitlines()
    assert lines[:3] == ["  step 2 of 8", "  step 4 of 8", "  step 6 of 8"]
    assert lines[3].startswith("[1/2] one, ")
    assert lines[4].startswith("[2/2] two [3], ")


def test_bars_on_a_terminal():
    text = io.StringIO()
    stages = Stages(1, Console(file=text, width=100, force_terminal=True))
    with stages.shown(), stages.stage("one"):
        stages.step(1, 8)
    assert "1/1" in text.getvalue()


def test_a_failed_stage_is_not_done():
    stages = Stages(1, Console(file=io.StringIO()))
    with pytest.raises(ValueError, match="no"), stages.shown(), stages.stage("one"):
        raise ValueError("no")
    assert stages.done == 0


def test_what_is_printed_logged_and_warned_about_goes_into_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = tmp_path / "runs" / "lab.log"
    lightning = logging.getLogger("lightning.pytorch")
    handlers, warn = lightning.handlers, warnings.showwarning
    for number in (1, 2):
        with output_in_file(log):
            print("printed", number)
            lightning.warning("logged")
            logging.getLogger("lightning.pytorch.callbacks").warning("below")
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                logging.captureWarnings(True)
                warnings.warn("warned", stacklevel=1)
    assert capsys.readouterr() == ("", "")
    text = log.read_text()
    assert text.count("printed") == 2
    assert all(word in text for word in ("logged", "below", "warned"))
    assert (lightning.handlers, warnings.showwarning) == (handlers, warn)
    print("outside", file=sys.stdout)
    assert capsys.readouterr().out == "outside\n"
