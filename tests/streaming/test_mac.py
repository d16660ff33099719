"""The MAC kernel is hashlib's BLAKE2b."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming import mac


def by_kernel(key: bytes, message: bytes) -> bytes:
    padded = np.frombuffer(message + bytes(-len(message) % mac.BLOCK), np.uint8)
    state = np.zeros(9, np.uint64)
    mac.keyed(key, 3, state)
    assert state[8] == 3
    return int(mac.mac(state.ctypes.data, padded.ctypes.data, len(message))).to_bytes(8, "little")


@settings(deadline=None)  # the first call may compile
@given(st.binary(min_size=1, max_size=64), st.binary(min_size=1, max_size=600))
def test_any_message_by_any_key(key: bytes, message: bytes) -> None:
    assert by_kernel(key, message) == hashlib.blake2b(message, digest_size=8, key=key).digest()


@pytest.mark.parametrize("size", [1, 127, 128, 129, 255, 256, 257, 384])
def test_around_the_ends_of_blocks(size: int) -> None:
    message = bytes(i % 251 for i in range(size))
    assert by_kernel(b"k" * 32, message) == hashlib.blake2b(message, digest_size=8, key=b"k" * 32).digest()
