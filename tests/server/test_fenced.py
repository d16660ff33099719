"""No kernel of the hot path reads or writes beyond an array, whatever is asked of it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("ends", ["back", "front"])
def test_kernels_stay_within_their_arrays(ends: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.server.fenced", ends], capture_output=True, text=True, timeout=250, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert all(int(answered) > 300 for answered in run.stdout.split()), "some of it goes the usual way"
