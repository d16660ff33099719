"""A TCP proxy on loopback that breaks the network on demand, and can put TLS before a server that has none."""

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.parts.host import Certificate, free_ports

T = TypeVar("T")
_CHUNK = 65_536
_CHUNKS_IN_FLIGHT = 64


class Proxy:
    """Listens on ``port`` and forwards to ``target_port``, until told otherwise.

    ``pass_through()`` heals; ``delay(ms)`` holds every byte that long in each direction, without a limit on the rate;
    ``stall()`` accepts and holds everything (a network that drops packets); ``reset()`` ends the open connections with
    RST and serves new ones as before; ``refuse()`` resets them and closes the port. All return when they are in force.
    """

    def __init__(self, target_port: int, port: int = 0, tls: Certificate | None = None) -> None:
        self.port = port or free_ports(1)[0]
        self.target_port = target_port
        self.connections = 0  # accepted since the start
        self._delay_s = 0.0
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._tls: ssl.SSLContext | None = None
        if tls is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(tls.certificate, tls.key)
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()
        self.pass_through()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def pass_through(self) -> None:
        self._run(self._set(delay_s=0.0, flowing=True, listening=True))

    def delay(self, ms: float) -> None:
        self._run(self._set(delay_s=ms / 1000, flowing=True, listening=True))

    def stall(self) -> None:
        self._run(self._set(delay_s=0.0, flowing=False, listening=True))

    def reset(self) -> None:
        self._run(self._reset())

    def refuse(self) -> None:
        self._run(self._set(delay_s=0.0, flowing=True, listening=False))

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self.refuse()
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _set(self, delay_s: float, flowing: bool, listening: bool) -> None:
        self._delay_s = delay_s
        if flowing:
            self._flowing.set()
        else:
            self._flowing.clear()
        if listening and self._server is None:
            self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port, ssl=self._tls)
        elif not listening and self._server is not None:
            # asyncio leaks a connection that was accepted in the turn before its server closes: let it arrive first.
            self._loop.remove_reader(self._server.sockets[0].fileno())
            await asyncio.sleep(0.005)
            self._server.close()
            self._server = None
            await self._reset()

    async def _reset(self) -> None:
        for writer in list(self._open):
            raw = writer.get_extra_info("socket")
            if raw is not None and raw.fileno() >= 0:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends RST
            writer.transport.abort()
        await asyncio.sleep(0)  # transports close their sockets in the loop's next turn
        await asyncio.sleep(0)

    async def _end(self) -> None:
        """Wait for every connection to be gone; what is just accepted, in a TLS handshake or saying goodbye is cut."""
        await asyncio.sleep(0.01)  # what the kernel accepted before the port closed becomes a task
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await self._reset()
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0.01)
        await self._reset()  # connections whose task was cancelled before its first step
        await asyncio.sleep(0.01)

    def _accepted(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(near_out)
        self._serving.add(task := self._loop.create_task(self._accept(near_in, near_out)))
        task.add_done_callback(self._serving.discard)

    async def _accept(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        try:
            far_in, far_out = await asyncio.open_connection("127.0.0.1", self.target_port)
            self._open.add(far_out)
            try:
                await self._both(self._pump(near_in, far_out), self._pump(far_in, near_out))
            finally:
                await self._close(far_out)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            await self._close(near_out)

    async def _both(self, *pumps: Coroutine[Any, Any, None]) -> None:
        """Run both directions until one has ended."""
        running = [asyncio.ensure_future(pump) for pump in pumps]
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in running:
                pump.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        try:
            await writer.wait_closed()
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
        self._open.discard(writer)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Every chunk is due a delay after it came, so a delay costs time and no throughput."""
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_IN_FLIGHT)
        reading = asyncio.ensure_future(self._read(source, held))
        try:
            while True:
                due, chunk = await held.get()
                await asyncio.sleep(due - self._loop.time())
                await self._flowing.wait()
                if not chunk:
                    return
                sink.write(chunk)
                await sink.drain()
        except OSError:
            return
        finally:
            reading.cancel()

    async def _read(self, source: asyncio.StreamReader, held: "asyncio.Queue[tuple[float, bytes]]") -> None:
        while True:
            try:
                chunk = await source.read(_CHUNK)
            except OSError:
                chunk = b""
            await held.put((self._loop.time() + self._delay_s, chunk))
            if not chunk:
                return
