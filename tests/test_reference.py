"""Pages made from the code are what the code says, and commands that pages name exist with their flags."""

import re
from pathlib import Path
from typing import get_args

import pytest

from server.app import TITLES
from server.error_table import KINDS
from server.errors import type_of
from server.reference import PAGES as REFERENCE
from server.reference import commands
from server.schemas import RefusalReason

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "deploy" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", REFERENCE)
def test_a_page_is_what_the_code_says(page: str) -> None:
    assert (ROOT / page).read_text() == REFERENCE[page](), "python -m server.reference"


def test_every_error_of_the_code_is_in_the_table() -> None:
    """Titles as they stand in the code, those made of a refusal's reason, and the router's own."""
    code = "".join(path.read_text() for path in (ROOT / "server").rglob("*.py") if path.name != "error_table.py")
    titles = {*re.findall(r'Problem\(\s*\d+,\s*"([^"]+)"', code), *TITLES.values()}
    assert len(titles) > 15
    reasons = {*get_args(RefusalReason)} - {"invalid"}  # which is invalid-field
    assert {type_of(title).rpartition(":")[2] for title in titles} | reasons == set(KINDS)


def test_every_command_and_flag_in_backticks_exists() -> None:
    flags = {
        path: {text for option in command.get_params(context) for text in (*option.opts, *option.secondary_opts)}
        for path, command, context in commands()
    }
    looked_at = 0
    for page in PAGES:
        for said in re.findall(r"`(?:\.venv/bin/)?(croupier [^`]+)`", page.read_text()):
            words = said.split()
            if not re.fullmatch(r"[a-z]+", words[1]):
                continue  # croupier COMMAND, croupier --help
            path = f"croupier {words[1]}"
            assert path in flags, f"{page.relative_to(ROOT)}: {said}"
            if len(words) > 2 and f"{path} {words[2]}" in flags:
                path += f" {words[2]}"
            for flag in re.findall(r"(?<!\S)--?[a-z][a-z-]*", said):
                assert flag in flags[path], f"{page.relative_to(ROOT)}: {said}: {flag}"
            looked_at += 1
    assert looked_at > 20
