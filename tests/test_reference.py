"""docs/reference/ is what the code says, and commands that pages name exist with their flags."""

import re
from pathlib import Path

from server.reference import command_line, commands

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "deploy" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_command_line_page_is_what_the_code_says() -> None:
    page = ROOT / "docs" / "reference" / "cli.md"
    assert page.read_text() == command_line(), "python -m server.reference"


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
