"""The loop of the compiled load driver: C connections, one request out on each, until the requests or the time end."""

from typing import NamedTuple

import numpy as np
from numba import njit

from loadtest import libc
from loadtest.answers import PARTIAL, STRANGE, Bytes, read_head
from loadtest.libc import Ints

FD, NUMBER, SENT, HAVE, LEFT, STATUS, CLOSES, BEGAN, FIELDS = range(9)  # of a wire
IDLE, DEAD = -1, -2  # NUMBER of a connection without a request, and of one that could not be made again
IN_HEAD = -1  # LEFT, bytes of the body still to come, while the head is not whole
# Of `counts`. ISSUED requests were sent or tried, UNANSWERED of them are still out; NOTICED are due or were.
ISSUED, NOTICED, LOST, MISREAD, RECONNECTS, NOT_RECONNECTED, UNANSWERED, LIVING, LAST_NS, LINE_AT, RESTING, COUNTS = (
    range(12)
)
HEAD_MAX = 8 << 10
READ = 64 << 10
EVENTS = 16
MORE, WHOLE, BROKEN = 0, 1, -2  # what a read found, beside STRANGE


class Run(NamedTuple):
    """All arrays of a run; requests are sent in their order, so those in line are numbers ISSUED to NOTICED."""

    wires: Ints  # i64[C, FIELDS], a connection: its socket, the request that is out, how far both ways are
    heads: Bytes  # u8[C, HEAD_MAX], the head of each one's answer as it comes
    line: Ints  # i64[C], a ring of the idle wires from LINE_AT on, RESTING of them, the longest idle first
    data: Bytes  # u8[bytes], the requests back to back
    starts: Ints  # i64[R + 1], where each begins; number n sends request n % R
    due: Ints  # i64[n], open loop: ns after the start, ascending; empty: closed loop, the next when a wire is free
    latency: Ints  # i64[n], ns from due (closed loop: from sending) to the whole answer; -1 without a 2xx answer
    late: Ints  # i64[n], open loop: ns from due until this loop saw it; -1 until then
    statuses: Ints  # i64[1000], answers by status
    counts: Ints  # i64[COUNTS], what else happened
    address: Bytes  # the server's sockaddr


@njit(nogil=True)
def size_of(run: Run, number: int) -> int:
    r = number % (len(run.starts) - 1)
    return run.starts[r + 1] - run.starts[r]


@njit(nogil=True)
def push(epoll: int, run: Run, c: int) -> bool:
    """Send what the socket takes of the request that is out; False where the connection is broken."""
    wire = run.wires[c]
    begin, before, size = run.starts[wire[NUMBER] % (len(run.starts) - 1)], wire[SENT], size_of(run, wire[NUMBER])
    sent = libc.send(wire[FD], run.data.ctypes.data + begin + before, size - before, libc.NOW)
    if sent < 0 and libc.errno() != libc.AGAIN:
        return False
    wire[SENT] += max(0, sent)
    if wire[SENT] < size:
        libc.watch(epoll, libc.CHANGE, wire[FD], c, libc.IN | libc.OUT)
    elif before:
        libc.watch(epoll, libc.CHANGE, wire[FD], c, libc.IN)
    return True


@njit(nogil=True)
def read(wire: Ints, head: Bytes, scratch: Bytes) -> int:
    """Take in what has come: MORE is to come, WHOLE, BROKEN or STRANGE."""
    in_head = wire[LEFT] == IN_HEAD
    into = head[wire[HAVE] :] if in_head else scratch
    got = libc.recv(wire[FD], into.ctypes.data, len(into), libc.NOW)
    if got <= 0:
        return MORE if got < 0 and libc.errno() == libc.AGAIN else BROKEN
    if in_head:
        wire[HAVE] += got
        return read_heads(wire, head)
    wire[LEFT] -= got
    return STRANGE if wire[LEFT] < 0 else WHOLE if wire[LEFT] == 0 else MORE


@njit(nogil=True)
def read_heads(wire: Ints, head: Bytes) -> int:
    while True:
        end, status, length, closes = read_head(head, wire[HAVE])
        if end == PARTIAL and wire[HAVE] < len(head):
            return MORE
        if end <= PARTIAL:
            return STRANGE
        wire[HAVE] -= end
        if status >= 200:
            wire[LEFT], wire[STATUS], wire[CLOSES] = length - wire[HAVE], status, closes
            return STRANGE if wire[LEFT] < 0 else WHOLE if wire[LEFT] == 0 else MORE
        for i in range(wire[HAVE]):  # 100 Continue: the answer itself is still to come
            head[i] = head[end + i]


@njit(nogil=True)
def open_wire(epoll: int, run: Run, c: int) -> int:
    """Connect and watch; 0, or the errno, and then the wire is DEAD."""
    fd = libc.connect(run.address)
    run.wires[c, FD], run.wires[c, NUMBER] = fd, IDLE if fd >= 0 else DEAD
    if fd < 0:
        return -fd
    libc.watch(epoll, libc.ADD, fd, c, libc.IN)
    return 0


