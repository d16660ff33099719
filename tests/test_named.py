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


def test_every_variable_is_a_setting() -> None:
    """Beside those that only the client commands, or only the tests, read."""
    from dataclasses import fields

    from server.settings import PREFIX, Settings

    settings = {PREFIX + field.name.upper() for field in fields(Settings)} | {"CROUPIER_CONFIG"}
    others = {"CROUPIER_URL", "CROUPIER_KEY", "CROUPIER_LONG"}
    assert {pair for pair in named(r"\b(CROUPIER_[A-Z_]+[A-Z])\b") if pair[1] not in settings | others} == set()


def test_every_metric_that_pages_name_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    known = set(re.findall(r"^\| `(croupier_[a-z_]+)`", reference, re.MULTILINE))
    assert len(known) > 20
    parts = {f"{name}{part}" for name in known for part in ("_bucket", "_sum", "_count")}
    assert {pair for pair in named(r"`(croupier_[a-z_]+[a-z])[`{]") if pair[1] not in known | parts} == set()
