"""The pages of the documentation as data: fenced blocks, links, headings.

A fence says what its block is: ```` ```sh ```` and ```` ```python ```` are run as they stand; a word after the language
says what a block needs, and `WORDS` what the tests do about it. Blocks of other languages are data or output.
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "deploy" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# language -> word -> what becomes of such a block; "" stands for no word.
WORDS = {
    "sh": {
        "": "run",
        "kafka": "run with a real Kafka and Redis",
        "make": "dry run: builds everything, or does not end; tests/server/test_cli.py runs demo and serve",
        "docker": "not run, there is no container engine here; tests/test_deploy.py checks the compose file",
        "tools": "not run, commands of Kafka and Redis; tests/test_deploy.py tries the permissions they give",
        "long": "not run, takes minutes; its modules are there",
    },
    "python": {"": "run", "kafka": "run with a real Kafka and Redis"},
    "json": {"": "parsed"},
    "toml": {"": "parsed"},
    "text": {"": "output or a drawing"},
    "console": {"": "output"},
}


class Block(NamedTuple):
    """A fenced block; `line` is that of its fence, from 1."""

    page: str
    line: int
    language: str
    word: str
    text: str

    @property
    def at(self) -> str:
        return f"{self.page}:{self.line}"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """In the page's order; ValueError for a fence that is never closed."""
    found: list[Block] = []
    fence, start, lines = "", 0, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        mark = re.match(r" {0,3}(`{3,})(.*)$", line)
        if not fence and mark:
            fence, info, start, lines = mark[1], mark[2].split(), number, []
        elif fence and line.strip() == fence:
            found.append(Block(name(page), start, *[*info, "", ""][:2], "".join(f"{each}\n" for each in lines)))
            fence = ""
        elif fence:
            lines.append(line)
    if fence:
        raise ValueError(f"{name(page)}:{start}: a fence without its end")
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^(`{3,}).*?^\1$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    """Targets of all inline links and images, code spans left out."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    found: list[str] = re.findall(r"\]\(<?([^)>\s]+)>?(?:\s+\"[^\"]*\")?\)", text)
    return found


def anchors(page: Path) -> set[str]:
    """Fragments of the page's headings as GitHub makes them; the site's are the same for headings of plain words."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        twin = 0
        while (anchor := f"{slug}-{twin}" if twin else slug) in found:
            twin += 1
        found.add(anchor)
    return found
