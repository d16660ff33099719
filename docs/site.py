"""Pages of the site that lie outside docs/: README.md is its home; deploy/README.md and CHANGELOG.md are pages, too."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The three pages, with their links as they are from docs/."""
    home = (ROOT / "README.md").read_text()
    home = home.replace("](docs/decisions/)", "](decisions/README.md)").replace("](docs/", "](")
    deploy = (ROOT / "deploy" / "README.md").read_text().replace("](../docs/", "](../")
    changes = (ROOT / "CHANGELOG.md").read_text().replace("](docs/", "](")
    for name, text in (("index.md", home), ("deploy/README.md", deploy), ("CHANGELOG.md", changes)):
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links of pages in docs/ to what lies beside docs/; fences without the word that says what a test needs."""
    plain = re.sub(r"^```(\w+) \w+$", r"```\1", markdown, flags=re.MULTILINE)
    return re.sub(r"\]\(\.\./(deploy/README\.md|CHANGELOG\.md)", r"](\1", plain)
