"""Which shard owns what: the documented hash, evenly, and the same one by one as many at once."""

import hashlib
import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streaming.shards import segments_of_shard, shard_of_bank, shard_of_item, shards_of_items


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**32 - 1), max_size=20), st.integers(1, 1024))
def test_one_by_one_and_at_once(policy: int, numbers: list[int], shards: int) -> None:
    expected = [shard_of_item(policy, number, shards) for number in numbers]
    assert shards_of_items(policy, np.array(numbers, np.uint32), shards).tolist() == expected
    for number, shard in zip(numbers, expected, strict=True):
        digest = hashlib.blake2b(struct.pack("<BIQ", 0, policy, number), digest_size=8).digest()
        assert shard == int.from_bytes(digest, "little") % shards


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(1, 1024))
def test_banks(policy: int, key: int, shards: int) -> None:
    digest = hashlib.blake2b(struct.pack("<BIQ", 1, policy, key), digest_size=8).digest()
    assert shard_of_bank(policy, key, shards) == int.from_bytes(digest, "little") % shards


def test_items_spread_evenly() -> None:
    counts = np.bincount(shards_of_items(3, range(8000), 8), minlength=8)
    assert ((counts - 1000.0) ** 2 / 1000.0).sum() < 24.3  # chi-square, 7 degrees of freedom, p = 0.001


@given(st.integers(1, 10**6), st.integers(1, 1024))
def test_the_shards_together_hold_all_segments_allowed(max_segments: int, shards: int) -> None:
    assert 0 <= segments_of_shard(max_segments, shards) * shards - max_segments < shards
