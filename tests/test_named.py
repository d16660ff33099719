"""Targets of make, modules and files that pages name exist."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "deploy" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "bandits|streaming|server|loadtest|croupier|benchmarks|tests|deploy|docs|examples"


def named(pattern: str) -> set[tuple[str, str]]:
    """Pairs (page, what the pattern's group caught there); never none at all."""
    found = {(str(page.relative_to(ROOT)), what) for page in PAGES for what in re.findall(pattern, page.read_text())}
    assert found, pattern
    return found


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {pair for pair in named(r"`make ([a-z-]+)") if pair[1] not in targets} == set()


def test_every_module_that_is_run_exists() -> None:
    modules = named(rf"python -m ((?:{FOLDERS})[a-z_.]*[a-z_])")
    assert {pair for pair in modules if importlib.util.find_spec(pair[1]) is None} == set()


def test_every_file_in_backticks_exists() -> None:
    """But for benchmarks/out/, which `make bench` writes."""
    files = named(rf"`((?:{FOLDERS})/[\w./-]+\.(?:py|md|toml|yml|yaml|json))`")
    assert {pair for pair in files if "/out/" not in pair[1] and not (ROOT / pair[1]).exists()} == set()
