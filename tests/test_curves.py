"""The curves of docs/algorithms.md: the script runs, and the page shows what is committed, in words too."""

import csv
import math
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import curves

ROOT = Path(__file__).resolve().parents[1]
PLOTS = {
    "regret-switching.svg": curves.POLICIES,
    "regret-still.svg": curves.POLICIES,
    "clicks-films.svg": curves.FILM_POLICIES,
}
BYTES_MAX = 60_000


def check(path: Path, names: tuple[str, ...]) -> None:
    """A small picture whose words are text, that names every line, and whose numbers are finite."""
    assert path.stat().st_size < BYTES_MAX
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert set(names) <= words
    for line in root.iter("{http://www.w3.org/2000/svg}path"):
        assert all(math.isfinite(float(number)) for number in re.findall(r"(?<=\s)[^\sA-Za-z]\S*", line.get("d", "")))


def write_ratings(path: Path) -> Path:
    """Two camps of 60 users and films; each likes those of its own."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["userId", "movieId", "rating"])
        for user, film in zip(*np.nonzero(rng.random((60, 60)) < 0.67), strict=True):
            rows.writerow([user, film, 4.5 if user % 2 == film % 2 else 2.0])
    return path


def test_a_quick_run_draws_every_plot_and_prints_its_table(tmp_path: Path) -> None:
    ratings = write_ratings(tmp_path / "ratings.csv")
    command = ["--quick", "--seeds", "2", "--ratings", str(ratings), "--out", str(tmp_path / "out")]
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.curves", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(PLOTS)
    for name, policies in PLOTS.items():
        check(tmp_path / "out" / name, policies)
    rows = re.findall(r"^\| ([a-z0-9-]+) \| ([\d.,]+) \(([\d.,]+) to ([\d.,]+)\) \|", ran.stdout, re.MULTILINE)
    assert [row[0] for row in rows if row[0] != "policy"] == [*curves.POLICIES, *curves.POLICIES, *curves.FILM_POLICIES]
    for _, *cells in rows:
        mean, least, most = (float(cell.replace(",", "")) for cell in cells)
        assert 0.0 < least <= mean <= most


def test_regret_ends_where_the_run_ends_and_never_falls() -> None:
    lines = curves.regret("still", 2_000, 2)[0]
    for line in lines.values():
        assert line[-1][0] == 2_000
        assert all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(line))
        assert line[-1][1] <= 0.1 * 2_000  # the best arm is better by 0.1


@pytest.mark.parametrize("name", PLOTS)
def test_the_page_shows_the_plot_and_says_it_in_words(name: str) -> None:
    check(ROOT / "docs" / "assets" / name, PLOTS[name])
    page = (ROOT / "docs" / "algorithms.md").read_text()
    found = re.search(rf"!\[([^\]]+)\]\(assets/{name}\)", page)
    assert found, f"algorithms.md does not show {name}"
    assert len(found[1]) > 100, "the text alternative says what the lines do"
