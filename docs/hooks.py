"""Hooks of the site (mkdocs.yml): README is its first page, and links out of docs/ become plain text.

A formula stays in LaTeX: what would render it is fetched from elsewhere.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#|mailto:)([^)\s]+)\)")
FORMULA = re.compile(r"^\$\$(.+)\$\$$", re.MULTILINE)
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
              "SECURITY.md": "security.md"}  # fmt: skip
"""Pages at the top of the repository, and their names on the site."""


def relinked(text: str, folder: Path) -> str:
    """Links as the site has them: to its pages and files, else the text alone.

    Args:
        text: Markdown of a page.
        folder: Where it lies in the repository; it has this depth on the site too, pages at the top being docs'.
    """

    def target(match: re.Match[str]) -> str:
        path, _, anchor = match[2].partition("#")
        file = (folder / path).resolve()
        if not file.exists():  # code that looks like a link
            return match[0]
        inside = file.relative_to(REPOSITORY).as_posix() if file.is_relative_to(REPOSITORY) else ""
        name = ROOT_PAGES.get(inside, inside.removeprefix("docs/") if inside.startswith("docs/") else None)
        if name is None or file.is_dir():
            return match[1]
        up = "../" * len(folder.relative_to(REPOSITORY / "docs").parts) if folder != REPOSITORY else ""
        return f"[{match[1]}]({up}{name}{'#' + anchor if anchor else ''})"

    return FORMULA.sub(r"```latex\n\1\n```", LINK.sub(target, text))


def on_files(files: Files, config: Any) -> Files:
    """Add the pages at the top of the repository."""
    for source, name in ROOT_PAGES.items():
        text = relinked((REPOSITORY / source).read_text(encoding="utf-8"), REPOSITORY)
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Relink a page of docs/; those at the top are relinked already."""
    if page.file.src_uri in ROOT_PAGES.values():
        return markdown
    return relinked(markdown, (REPOSITORY / "docs" / page.file.src_uri).parent)
