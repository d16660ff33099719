"""What one process writes while another reads it: each pair of a mean and an inverse is one that was written."""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numba import njit, types
from numpy.typing import NDArray

from bandits import choosing, kernels, reaching
from bandits.diag_linucb import DiagParameters, Serving
from server.shared import RunFolder, arrays_in, lay_out, map_file

EDGES = 64
STATES = 100
SECONDS = 3.0
# State i has mean i and sqrt(inverse) (i + 1) / 128: their sum, a score with alpha 1, tells both apart.
WRITER = """
import mmap, os, sys
import numpy as np
from bandits import kernels
edges, states = int(sys.argv[2]), int(sys.argv[3])
pairs = np.frombuffer(mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0), np.float32, 2 * edges).reshape(edges, 2)
serving, dirty = np.arange(edges, dtype=np.uint32), np.arange(edges)
tables = []
for i in range(states):
    total = (128.0 / (i + 1)) ** 2
    tables.append(np.tile([i * total, total - 1.0], (edges, 1)))
kernels.refresh_all(tables[0], 1.0, 1.0, serving, pairs)
print("ready", flush=True)
while os.getppid() == int(sys.argv[4]):
    for i, table in enumerate(tables):
        if i % 2:
            kernels.refresh(table, 1.0, 1.0, serving, dirty, pairs)
        else:
            kernels.refresh_all(table, 1.0, 1.0, serving, pairs)
"""


@contextmanager
def written(folder: Path) -> Iterator[NDArray[np.float32]]:
    """The pairs of a shared file, mapped for reading, that a second process writes without a pause."""
    specs, size = lay_out({"pairs": ("<f4", (EDGES, 2))})
    path, _ = RunFolder(folder, folder).create("pairs", size)
    arguments = [str(path), str(EDGES), str(STATES), str(os.getpid())]
    with subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        try:
            yield arrays_in(map_file(str(path)), specs)["pairs"]
            assert writer.poll() is None
        finally:
            writer.kill()


@pytest.mark.parametrize("items", [EDGES, 16 * EDGES], ids=["every item looked at", "items listed"])
def test_every_pair_that_is_read_was_written_as_a_pair(tmp_path: Path, items: int) -> None:
    indptr = np.array([0, EDGES])
    seen, mixed = set[int](), 0
    with written(tmp_path) as pairs:
        serving = Serving(indptr, np.arange(EDGES, dtype=np.uint32), pairs, items, DiagParameters(alpha=1.0))
        clusters, weights = np.zeros(1, np.uint32), np.full(1, 65535, np.uint16)
        serving.fill(clusters, weights, EDGES, word=1)  # compiled, or loaded
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            got, _ = serving.fill(clusters, weights, EDGES, word=1)
            scores = serving.numbers[0, :got]
            state = np.floor(scores)
            np.testing.assert_allclose(scores - state, (state + 1) / 128, atol=1e-5)
            assert got == EDGES
            seen.update({int(state[0]), int(state[-1])})
            mixed += state[0] != state[-1]
    assert len(seen) > STATES / 2, "it was written meanwhile"
    assert mixed > 100, "it was read while it was written"


# One instruction for the eight bytes; other processors spell it in other ways.
X86 = platform.machine() == "x86_64"
LOAD = re.compile(r"\s*v?movsd\s+\S*\(.*\), %xmm")
STORE = re.compile(r"\s*movq\s+%r\w+, \S*\(.*,8\)")


def machine_code(kernel: object, *arguments: object) -> tuple[str, str]:
    """LLVM's text and the machine code of a kernel, compiled anew: what comes from the cache has none."""
    made = njit(nogil=True, **{"error_model": "numpy"})(kernel.py_func)  # type: ignore[attr-defined]
    made.compile(arguments)
    (text,), (code,) = made.inspect_llvm().values(), made.inspect_asm().values()
    return text, code


def test_a_pair_is_read_by_one_load_of_eight_bytes() -> None:
    kinds = [types.int64[::1], types.uint16[::1], types.int64[::1], types.int64[::1], types.int64, types.boolean]
    text, code = machine_code(reaching.accumulate, *kinds, types.uint32[::1])
    loads = [line for line in text.splitlines() if " volatile " in line]
    assert loads, "the loads of pairs are volatile, so that no optimiser splits them"
    assert all(re.search(r"load volatile double, .*, align 8$", line) for line in loads)
    assert not X86 or sum(bool(LOAD.match(line)) for line in code.splitlines()) >= len(loads)

    kinds = [types.int64[::1], types.uint32[::1], types.uint16[::1], types.uint8[::1]]
    text, _ = machine_code(choosing._mark_played, *kinds)
    loads = [line for line in text.splitlines() if "load atomic" in line]
    assert loads
    assert all(re.search(r"load atomic i64, .* monotonic, align 8", line) for line in loads)


def test_a_pair_is_written_by_one_store_of_eight_bytes() -> None:
    edges, pairs = types.float64[:, ::1], types.float32[:, ::1]
    kinds = [edges, types.float64, types.float64, types.uint32[::1], types.int64[::1], pairs]
    for kernel, arguments in ((kernels.refresh, kinds), (kernels.refresh_all, [*kinds[:4], pairs])):
        text, code = machine_code(kernel, *arguments)
        stores = [line for line in text.splitlines() if "store atomic" in line]
        assert stores
        assert all(re.search(r"store atomic i64 .* monotonic, align 8", line) for line in stores)
        assert not re.search(r"store float ", text), "nothing writes half a pair"
        assert not X86 or any(STORE.match(line) for line in code.splitlines())
