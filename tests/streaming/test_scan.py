"""Frames read by the kernel and by the slow reader, on sound, truncated and corrupted bytes."""

import os
import struct
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming import events, scan, token
from tests.naive.streaming import context_of, split

FIELDS = ("policy", "decision", "time_ms", "window_ms", "lineage", "aggregation", "mode")


def rows_of(records: list[bytes]) -> np.ndarray:
    buffer = scan.buffer(records)
    rows = np.zeros(scan.count_events(buffer) + 1, scan.EVENT)
    rows["k"] = 77  # what no event of these tests has: the row beyond the bound must stay untouched
    n = scan.scan(buffer, np.arange(len(records), dtype=np.int64) + 1000, scan.CRC_TABLES, rows)
    assert n < len(rows)
    assert rows["k"][n:].tolist() == [77] * (len(rows) - n)
    return rows[:n]


def random_payload(rng: np.random.Generator) -> bytes:
    arms = rng.random() < 0.5
    m, k = (0 if arms else int(rng.integers(0, 5))), int(rng.integers(1, 6))
    return token.encode(
        token.Context(
            token.ARMS if arms else token.DIAG,
            int(rng.integers(2**32)),
            int(rng.integers(2**63)),
            int(rng.integers(2**48)),
            int(rng.integers(2**32)),
            None if rng.random() < 0.3 else float(np.float32(rng.normal())),
            int(rng.integers(4)),
            int(rng.integers(3)),
            bool(rng.random() < 0.5),
            rng.integers(0, 2**32, k, dtype=np.uint32),
            rng.random(k).astype(np.float16),
            int(rng.integers(2**32)),
            rng.integers(0, 2**32, m, dtype=np.uint32),
            rng.integers(0, 2**16, m, dtype=np.uint16),
            int(rng.integers(2**63)) if arms else 0,
            *(rng.normal(size=4).tolist() if arms else [0.0] * 4),
        )
    )


