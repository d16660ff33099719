"""The report of the benchmarks, from made-up results."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import plots, report, table

ROOT = Path(__file__).resolve().parents[1]
RUN = {"machine": "2 x CPU", "commit": "abc1234", "at": "2026-11-28 12:00", "quick": True, "seconds": 12.0}


def results() -> dict[str, Any]:
    """A bar that holds, one that is missed, one whose figure is not there; three kinds of plots; a failure; a skip."""
    choose = {
        "100": {"ratio": 1.9, "choose_us": 4.8},
        "500": {"ratio": 2.5, "choose_us": 17.0},
    }
    return {
        "kernels": {"run": RUN, "choose": choose, "learn": {"known_100_per_s": 33.6e6}},
        "startup": {"run": RUN, "first_recommendation_s": 0.98, "fastest_s": 0.96, "slowest_s": 1.02},
        "growth": {
            "run": RUN,
            "text": "| edges | µs |\n|---|---|\n| 100 | 4.8 |",
            "plots": [
                {"title": "Growth", "series": {"ours": [[100, 4.8], [1000, 9, 8, 10]]}, "x": "edges", "log": "xy"},
                {"title": "Latency", "distributions": {"recommend": {"p50": 0.2, "p99": 1.5, "max": 9}}, "limit": 1},
                {"title": "Peers", "dots": {"choose": {"ours": [4.8, 4, 5], "theirs": 300, "absent": None}}},
                {"title": "Neither", "curves": {}},
            ],
        },
        "http": {"run": RUN | {"failed": "exit status 1"}},
        "films": {"run": RUN, "skipped": "no ratings beside the project"},
    }


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def texts(figure: Any) -> list[str]:
    import matplotlib.text

    return [found.get_text() for found in figure.findobj(matplotlib.text.Text)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, to be read again."""
    figures: list[Any] = []

    class Kept(plots.Figure):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            figures.append(self)

    monkeypatch.setattr(plots, "Figure", Kept)
    return figures


def test_a_missed_bar_is_visible_in_all_three(tmp_path: Path, drawn: list[Any]) -> None:
    found = results()
    rows = report.write(found, tmp_path)
    (line,) = [row for row in report.terminal(found, rows).splitlines() if "5,000 edges" in row]
    assert line.endswith("MISSED")
    page = (tmp_path / "report.md").read_text()
    row = (
        "| choose, 5,000 edges: times touch-only | 2.5 (17 µs) |  | ≤ 1.6 | **MISSED** | `python -m benchmarks kernels"
    )
    assert row in page
    bars = json.loads((tmp_path / "summary.json").read_text())["bars"]
    assert [bar["what"] for bar in bars if bar["verdict"] == "MISSED"] == [
        "choose, 5,000 edges: times touch-only",
        "choose, 20,000 edges: times touch-only",
    ]
    words = texts(drawn[0])
    assert "2.5  (bar ≤ 1.6)  MISSED" in words
    assert "missing  (bar ≤ 1.3)  MISSED" in words
    assert "1.9  (bar ≤ 2)" in words


def test_the_page_has_a_panel_for_each_plot_that_can_be_drawn(
    tmp_path: Path, drawn: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    report.write(results(), tmp_path)
    titles = {axes.get_title(loc="left") for part in drawn for axes in part.get_axes()}
    for part in drawn[0].subfigs:
        titles |= {axes.get_title(loc="left") for axes in part.get_axes()}
        titles |= {axes.get_title(loc="left") for cell in part.subfigs for axes in cell.get_axes()}
    assert titles == {"Every bar", "Growth", "Latency", "Peers"}
    assert "a plot of growth is left out: a plot needs one of series" in capsys.readouterr().err
    width, height = png_size(tmp_path / "report.png")
    assert width == 1400
    assert 800 < height < 2500


def test_the_markdown_has_every_figure_and_says_what_is_absent(tmp_path: Path) -> None:
    report.write(results(), tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "Measured on 2 x CPU; abc1234; 2026-11-28; quick, figures are rougher." in page
    assert "| exec to first recommendation | 0.98 s | 0.96 to 1.02 | ≤ 1.0 | holds | `python -m benchmarks" in page
    assert "| http | FAILED: exit status 1 |" in page
    assert "| films | skipped: no ratings beside the project |" in page
    assert "## growth\n\n`python -m benchmarks growth --quick`\n\n| edges | µs |" in page


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    startup = {"startup": results()["startup"]}
    rows = report.write(startup, tmp_path)
    assert [row.what for row in rows] == ["exec to first recommendation"]
    assert report.good(startup, rows)
    assert "kernels" not in (tmp_path / "report.md").read_text()
    assert png_size(tmp_path / "report.png")[1] < 300


def test_no_bars_no_plots(tmp_path: Path) -> None:
    report.write({"films": results()["films"]}, tmp_path)
    assert png_size(tmp_path / "report.png")[0] == 1400
    assert "no bars here; films skipped" in (tmp_path / "report.md").read_text()


def test_a_failure_is_not_good_and_a_skip_is() -> None:
    found = results()
    assert report.good({"films": found["films"]}, [])
    assert not report.good({"http": found["http"]}, [])
    assert not report.good({"kernels": found["kernels"]}, table.rows({"kernels": found["kernels"]}))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ([], "a plot is a dict with a title"),
        ({"title": "A", "series": {}}, "must name at least one line"),
        ({"title": "A", "series": {"a": [[1]]}}, "is no value of series"),
        ({"title": "A", "series": {"a": [3]}}, "is no value of series"),
        ({"title": "A", "dots": {"a": {"b": [1, 2]}}}, "is no value of dots"),
        ({"title": "A", "dots": {"a": [1]}}, "each of dots must be a dict"),
        ({"title": "A", "series": {"a": [[1, 2]]}, "dots": {"a": {"b": 1}}}, "has series and dots"),
    ],
)
def test_a_plot_of_another_shape_is_refused_with_a_sentence(spec: Any, sentence: str) -> None:
    with pytest.raises(plots.PlotError, match=sentence):
        plots.check(spec)


def test_a_spread_comes_from_beside_the_median() -> None:
    bar = table.Bar("http", "answers", "recommend/*/ratio/median", ">=", 0.5)
    result = {"recommend": {"w100": {"ratio": {"median": 0.8, "min": 0.7, "max": 0.9}}}}
    ((where, value, beside),) = table.found(result, bar.path)
    row = table.measured(bar, where, value, beside)
    assert (row.what, row.spread, row.margin) == ("answers (w100)", "0.7 to 0.9", 1.6)


def test_report_renders_again_without_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "startup.json").write_text(json.dumps(results()["startup"]))
    monkeypatch.setattr(command, "OUT", tmp_path)
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("it measures"))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--report"])
    command.main()
    assert "1 of 1 bars hold" in capsys.readouterr().out
    assert (tmp_path / "report.png").exists()


def test_nothing_to_report_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "OUT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--report", "startup"])
    with pytest.raises(SystemExit, match="nothing measured yet"):
        command.main()


def test_an_unknown_benchmark_is_named() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks", "nosuch"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no benchmark nosuch; there are kernels," in done.stderr


def test_every_figure_names_a_benchmark_that_is_run() -> None:
    assert {bar.module for bar in table.BARS + table.FIGURES} <= set(command.BENCHMARKS)