@njit(nogil=True)
def open_again(epoll: int, run: Run, c: int) -> None:
    """In place of a connection that has ended, or is of no more use."""
    libc.close(run.wires[c, FD])
    if open_wire(epoll, run, c) == 0:
        run.counts[RECONNECTS] += 1
    else:
        run.counts[NOT_RECONNECTED] += 1
        run.counts[LIVING] -= 1


@njit(nogil=True)
def rest(run: Run, c: int) -> None:
    """To the end of the line of idle wires, unless it is dead."""
    if run.wires[c, NUMBER] == IDLE:
        run.line[(run.counts[LINE_AT] + run.counts[RESTING]) % len(run.line)] = c
        run.counts[RESTING] += 1


@njit(nogil=True)
def send_next(epoll: int, run: Run, now: int) -> None:
    """The next request in line, on the wire that has been idle longest."""
    counts, c = run.counts, run.line[run.counts[LINE_AT]]
    counts[LINE_AT] = (counts[LINE_AT] + 1) % len(run.line)
    counts[RESTING] -= 1
    wire = run.wires[c]
    if wire[NUMBER] == DEAD:  # it died in its rest
        return
    wire[NUMBER], wire[SENT], wire[HAVE], wire[LEFT], wire[BEGAN] = counts[ISSUED], 0, 0, IN_HEAD, now
    counts[ISSUED] += 1
    counts[UNANSWERED] += 1
    if not push(epoll, run, c):
        end_request(epoll, run, c, BROKEN, 0)


@njit(nogil=True)
def end_request(epoll: int, run: Run, c: int, found: int, since_start: int) -> None:
    """Note what became of a wire's request, and let the wire rest, a new one where this one is of no more use."""
    counts, wire = run.counts, run.wires[c]
    number = wire[NUMBER]
    counts[UNANSWERED] -= 1
    counts[LOST] += found == BROKEN
    counts[MISREAD] += found == STRANGE
    wire[NUMBER] = IDLE
    if found == WHOLE:
        counts[LAST_NS] = since_start
        run.statuses[wire[STATUS]] += 1
        if wire[STATUS] // 100 == 2:
            run.latency[number] = since_start - (run.due[number] if len(run.due) else wire[BEGAN])
    if found != WHOLE or wire[CLOSES] or wire[SENT] < size_of(run, number):
        open_again(epoll, run, c)
    rest(run, c)


@njit(nogil=True)
def take(epoll: int, run: Run, c: int, what: int, scratch: Bytes) -> int:
    """What an event on a wire comes to: MORE where its request goes on, or there is none."""
    if run.wires[c, NUMBER] < 0:  # the server ends an idle connection, or says goodbye (408)
        open_again(epoll, run, c)
        return MORE
    if what & libc.OUT and not push(epoll, run, c):
        return BROKEN
    return read(run.wires[c], run.heads[c], scratch) if what & ~np.uint32(libc.OUT) else MORE


@njit(nogil=True)
def drive(epoll: int, run: Run, seconds_ns: int, patience_ns: int) -> None:
    """Run until all requests are answered. A closed loop sends nothing after `seconds_ns`; after `seconds_ns` and
    `patience_ns`, or when no connection is left, what is still out counts as unanswered."""
    counts, due, n, closed = run.counts, run.due, len(run.latency), len(run.due) == 0
    events, scratch = np.zeros(EVENTS * libc.EVENT_WORDS, np.uint32), np.empty(READ, np.uint8)
    pair, got, at = np.zeros(2, np.int64), 0, 0
    start = libc.now_ns(pair)
    while True:
        now = libc.now_ns(pair) - start
        if closed:
            counts[NOTICED] = n if now < seconds_ns else counts[ISSUED]
        while not closed and counts[NOTICED] < n and due[counts[NOTICED]] <= now:
            run.late[counts[NOTICED]] = now - due[counts[NOTICED]]
            counts[NOTICED] += 1
        while counts[ISSUED] < counts[NOTICED] and counts[RESTING]:
            send_next(epoll, run, now)
        if at == got:
            all_sent = counts[ISSUED] == n or (closed and now >= seconds_ns)
            give_up = seconds_ns + patience_ns
            if (all_sent and not counts[UNANSWERED]) or now >= give_up or not counts[LIVING]:
                return
            wake = give_up if closed or counts[NOTICED] == n else min(give_up, due[counts[NOTICED]])
            got, at = max(0, libc.wait(epoll, events, wake - now, pair)), 0
        else:
            c = int(events[at * libc.EVENT_WORDS + libc.DATA_WORD])
            found = take(epoll, run, c, events[at * libc.EVENT_WORDS], scratch)
            if found != MORE:
                end_request(epoll, run, c, found, libc.now_ns(pair) - start)
            at += 1
