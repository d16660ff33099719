"""The demo as a newcomer meets it: a process in a terminal, with the real server behind it."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from loadtest.worlds import headlines
from server.demo import chart, curl_line
from server.launch import ServerProcess, StartFailed

DEMO = "import sys; from server.demo import run_demo; sys.exit(run_demo({arguments}))"


@contextmanager
def demo_of(arguments: str, temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """A running demo; one that a failed test leaves is interrupted, so that it can tidy up."""
    command = [sys.executable, "-c", DEMO.format(arguments=arguments)]
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as demo:
        try:
            yield demo
        finally:
            if demo.poll() is None:
                demo.terminate()


def shared_memory(pids: list[int]) -> set[str]:
    """The folders in memory that these processes, or theirs, have mapped; other servers' are none of our business."""
    found: set[str] = set()
    for pid in pids:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            maps = (each.path for each in process.memory_maps())
            found |= {str(Path(path).parent) for path in maps if path.startswith("/dev/shm/croupier")}
    return found


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            if int(stat[stat.rindex(")") + 2 :].split()[1]) == pid:
                found.append(int(entry))
    return found


def read_until(demo: subprocess.Popen[str], pattern: str) -> str:
    """The demo's lines up to the one that matches."""
    assert demo.stdout is not None
    lines = []
    for line in demo.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return "".join(lines)
    raise AssertionError("the demo ended:\n" + "".join(lines))


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_the_demo_learns_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo_of("8", tmp_path) as demo:
        assert demo.stdout is not None
        head = read_until(demo, r"\bcurl\b")
        url = re.search(r"(http://\S+)/docs", head)
        line = re.search(r"curl .*", head)
        assert url is not None
        assert line is not None
        # The line's request as it would be pasted, by a client that is here for certain.
        words = shlex.split(line[0])
        answer = httpx.post(words[2], content=words[-1], headers={"content-type": "application/json"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["policy"] == "headlines"
        assert httpx.get(f"{url[1]}/docs").status_code == 200
        servers = children(demo.pid)
        assert servers
        shared = shared_memory(servers)
        assert shared
        rest = demo.stdout.read()
        assert demo.wait(30) == 0, head + rest
    last = dict(re.findall(r"^  (headlines|films) .*: ([\d.]+) times random", rest, re.MULTILINE))
    assert float(last["films"]) > 1.5, rest
    assert float(last["headlines"]) > 1.2, rest  # 30 s bring it to 2
    assert "as sent, each once" in rest, rest
    assert gone(servers)
    assert not list(tmp_path.iterdir())
    assert not [folder for folder in shared if Path(folder).exists()]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url[1]}/healthz")


def test_ctrl_c_ends_the_demo_in_order(tmp_path: Path) -> None:
    with demo_of("None", tmp_path) as demo:
        assert demo.stdout is not None
        read_until(demo, r"\d+ s .*random")
        servers = children(demo.pid)
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
        assert demo.wait(30) == 0, rest
    assert "Summary" in rest
    assert gone(servers)
    assert not list(tmp_path.iterdir())


def test_a_killed_demo_takes_its_server_along(tmp_path: Path) -> None:
    with demo_of("None", tmp_path) as demo:
        head = read_until(demo, r"\bcurl\b")
        servers = children(demo.pid)
        demo.kill()
        demo.wait()
        deadline = time.monotonic() + 15
        while not gone(servers) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert gone(servers), head


def test_a_server_that_cannot_start_is_told_in_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with demo_of(f"5, port={taken.getsockname()[1]}", tmp_path) as demo:
            assert demo.stdout is not None
            text = demo.stdout.read()
            assert demo.wait(30) == 1, text
    assert "the server ended with status" in text
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_a_duration_of_nothing_is_told(tmp_path: Path) -> None:
    with demo_of("0", tmp_path) as demo:
        assert demo.stdout is not None
        assert "above 0" in demo.stdout.read()
        assert demo.wait(10) == 1


async def test_a_child_that_ends_at_once_says_why() -> None:
    with ServerProcess(["--workers", "none"]) as server, pytest.raises(StartFailed, match="workers"):
        await server.ready(20)
    assert not server.output.exists()


def test_the_curl_line_is_a_shell_line_with_a_json_body() -> None:
    words = shlex.split(curl_line("http://127.0.0.1:8000", headlines()))
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/v1/recommend"]
    assert msgspec.json.decode(words[-1]) == {"policy": "headlines", "user": {"segment": "day"}, "k": 1}


def test_the_chart_goes_from_random_to_the_best() -> None:
    assert chart([1.0, 2.0, 3.0], 3.0) == "▁▄█"
    assert chart([], 3.0) == ""
