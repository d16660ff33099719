"""Walks a page as a reader would: its blocks in order, in a folder of its own, at a real server."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx

from tests.pages import ROOT, Block
from tests.parts.host import free_ports, wait_for
from tests.server.processes import SERVE

ADDRESS = "http://127.0.0.1:8000"
SERVICE = re.compile(r"^(?!.*& *$)(?:\.venv/bin/)?croupier (serve|learner|router)\b([^#\n]*).*$", re.MULTILINE)
SHOWN = re.compile(r"^[^#\n]*\bprint\(.*\) {2,}# (\S.*)$", re.MULTILINE)


class Walk:
    """`folder` is the reader's; `url` and `data` are the server's; `kafka` and `redis` where a block may need them."""

    def __init__(
        self, folder: Path, url: str, data: Path, kafka: str = "", redis: str = "", shop: str = "shop"
    ) -> None:
        self.folder, self.url, self.data = folder, url, data
        self.kafka, self.redis, self.shop = kafka, redis, shop
        self.services: list[tuple[subprocess.Popen[bytes], list[int]]] = []
        self.ports: dict[str, int] = {}  # of the services started last
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        for program, arguments in (("croupier", f" -c '{SERVE}'"), ("python", ""), ("python3", "")):
            shim = programs / program
            shim.write_text(f'#!/bin/sh\nexec {sys.executable}{arguments} "$@"\n')
            shim.chmod(0o755)
        (folder / "examples").symlink_to(ROOT / "examples")
        self.env = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(folder),
            "CROUPIER_URL": url,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error::DeprecationWarning:__main__",
        }

    def run(self, block: Block) -> str:
        """What the block printed; AssertionError where it fails, or prints other than it says it does."""
        text = self._placed(block.text)
        if block.language == "python":
            printed = self._finish(block, [sys.executable, "-c", text])
            for shown in SHOWN.findall(text):
                assert shown in printed, f"{block.at} says that it prints {shown!r}; it printed:\n{printed}"
            return printed
        if SERVICE.search(text):
            return self._serve(block, text)
        printed = self._finish(block, ["bash", "-euo", "pipefail", "-c", text])
        for shown in SHOWN.findall(text):  # a program in a here-document
            assert shown in printed, f"{block.at} says that it prints {shown!r}; it printed:\n{printed}"
        return printed

    def end(self) -> None:
        """SIGTERM to what still runs, whose exit statuses must be 0."""
        services, self.services = self.services, []
        for bash, pids in services:
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
            assert bash.wait(90) == 0, self._logs()

    def kill(self) -> None:
        for bash, pids in self.services:
            for pid in pids:
                with suppress(ProcessLookupError):  # it ended by itself
                    os.kill(pid, signal.SIGKILL)
            bash.wait(30)

    def _placed(self, text: str) -> str:
        """The text with this test's addresses in place of the documentation's."""
        text = text.replace(ADDRESS, self.url).replace("/var/lib/croupier", str(self.data))
        if self.kafka:
            text = re.sub(r"kafka://[\w.:,]+/shop(\w*)", rf"kafka://{self.kafka}/{self.shop}\1?one_broker=yes", text)
            text = re.sub(r"redis://[\w.:,@]+/shop(\w*)", rf"{self.redis.rstrip('/')}/{self.shop}\1", text)
            text = re.sub(r"\bh1:9092\b", self.kafka, text)
            text = re.sub(r"(?<=\s)shop\b", self.shop, text)
        return text

    def _finish(self, block: Block, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, f"{block.at}\n{block.text}\n{done.stdout}\n{done.stderr}"
        assert '"urn:croupier:problem' not in done.stdout, f"{block.at}\n{done.stdout}"
        return done.stdout

    def _serve(self, block: Block, text: str) -> str:
        """Starts each line that is a service in the background, and returns when all of them are up."""
        ports = self.ports = {}

        def started(match: re.Match[str]) -> str:
            kind, flags = match[1], re.sub(r" --metrics-port \d+", "", match[2]).strip()
            ports[kind] = free_ports(1)[0]
            own = f"--port={ports[kind]} --data={self.folder / 'served'}" if kind == "serve" else ""
            own = own or f"--metrics-port={ports[kind]}"
            return f'croupier {kind} {flags} {own} >"{kind}.log" 2>&1 & echo $! >"{kind}.pid"; pids="$pids $!"'

        script = f"pids=\n{SERVICE.sub(started, text)}\nfor pid in $pids; do wait $pid || exit $?; done"
        bash = subprocess.Popen(["bash", "-euo", "pipefail", "-c", script], cwd=self.folder, env=self.env)
        files = [self.folder / f"{kind}.pid" for kind in ports]
        wait_for(lambda: all(file.exists() and file.read_text().strip() for file in files), f"{block.at} starts")
        self.services.append((bash, [int(file.read_text()) for file in files]))

        def up() -> bool:
            assert bash.poll() is None, f"{block.at}\n{self._logs()}"
            return all(self._is_up(kind, port) for kind, port in ports.items())

        wait_for(up, f"{block.at}: all are up\n{self._logs()}", timeout_s=120)
        return ""

    def _is_up(self, kind: str, port: int) -> bool:
        """A server says so in a line; learners and routers show their metrics."""
        if kind == "serve":
            return "is ready on" in (self.folder / "serve.log").read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def _logs(self) -> str:
        return "\n".join(f"{file.name}:\n{file.read_text()[-3000:]}" for file in sorted(self.folder.glob("*.log")))
