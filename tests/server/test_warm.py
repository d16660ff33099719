"""What is made ready before the first request: kernels in their cache, modules in memory."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.warm import EVERY, warm_up, warm_worker
from streaming.control import ALGORITHMS
from tests.server.host_parts import random_graph
from tests.server.processes import client, make_policy, serving, wait_for

ROOT = Path(__file__).parents[2]


def test_every_kind_of_policy_is_gone_through() -> None:
    assert {spec.algorithm for spec in EVERY} == set(ALGORITHMS)
    rules = {(spec.parameters.get("rule"), spec.parameters.get("regularizer")) for spec in EVERY}
    assert {("classic", None), ("classic", "tsallis")} <= rules
    warm_up(EVERY)
    warm_worker(EVERY)


def test_the_image_warms_up_by_a_command_that_works() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    (line,) = [line for line in lines if "server.warm" in line]
    arguments = line.split("/bin/python ")[1].split()
    found = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


# Decisions and rewards over a learned replica, and which kernels were loaded for them beside what `warm_worker` had.
FIRST_REQUESTS = """
import gc, pathlib, tempfile
from numba.core.dispatcher import Dispatcher
from server.warm import warm_worker
warm_worker()
from server.schemas import FeedbackRow, User
from streaming.control import PolicyPut, PolicySpec
from tests.server.host_parts import Host, random_graph

def loaded():
    found = [each for each in gc.get_objects() if isinstance(each, Dispatcher)]
    return {(each.py_func.__module__, each.py_func.__qualname__, str(sig)) for each in found for sig in each.overloads}

with tempfile.TemporaryDirectory() as folder:
    host = Host(pathlib.Path(folder))
    host.diag("films", random_graph())
    host.follow(PolicyPut("h", PolicySpec("banker"), ["a", "b", "c"]))
    for _ in range(2):
        before = loaded()
        for user in (User(embedding=[1.0, 0.0, 0.5, 0.1]), User(clusters=[0, 3], weights=[0.5, 0.5])):
            decision = host.recommend("films", user=user, k=3, exclude=[random_graph().ids[0]])
            host.intake.take([FeedbackRow(decision.decision_id, decision.items[0].id, 1.0)] * 9)
        for user in (b'{"embedding": [1.0, 0.0, 0.5, 0.1]}', b'{"clusters": [0, 3], "weights": [0.5, 0.5]}'):
            assert host.recommender.answer(b'{"policy": "films", "user": %b, "k": 3}' % user)
        decision = host.recommend("h", user=User(segment="s"), k=2)
        host.intake.take([FeedbackRow(decision.decision_id, decision.items[0].id, 1.0)] * 9)
        print(sorted(loaded() - before))
        host.follow()
"""


def test_the_first_requests_to_a_worker_load_no_kernel() -> None:
    found = subprocess.run([sys.executable, "-c", FIRST_REQUESTS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n[]\n"


# Python runs it at the start of every process: on a signal it writes down which modules are there.
CUSTOM = """
import os, signal, sys
def tell(number, frame):
    with open(os.path.join(os.environ["MODULES"], str(os.getpid())), "w") as file:
        file.write("\\n".join([*sys.modules, "."]))
signal.signal(signal.SIGUSR2, tell)
"""
UNUSED = {"aiohttp", "hdrh", "hiredis", "httpx", "kafka", "matplotlib", "redis", "rich", "scipy", "sklearn"}


def test_no_process_of_a_server_has_loaded_what_it_does_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(CUSTOM)
    modules = tmp_path / "modules"
    modules.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MODULES", str(modules))
    with serving(tmp_path / "data") as server, client(server) as http:
        make_policy(http, "h", {"algorithm": "banker", "arms": ["a", "b"]})
        make_policy(http, "films", {"algorithm": "diag-linucb", "reward": {"window": "30m", "default": 0}})
        body = random_graph().to_bytes()
        kind = {"content-type": "application/octet-stream"}
        assert http.put("/v1/policies/films/graph", content=body, headers=kind).status_code == 202
        user = {"clusters": [0, 1]}
        ask = {"policy": "films", "user": user}
        wait_for(lambda: http.post("/v1/recommend", json=ask).status_code == 200)
        decision = http.post("/v1/recommend", json={"policy": "h"}).json()
        row = {"decision_id": decision["decision_id"], "item": decision["items"][0]["id"], "reward": 1}
        assert http.post("/v1/feedback", json=row).status_code == 202
        for path in ("/metrics", "/docs", "/", "/readyz", "/openapi.json", "/v1/policies/h/arms"):
            assert http.get(path).status_code == 200
        pids = {"supervisor": server.process.pid, **server.children()}
        assert len(pids) == 4
        for name, pid in pids.items():
            os.kill(pid, signal.SIGUSR2)
            told = modules / str(pid)
            wait_for(lambda told=told: told.exists() and told.read_text().endswith("."))
            found = {module.partition(".")[0] for module in told.read_text().split()}
            assert "numba" in found
            assert found & UNUSED == set(), name
        assert "server.agent" not in (modules / str(pids["worker 0"])).read_text().split()
        assert server.stop() == 0
