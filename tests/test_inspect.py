"""`inspect`: the page of a scored experiment."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from small_experiment import METHOD, REFERENCE

from forgetting.cli import main
from forgetting.errors import UserError


@pytest.mark.parametrize("experiment", [METHOD, REFERENCE])
def test_the_same_store_gives_the_same_page(scored_work: Path, experiment: str) -> None:
    for name in ("a.html", "b.html"):
        main(["inspect", "--config", experiment, "--output", name])
    assert Path("a.html").read_bytes() == Path("b.html").read_bytes()


def test_without_a_store_the_score_command_is_named(scored_work: Path) -> None:
    Path("runs").rename("elsewhere")
    with pytest.raises(UserError, match="forgetting score"):
        main(["inspect", "--config", METHOD])
    assert not Path("page.html").exists()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium")
def test_a_browser_counts_what_the_exact_selection_counts(scored_work: Path) -> None:
    main(["inspect", "--config", METHOD, "--output", "page.html"])
    page = Path("page.html").resolve()
    content = json.loads(re.findall(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[0])
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={scored_work}/browser"]
    shown = subprocess.run(
        [*command, "--virtual-time-budget=2000", "--dump-dom", f"{page.as_uri()}#rho=0.5"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert f"{round(0.5 * content['total'])} positive" in shown
