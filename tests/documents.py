"""README and the pages of docs/, as tests read them: blocks of code, tables, links."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
COMMANDS = ("agfl-simulate", "agfl-server", "agfl-client", "agfl-model")


@dataclass(frozen=True)
class Block:
    """A block of code; page: its path below the root."""

    page: str
    language: str
    text: str

    @property
    def name(self) -> str:
        """For a person who reads of a failed test."""
        return f"{self.page}: {self.text.splitlines()[0]}"

    @property
    def lines(self) -> list[str]:
        """The lines, those joined that a backslash divides."""
        return self.text.replace("\\\n", "").splitlines()


@cache
def text_of(page: Path) -> str:
    """Return a page with what it includes, as a reader gets it."""
    return re.sub(r'^--8<-- "(.+)"$', lambda found: included(found[1]), page.read_text(), flags=re.MULTILINE)


def included(name: str) -> str:
    """Return the file of the root, or the section of it, that a page includes as `FILE` or `FILE:SECTION`."""
    file, _, section = name.partition(":")
    text = (ROOT / file).read_text()
    if not section:
        return text
    _, begin, rest = text.partition(f"<!-- --8<-- [start:{section}] -->\n")
    inside, end, _ = rest.partition(f"<!-- --8<-- [end:{section}] -->\n")
    assert begin, f"{file} has no section {section}"
    assert end, f"{file} does not end section {section}"
    return inside


def blocks(language: str) -> list[Block]:
    """Return all blocks of a language in all pages; those of included files are their own business."""
    found = ((page, re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)) for page in PAGES)
    return [Block(str(page.relative_to(ROOT)), language, text) for page, texts in found for text in texts]


def command_lines() -> list[tuple[str, str]]:
    """Return (page, line) of each command line of ours in a block."""
    lines = ((block.page, line) for block in blocks("sh") for line in block.lines)
    return [(page, line) for page, line in lines if line.startswith(COMMANDS)]


def inline_code(page: Path) -> list[str]:
    """Return what stands between single backticks, outside of blocks."""
    outside = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", outside)]


def table_rows(page: Path, header: str) -> list[list[str]]:
    """Return the cells of the rows below a header line; a bar within code divides no cells."""
    lines = page.read_text().splitlines()
    rows = []
    for line in lines[lines.index(header) + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures, but for those on the web."""
    outside = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", outside))
    return [target for target in targets if "://" not in target]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Python-Markdown makes them."""
    outside = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", outside, flags=re.MULTILINE)}


def slug(heading: str) -> str:
    """Return the anchor of a heading."""
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