def random_frame(rng: np.random.Generator) -> bytes:
    made = []
    for _ in range(int(rng.integers(0, 6))):
        payload = random_payload(rng)
        slot = int(rng.integers(payload[23]))
        made.append(
            [
                lambda p=payload: events.decision(p, int(rng.integers(2**32))),
                lambda p=payload, s=slot: events.reward(p, s, float(rng.normal()), int(rng.integers(2**63))),
                lambda: events.segment(int(rng.integers(2**32)), int(rng.integers(2**63)), "s" * int(rng.integers(70))),
            ][int(rng.integers(3))]()
        )
    return events.frame(made)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Truncated, bits flipped, or with a sound header that promises other events than there are."""
    out = bytearray(data)
    kind = int(rng.integers(4))
    if kind == 0:
        return bytes(out[: int(rng.integers(len(out) + 1))])
    if kind == 1:
        for _ in range(int(rng.integers(1, 4))):
            out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
        return bytes(out)
    if kind == 2:
        head = struct.pack("<IBBHI", events.MAGIC, 1, 0, 0, int(rng.choice([0, 1, 5, 1000, 2**32 - 1])))
        return head + struct.pack("<I", crc32(head)) + bytes(out[16:])
    return rng.bytes(int(rng.integers(0, 200)))


def forged(rng: np.random.Generator) -> bytes:
    """An event whose CRC holds and whose payload is of the wrong size, as only a bug or another release makes it."""
    body = bytearray(rng.bytes(8 * int(rng.integers(0, 14))))
    if len(body) > 24 and rng.random() < 0.7:
        body[:4] = bytes([1, 0, int(rng.integers(3)), 0])
        body[22:24] = bytes(rng.integers(0, 256, 2, dtype=np.uint8))
    rest = struct.pack(
        "<HBBdQIB3x", 4 + len(body) // 8, 1, int(rng.integers(0, 5)), 0.5, 1, 2, int(rng.integers(256))
    ) + bytes(body)
    return events.frame([struct.pack("<I", crc32(rest)) + rest])


def check_equal(records: list[bytes]) -> None:
    rows = iter(rows_of(records))
    for record, data in enumerate(records):
        for index, kind, reward, key, sequence, slot, body in split(data):
            row = next(rows)
            assert (row["record"], row["index"], row["log_time_ms"]) == (record, index, record + 1000)
            if kind is None:
                assert row["kind"] == scan.POISON
                continue
            assert row["kind"] == kind
            assert struct.pack("<d", row["reward"]) == struct.pack("<d", reward)
            assert row["key"] == key
            if kind == events.SEGMENT:
                assert row["policy"] == sequence
                continue
            context = context_of(body)
            assert row["sequence"] == sequence
            assert row["item"] == context.items[slot]
            assert [row[name] for name in FIELDS] == [getattr(context, name) for name in FIELDS]
            assert (row["context"], row["m"], row["k"]) == (context.kind, len(context.clusters), len(context.items))
            assert row["no_default"] == (context.default is None)
            assert row["default"] == (context.default or 0.0)
            assert row["funded"] == context.funded
            assert [row[name] for name in ("bank", "p", "w", "a", "c")] == [
                context.bank, context.p, context.w, context.a, context.c
            ]  # fmt: skip
    assert next(rows, None) is None


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_kernel_reads_what_the_slow_reader_reads(seed: int, broken: bool) -> None:
    rng = np.random.default_rng(seed)
    records = [random_frame(rng) for _ in range(int(rng.integers(1, 5)))]
    if broken:
        records = [damaged(data, rng) if rng.random() < 0.7 else data for data in records]
    check_equal(records)


def test_one_flipped_bit_makes_one_poison_event_and_leaves_the_others() -> None:
    rng = np.random.default_rng(3)
    made = [events.decision(random_payload(rng), i) for i in range(3)]
    data = bytearray(events.frame(made))
    second = events.FRAME_SIZE + len(made[0])
    for position in range(second, second + len(made[1])):
        for bit in range(8):
            data[position] ^= 1 << bit
            kinds = rows_of([bytes(data)])["kind"].tolist()
            # Length words decide where the third begins: then nothing after the second can be told apart.
            assert kinds[0] == events.DECISION
            assert kinds[1] == scan.POISON
            if position not in (second + 4, second + 5):
                assert kinds[2:] == [events.DECISION]
            else:
                assert set(kinds[2:]) <= {scan.POISON}
            data[position] ^= 1 << bit


def test_crc_is_that_of_zlib() -> None:
    rng = np.random.default_rng(4)
    data = rng.bytes(200)
    buffer = scan.buffer([data])
    for start in range(0, 200, 4):
        for end in range(start, 200):
            found = scan.crc32(buffer.u8, buffer.u32, start, end, scan.CRC_TABLES, scan.NONE)
            assert int(found) == crc32(data[start:end])
    before = np.uint32(crc32(data[:12]))
    assert int(scan.crc32(buffer.u8, buffer.u32, 16, 99, scan.CRC_TABLES, before)) == crc32(data[:12] + data[16:99])


@pytest.mark.parametrize("change", ["frame", "frame kind", "control", "event", "event kind", "token", "slot", "body"])
def test_sound_bytes_of_another_release_are_unknown_not_poison(change: str) -> None:
    rng = np.random.default_rng(5)
    payload = random_payload(rng)
    if change == "control":
        head = struct.pack("<IBBHI", events.MAGIC, 2, events.CONTROL, 0, 1)
        body = struct.pack("<Q", 1) + b"{}"
        data = head + struct.pack("<I", crc32(head + body)) + body
    elif change.startswith("frame"):
        layout, kind = (2, 0) if change == "frame" else (1, 9)
        head = struct.pack("<IBBHI", events.MAGIC, layout, kind, 0, 3)
        data = head + struct.pack("<I", crc32(head)) + rng.bytes(40)
    else:
        layout, kind = (2 if change == "event" else 1), (9 if change == "event kind" else events.REWARD)
        body = {"token": b"\x02" + payload[1:], "body": payload[:16]}.get(change, payload)
        body += bytes(-len(body) % 8)
        slot = payload[23] if change == "slot" else 0
        rest = struct.pack("<HBBdQIB3x", 4 + len(body) // 8, layout, kind, 0.0, 0, 0, slot) + body
        data = events.frame([struct.pack("<I", crc32(rest)) + rest])
    assert rows_of([data])["kind"].tolist() == [scan.UNKNOWN]
    flipped = bytearray(data)
    flipped[12 if "frame" in change or change == "control" else 20] ^= 1
    assert rows_of([bytes(flipped)])["kind"].tolist() == [scan.POISON]


def fuzz(count: int) -> None:
    """Anything at all, read alone so that one byte too many lies outside the buffer."""
    rng = np.random.default_rng(6)
    for i in range(count):
        data = random_frame(rng) if rng.random() < 0.7 else forged(rng)
        data = damaged(data, rng) if rng.random() < 0.6 else data
        rows_of([data])
        if i % 20 == 0:
            rows_of([b"", data, b"\0", b""])


def test_the_kernel_never_reads_outside_the_buffer(tmp_path: Path) -> None:
    """Compiled anew with bounds checks: an index outside raises."""
    code = "from tests.streaming.test_scan import fuzz; fuzz(4000)"
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
