"""`inspect`: the page of a scored experiment."""

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
