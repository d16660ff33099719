"""Real servers for tests: `croupier serve` as a child, its children by name, and load that notes what was said."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import aiohttp
import httpx
import psutil

START_S = 60.0
SERVE = "from server.cli import main; main()"


class Server:
    """A running `croupier serve`; `flags` are its settings."""

    def __init__(self, data: Path, **flags: object) -> None:
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        self.errors = data.parent / f"{data.name}.stderr"
        command = [sys.executable, "-c", SERVE, "serve", "--port=0", f"--data={data}", *arguments]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if found is None:
            self.process.wait(START_S)
            self.end()
            raise AssertionError(f"no address in {line!r}; stderr: {self.errors.read_text()}")
        self.url = found[0]

    def children(self) -> dict[str, int]:
        """name -> pid of the processes under the supervisor that are alive."""
        found = {}
        for each in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # it has just ended
                if each.status() != psutil.STATUS_ZOMBIE:
                    found[each.name()] = each.pid
        return found

    def kill(self, name: str) -> int:
        """kill -9 of one child, and its pid; returns when another is there in its place."""
        pid = self.children()[name]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: self.children().get(name, pid) != pid, 30)
        return pid

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def end(self) -> None:
        """Whatever it does, it ends now."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def serving(data: Path, **flags: object) -> Iterator[Server]:
    server = Server(data, **flags)
    try:
        yield server
    finally:
        server.end()


def make_policy(http: httpx.Client, name: str, body: dict[str, object]) -> None:
    """Makes a policy and waits until it is shown, which a busy machine may do later than the answer."""
    assert http.put(f"/v1/policies/{name}", json=body).status_code in (201, 202)
    wait_for(lambda: http.get(f"/v1/policies/{name}").status_code == 200)


def wait_for(condition: object, seconds: float = 20.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


def client(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=30)


class Said(NamedTuple):
    """One thing the server said: a decision, or that a reward is accepted."""

    decision_id: str
    item: str
    at_ms: int


class Load:
    """`users` users in a loop, each: recommend, then reward what was shown, sometimes twice."""

    def __init__(self, url: str, policy: str, users: int = 8) -> None:
        self.url, self.policy, self.users = url, policy, users
        self.decisions: list[Said] = []
        self.accepted: list[Said] = []
        self.unanswered: list[Said] = []
        self.statuses: dict[int, int] = {}
        self.broken = 0
        self._stop = False

    async def run(self) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(self._user(session, user) for user in range(self.users)))

    def stop(self) -> None:
        self._stop = True

    async def _post(self, session: aiohttp.ClientSession, path: str, body: object) -> tuple[int, object] | None:
        try:
            async with session.post(self.url + path, json=body) as answer:
                self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
                return answer.status, await answer.json()
        except (aiohttp.ClientError, OSError, TimeoutError):
            self.broken += 1
            return None

    async def _user(self, session: aiohttp.ClientSession, user: int) -> None:
        turn = 0
        while not self._stop:
            turn += 1
            segment = f"s{(user * 7 + turn) % 5}"
            query = {"policy": self.policy, "user": {"segment": segment}}
            answer = await self._post(session, "/v1/recommend", query)
            if answer is None or answer[0] != 200:
                await asyncio.sleep(0.02)
                continue
            decision = answer[1]
            assert isinstance(decision, dict)
            said = Said(decision["decision_id"], decision["items"][0]["id"], time.time_ns() // 1_000_000)
            self.decisions.append(said)
            for _ in range(1 + turn % 2):
                await self._reward(session, said)

    async def _reward(self, session: aiohttp.ClientSession, said: Said) -> None:
        answer = await self._post(
            session, "/v1/feedback", {"decision_id": said.decision_id, "item": said.item, "reward": 1}
        )
        if answer is not None and answer[0] == 202:
            self.accepted.append(said)
        elif answer is None or "in-doubt" in str(answer[1]):  # of any other refusal the contract says: nothing was done
            self.unanswered.append(said)
