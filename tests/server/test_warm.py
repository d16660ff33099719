"""What is made ready before the first request: kernels in their cache, modules in memory."""

import subprocess
import sys
from pathlib import Path

from server.warm import EVERY, warm_up
from streaming.control import ALGORITHMS

ROOT = Path(__file__).parents[2]


def test_every_kind_of_policy_is_gone_through() -> None:
    assert {spec.algorithm for spec in EVERY} == set(ALGORITHMS)
    rules = {(spec.parameters.get("rule"), spec.parameters.get("regularizer")) for spec in EVERY}
    assert {("classic", None), ("classic", "tsallis")} <= rules
    warm_up(EVERY)


def test_the_image_warms_up_by_a_command_that_works() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    (line,) = [line for line in lines if "server.warm" in line]
    arguments = line.split("/bin/python ")[1].split()
    found = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_a_start_loads_nothing_heavy_that_it_does_not_use() -> None:
    code = (
        "import sys; from server import supervisor; supervisor.preload_loop(); supervisor.preload_http(); "
        "print([name for name in ('scipy.special', 'sklearn', 'matplotlib') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
