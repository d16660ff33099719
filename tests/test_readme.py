"""Every block of the README runs, in order, in a folder of its own, against a real server; so do the docs' links."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.processes import SERVE, serving

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"
MAKE = re.compile(r"^make (demo|test|serve)\b", re.MULTILINE)  # run by the tests of those commands


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / "README.md").read_text())


def run(kind: str, text: str, url: str, folder: Path) -> str:
    """Runs a block as a reader would, at the server's real address; returns what it printed."""
    text = re.sub(r"^python3\b", sys.executable, text.replace(ADDRESS, url), flags=re.MULTILINE)
    text = text.replace(".venv/bin/croupier", f"{sys.executable} -c '{SERVE}'")
    command = ["bash", "-euo", "pipefail", "-c", text] if kind == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "CROUPIER_URL": url, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert '"urn:croupier:problem' not in done.stdout, done.stdout
    return done.stdout


def test_the_readme_runs_from_top_to_bottom(tmp_path: Path, shared_data: Path) -> None:
    (tmp_path / "ratings.csv").symlink_to(shared_data / "movielens-latest-small" / "ratings.csv")
    (tmp_path / "headlines.csv").symlink_to(shared_data / "upworthy.csv")
    printed = {}
    with serving(tmp_path / "data") as server:
        for kind, text in blocks():
            if not MAKE.search(text):
                printed[text] = run(kind, text, server.url, tmp_path)
        assert server.stop() == 0
    said = "\n".join(printed.values())
    assert '{"results":[{"status":"accepted"}]}' in said
    films = next(out for text, out in printed.items() if "users.json" in text and "exploit" in text)
    assert films.splitlines()[-1] == "True", films
    assert len(printed) >= 7


def test_the_first_screen_has_the_two_commands() -> None:
    first = (ROOT / "README.md").read_text()[:1200]
    assert "make demo" in first
    assert "make test" in first


@pytest.mark.parametrize(
    "page", sorted(str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{page} links to {target}, which is not there"
