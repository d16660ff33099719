"""The comparison with other libraries: ours is measured, and a peer that cannot be had is left out with its reason."""

import sys
from pathlib import Path

import pytest

from benchmarks.peer_library import Library, Peer, Unavailable, bounded, install
from benchmarks.peers import run

NOWHERE = Peer("nowhere", (("--no-index", "nowhere"),))  # --no-index: pip asks nobody


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An environment without pip's own files, which take seconds to make: pip is this environment's."""
    import venv

    venv.create(tmp_path, with_pip=False, system_site_packages=False)
    site = next(tmp_path.glob("lib/python*/site-packages"))
    (site / "pip.pth").write_text(str(Path(pytest.__file__).parents[1]) + "\n")
    return tmp_path


def test_our_side_is_measured_without_any_peer(folder: Path) -> None:
    result = run(quick=True, peers=[NOWHERE], folder=folder, arms=(20,), rounds=2, seconds=0.001)
    assert result["left_out"]["nowhere"].startswith("No matching distribution found for nowhere")
    assert result["ratios"] == {}
    assert set(result["versions"]) == {"croupier"}
    for name, cost in result["cost"].items():
        assert 0 < cost["20"]["choose"]["min"] <= cost["20"]["choose"]["median"] <= cost["20"]["both"]["max"], name
        assert 0.3 < result["of_best"][name] <= 1.0, name
    assert "| croupier UCB1 |" in result["text"]
    assert "Left out: nowhere: No matching distribution found for nowhere." in result["text"]
    assert set(result["plots"][0]["dots"]["learn"]) == set(result["cost"])


def test_a_library_that_cannot_be_imported_says_so(folder: Path) -> None:
    with pytest.raises(Unavailable, match="ModuleNotFoundError: No module named 'river'"):
        Library(folder / "bin" / "python", "river")


def test_what_hangs_is_ended() -> None:
    with pytest.raises(Unavailable, match=r"not done after 0\.2 s"):
        bounded([sys.executable, "-c", "import time; time.sleep(60)"], 0.2)


def test_a_peer_is_installed_once(folder: Path) -> None:
    there = Peer("there", ())
    assert install(there, folder) == folder / "bin" / "python"
    written = (folder / "there.installed").stat().st_mtime_ns
    install(there, folder)
    assert (folder / "there.installed").stat().st_mtime_ns == written
