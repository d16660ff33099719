"""The decision token: whatever context goes in comes out; whatever was altered is refused."""

import base64
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming import token
from streaming.token import Context, TokenError

KEYS = {7: b"k" * 16, 8: b"other key"}
u32 = st.integers(0, 2**32 - 1)
f64 = st.floats(allow_nan=False)


@st.composite
def contexts(draw) -> Context:
    kind = draw(st.sampled_from([token.DIAG, token.ARMS]))
    k = draw(st.integers(0, 255))
    m = draw(st.integers(0, 255)) if kind == token.DIAG else 0
    seed = np.random.default_rng(draw(st.integers(0, 2**32)))
    propensities = seed.random(k).astype(np.float16)
    propensities[seed.random(k) < 0.2] = np.nan
    context = Context(
        kind,
        draw(u32),
        draw(st.integers(0, 2**64 - 1)),
        draw(st.integers(0, 2**48 - 1)),
        draw(u32),
        draw(st.none() | st.floats(width=32, allow_nan=False)),
        draw(st.integers(0, 3)),
        draw(st.integers(0, 2)),
        draw(st.booleans()),
        seed.integers(0, 2**32, k, dtype=np.uint32),
        propensities,
        draw(u32),
        seed.integers(0, 2**32, m, dtype=np.uint32),
        seed.integers(0, 2**16, m, dtype=np.uint16),
    )
    if kind == token.ARMS:
        context = context._replace(
            bank=draw(st.integers(0, 2**64 - 1)), p=draw(f64), w=draw(f64), a=draw(f64), c=draw(f64)
        )
    return context


def same(one: Context, two: Context) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") if isinstance(a, np.ndarray) else a == b
        for a, b in zip(one, two, strict=True)
    )


@given(contexts(), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_any_context_comes_back(context: Context, key_id: int) -> None:
    payload = token.encode(context, key_id)
    assert len(payload) == token.size_of(context.kind, len(context.clusters), len(context.items))
    assert token.verify(token.sign(payload, b"key"), {key_id: b"key"}) == payload
    assert same(token.decode(payload), context)


def ten() -> bytes:
    numbers = np.arange(10, dtype=np.uint32)
    context = Context(
        token.DIAG, 7, 1 << 32, 1_700_000_000_000, 1_800_000, 0.0, token.FIRST, 0, True, numbers,
        np.full(10, 0.1, np.float16), 8, numbers, np.full(10, 6553, np.uint16),
    )  # fmt: skip
    return token.encode(context, 7)


def test_ten_clusters_and_ten_items_fit_in_220_characters() -> None:
    assert len(token.sign(ten(), KEYS[7])) <= 220
    arms = token.decode(ten())._replace(
        kind=token.ARMS, clusters=np.empty(0, np.uint32), weights=np.empty(0, np.uint16)
    )
    assert len(token.sign(token.encode(arms), KEYS[7])) <= 220


def test_every_flipped_bit_is_refused() -> None:
    text = token.sign(ten(), KEYS[7])
    assert token.verify(text, KEYS) == ten()
    for position in range(len(text)):
        for bit in range(8):
            flipped = text[:position] + chr(ord(text[position]) ^ 1 << bit) + text[position + 1 :]
            with pytest.raises(TokenError):
                token.verify(flipped, KEYS)


def test_every_truncation_is_refused_and_so_is_more() -> None:
    text = token.sign(ten(), KEYS[7])
    for length in range(len(text)):
        for cut in (text[:length], text[length + 1 :]):
            with pytest.raises(TokenError):
                token.verify(cut, KEYS)
    for more in ("=", "==", "A", "AA", "AAAA", "\n", " "):
        for spelled in (text + more, more + text):
            with pytest.raises(TokenError):
                token.verify(spelled, KEYS)


def test_one_decision_has_one_spelling() -> None:
    """Standard base64, padding, blanks between and the unused last bits all decode to the same bytes."""
    payload = ten() + b"\xff\xff"  # so that the text has both characters in which the alphabets differ, or padding
    for size in range(len(ten()) - 3, len(payload)):
        text = token.sign(payload[:size], KEYS[7])
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        spellings = {
            base64.b64encode(raw).decode(),
            base64.b64encode(raw).decode().rstrip("="),
            base64.urlsafe_b64encode(raw).decode(),
            text[:50] + "\n" + text[50:],
            text[:50] + "!" + text[50:],
        }
        for last in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_":
            other = text[:-1] + last
            if base64.urlsafe_b64decode(other + "=" * (-len(other) % 4)) == raw:
                spellings.add(other)
        assert token.verify(text, KEYS)
        for spelling in spellings - {text}:
            with pytest.raises(TokenError):
                token.verify(spelling, KEYS)


def test_wrong_and_unknown_keys_have_their_own_sentences() -> None:
    text = token.sign(ten(), b"stranger")
    with pytest.raises(TokenError, match="altered, or signed by another server"):
        token.verify(text, KEYS)
    with pytest.raises(TokenError, match="a key that this server does not have"):
        token.verify(text, {8: KEYS[8]})
    with pytest.raises(TokenError, match="not URL-safe base64"):
        token.verify("é" * 100, KEYS)
    with pytest.raises(TokenError, match="another version or length"):
        token.verify("A" * 100, KEYS)


@given(st.text(max_size=300) | st.text("AQIDBAUGBwgJ-_", max_size=300))
@settings(max_examples=200, deadline=None)
def test_no_text_is_taken_for_a_token(text: str) -> None:
    with pytest.raises(TokenError):
        token.verify(text, KEYS)


@given(st.binary(max_size=120), st.integers(0, 2), st.integers(0, 255), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_bytes_that_fit_no_layout_raise_token_errors_only(data: bytes, kind: int, m: int, k: int) -> None:
    shaped = bytearray(data)
    shaped[:4] = bytes([token.LAYOUT, 0, kind, 0])[: len(shaped)]
    if len(shaped) > 23:
        shaped[22:24] = bytes([m % 4, k % 4])
    for payload in (data, bytes(shaped)):
        try:
            context = token.decode(payload)
        except TokenError:
            continue
        assert len(payload) == token.size_of(context.kind, len(context.clusters), len(context.items))


def test_segments_have_keys_of_their_own() -> None:
    keys = {token.segment_key(f"segment{i}") for i in range(1000)}
    assert len(keys) == 1000
    assert 0 not in keys
    assert token.segment_key("all") == int.from_bytes(
        __import__("hashlib").blake2b(b"all", digest_size=8).digest(), "little"
    )
    assert math.isclose(np.mean([key / 2**64 for key in keys]), 0.5, abs_tol=0.05)
