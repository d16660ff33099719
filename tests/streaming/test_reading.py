"""What the kernels read and write is what `streaming.token.verify` and `streaming.events.reward` say of the same."""

import base64
import secrets
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming import events, mac, reading, token
from streaming.token import ARMS, DIAG, Context, TokenError

KEYS: Mapping[int, bytes] = {0: b"k" * 32, 7: b"other", 255: b"x" * 64}
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def states() -> np.ndarray:
    found = np.zeros((256, 9), np.uint64)
    for number, key in KEYS.items():
        mac.keyed(key, 1, found[number])
    return found


STATES = states()


def memory(n: int = 8192) -> np.ndarray:
    return np.full(n // 8, 0xAAAAAAAAAAAAAAAA, np.uint64).view(np.uint8)


def by_kernel(text: str) -> bytes | None:
    """The payload that the kernel finds in a decision id; None: none."""
    source, out = np.frombuffer(text.encode("ascii", "replace") or b"\0", np.uint8), memory()
    size = reading.read_token(source.ctypes.data, len(text), STATES.ctypes.data, out.ctypes.data)
    if not size:
        return None
    padded = max(-(-size // mac.BLOCK) * mac.BLOCK, size + 8)
    assert not out[size:padded].any()
    assert (out[max(padded, -(-(size + 9) // 8) * 8) :] == 0xAA).all()
    return out[:size].tobytes()


def by_twin(text: str) -> bytes | None:
    try:
        payload = token.verify(text, KEYS)
        token.decode(payload)
    except TokenError:
        return None
    return payload


def context(kind: int, m: int, k: int, seed: int = 0) -> Context:
    rng = np.random.default_rng(seed)
    return Context(
        kind, 9, int(rng.integers(1 << 63)), 1_800_000_000_123, 60_000, 0.5, 1, 2, True,
        rng.permutation(1000)[:k].astype(np.uint32), rng.random(k).astype(np.float16), 3 if kind == DIAG else 0,
        rng.integers(0, 1 << 32, m, dtype=np.uint32), rng.integers(0, 1 << 16, m, dtype=np.uint16),
        **({"bank": 77, "p": 0.1, "w": 0.2, "a": 0.3, "c": 0.4} if kind == ARMS else {}),
    )  # fmt: skip


SHAPES = st.tuples(st.just(DIAG), st.integers(0, 64), st.integers(0, 40)) | st.tuples(
    st.just(ARMS), st.just(0), st.integers(0, 40)
)


@given(st.text(ALPHABET + "+/=é\n ", max_size=40))
def test_any_text_as_base64(text: str) -> None:
    try:
        found = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        expected = found if base64.urlsafe_b64encode(found).rstrip(b"=").decode() == text else None
    except ValueError:
        expected = None
    source, out = np.frombuffer(text.encode("ascii", "replace") or b"\0", np.uint8), memory(64)
    size = reading.read_base64(source.ctypes.data, len(text), out.ctypes.data)
    assert (None if size < 0 else out[:size].tobytes()) == expected


@given(st.binary(max_size=100))
def test_base64_of_any_bytes(data: bytes) -> None:
    text = base64.urlsafe_b64encode(data).rstrip(b"=")
    source, out = np.frombuffer(text or b"\0", np.uint8), memory(128)
    assert reading.read_base64(source.ctypes.data, len(text), out.ctypes.data) == len(data)
    assert out[: len(data)].tobytes() == data


@given(SHAPES, st.sampled_from([*KEYS, 1]), st.integers(0, 2**32))
def test_any_decision(shape: tuple[int, int, int], key_id: int, seed: int) -> None:
    payload = token.encode(context(*shape, seed), key_id)
    text = token.sign(payload, KEYS.get(key_id, b"unknown"))
    assert by_kernel(text) == by_twin(text) == (payload if key_id in KEYS else None)


@given(SHAPES, st.integers(0, 2**32), st.integers(0, 4000), st.sampled_from(ALPHABET + "+/=é\0\x7f"), st.integers(0, 4))
def test_any_altered_decision(shape: tuple[int, int, int], seed: int, place: int, other: str, what: int) -> None:
    text = token.sign(token.encode(context(*shape, seed), 7), KEYS[7])
    at = place % len(text)
    altered = [
        text[:at] + other + text[at + 1 :],
        text[:at] + text[at + 1 :],
        text[:at] + other + text[at:],
        text[:at],
        text[:-1] + other,
    ][what]
    assert by_kernel(altered) == by_twin(altered) == ((text == altered and by_twin(text)) or None)


def test_a_decision_of_another_layout_kind_or_length_is_none_though_it_is_signed() -> None:
    payload = token.encode(context(DIAG, 3, 2), 7)
    for altered in (
        b"\2" + payload[1:],
        payload[:2] + b"\2" + payload[3:],
        payload[:2] + b"\1" + payload[3:],
        payload[:22] + b"\4" + payload[23:],
        payload + b"\0" * 6,
        payload[:-1],
        payload[:36],
        payload[:35],
    ):
        assert by_kernel(token.sign(altered, KEYS[7])) is None
    assert by_kernel(token.sign(payload, KEYS[7])) == payload


def test_nobody_can_sign_by_the_state_of_a_key_that_is_not_there() -> None:
    payload = token.encode(context(DIAG, 3, 2), 1)
    padded = np.frombuffer(payload + bytes(-len(payload) % mac.BLOCK), np.uint8)
    forged = int(mac.mac(STATES[1].ctypes.data, padded.ctypes.data, len(payload))).to_bytes(8, "little")
    assert by_kernel(base64.urlsafe_b64encode(payload + forged).rstrip(b"=").decode()) is None


@pytest.mark.parametrize("shape", [(DIAG, 10, 10), (DIAG, 0, 1), (ARMS, 0, 3), (DIAG, 255, 255), (ARMS, 0, 255)])
@pytest.mark.parametrize("value", [1.0, -0.0, 1e300, 0.1])
def test_the_event_of_a_reward(shape: tuple[int, int, int], value: float) -> None:
    made = context(*shape)
    payload = token.encode(made, 7)
    source, out = np.frombuffer(payload, np.uint8), memory(16384)
    numbers = made.items.tolist()
    assert reading.slot_of(source.ctypes.data, 5000) == -1
    key = secrets.randbits(64)
    for slot in {0, len(numbers) // 2, len(numbers) - 1}:
        assert reading.slot_of(source.ctypes.data, numbers[slot]) == slot
        expected = events.reward(payload, slot, value, key)
        reading.write_reward(out.ctypes.data, source.ctypes.data, len(payload), slot, value, np.uint64(key))
        assert out[: len(expected)].tobytes() == expected
        assert (out[len(expected) :] == 0xAA).all()
