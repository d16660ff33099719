"""Which shard owns an item or a bank: BLAKE2b of its numbers, modulo the shards that the manifest fixes."""

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ITEM = struct.Struct("<BIQ")
_OF_ITEM, _OF_BANK = 0, 1


def _shard(kind: int, policy: int, number: int, shards: int) -> int:
    digest = hashlib.blake2b(_ITEM.pack(kind, policy, number), digest_size=8).digest()
    return int.from_bytes(digest, "little") % shards


def shard_of_item(policy: int, number: int, shards: int) -> int:
    """The shard that holds an item's parameters.

    >>> {shard_of_item(1, number, 4) for number in range(100)}
    {0, 1, 2, 3}
    """
    return 0 if shards == 1 else _shard(_OF_ITEM, policy, number, shards)


def shard_of_bank(policy: int, key: int, shards: int) -> int:
    """The shard that holds a bank."""
    return 0 if shards == 1 else _shard(_OF_BANK, policy, key, shards)


def shards_of_items(policy: int, numbers: Sequence[int] | NDArray[np.uint32], shards: int) -> NDArray[np.int32]:
    """The shard of each item, (n,)."""
    if shards == 1:
        return np.zeros(len(numbers), np.int32)
    return np.array([_shard(_OF_ITEM, policy, int(number), shards) for number in numbers], np.int32)


def segments_of_shard(max_segments: int, shards: int) -> int:
    """How many banks of its own a shard may make for one policy; the shared bank comes on top."""
    return -(-max_segments // shards)
