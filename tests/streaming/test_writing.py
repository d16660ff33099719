"""What the kernels write is what `streaming.token` and `streaming.events` make, byte for byte."""

import base64

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming import events, mac, writing
from streaming.token import DIAG, Context, encode


@settings(deadline=None)  # the first call may compile
@given(st.floats(0, 1) | st.floats(0, 1e-4) | st.just(float("nan")))
def test_half_is_numpys_float16(value: float) -> None:
    assert writing.half(value) == np.float64(value).astype(np.float16).view(np.uint16)


def test_half_of_every_float16_and_between() -> None:
    halves = np.arange(0x3C01, dtype=np.uint16).view(np.float16).astype(np.float64)
    between = (halves[1:] + halves[:-1]) / 2  # ties
    values = np.concatenate([halves, between, np.nextafter(between, 0), np.nextafter(between, 1)])
    expected = values.astype(np.float16).view(np.uint16)
    assert [int(writing.half(value)) for value in values] == expected.tolist()


@settings(deadline=None)  # the first call may compile
@given(st.binary(max_size=100))
def test_base64(data: bytes) -> None:
    source, out = np.frombuffer(data + b"\xff" * 4, np.uint8), np.zeros(200, np.uint8)
    end = writing.write_base64(out.ctypes.data, source.ctypes.data, len(data))
    assert out[: end - out.ctypes.data].tobytes() == base64.urlsafe_b64encode(data).rstrip(b"=")


@pytest.mark.parametrize("default", [0.0, 0.25, None])
@pytest.mark.parametrize(("m", "k"), [(1, 1), (10, 10), (3, 2), (64, 255), (11, 5)])
def test_payload_and_event(m: int, k: int, default: float | None) -> None:
    rng = np.random.default_rng(m * 1000 + k)
    numbers = rng.integers(0, 2**32, 300, dtype=np.uint32)
    clusters = rng.integers(0, 2**32, m, dtype=np.uint32)
    weights = rng.integers(0, 2**16, m, dtype=np.uint16)
    slate = rng.permutation(300)[:k].astype(np.uint32)
    propensities = np.where(rng.random(k) < 0.2, np.nan, rng.random(k))
    decision, now_ms = (2**31 + 5) << 32 | 77, 1_800_000_000_123
    blank = Context(
        DIAG, 9, 0, 0, 60_000, default, 2, 0, True, np.empty(0, np.uint32), np.empty(0, np.float16), lineage=3
    )
    made = blank._replace(
        decision=decision, time_ms=now_ms, mode=2, items=numbers[slate], propensities=propensities.astype(np.float16),
        clusters=clusters, weights=weights,
    )  # fmt: skip
    expected = encode(made, 7)
    out = np.full(4096, 0xAA, np.uint8)
    header = np.frombuffer(encode(blank), np.uint8)
    size = writing.write_payload(
        out.ctypes.data, header.ctypes.data, 7, 2, np.uint64(decision), now_ms, clusters, weights, numbers, slate,
        propensities,
    )  # fmt: skip
    padded = -(-size // mac.BLOCK) * mac.BLOCK
    assert out[:padded].tobytes() == expected + bytes(padded - size)
    event = np.full(4096, 0xAA, np.uint8)
    assert event.ctypes.data % 8 == 0
    writing.write_decision(event.ctypes.data, out.ctypes.data, size, 12345)
    n_bytes = writing.event_bytes(size)
    assert event[:n_bytes].tobytes() == events.decision(expected, 12345)
    assert (event[n_bytes:] == 0xAA).all()
