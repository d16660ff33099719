"""The decision id: a signed token that carries the whole context of one decision.

Its payload is also the body of the log's events (see `streaming.events`), so a decision has one layout wherever it
goes. Everything is little-endian, and every field stands at a multiple of its own size:

    offset  size  field
    0       1     layout version, 1
    1       1     key id: which key signed it
    2       1     kind: 0 diag-linucb, 1 arms (a bank per segment)
    3       1     flags: bits 0-1 aggregation (first, last, max, sum), bits 2-3 mode (explore, exploit, thompson),
                  bit 4 funded (the bank may learn from it), bit 5 the policy has no default reward
    4       4     policy number
    8       8     decision number: stream << 32 | sequence
    16      6     time of the decision, ms since 1970
    22      1     number of clusters, m (0 for arms)
    23      1     number of items, k
    24      4     reward window, ms
    28      4     default reward, float32 (0 where there is none)
    32      4     lineage: the cluster numbering that the clusters belong to (0 for arms)
    kind 0: 36    4m    cluster numbers, then 4k item numbers, then 2m weights (units of 1/65535),
                        then 2k propensities (float16, NaN = no exact value)
    kind 1: 36    4     zero
            40    8     bank key
            48    32    p, w, a, c: the draw's snapshot, float64 (docs/algorithms.md)
            80    4k    item numbers, then 2k propensities
    the end 8     MAC: keyed BLAKE2b of all before, only in the token

Ten clusters and ten items make 164 bytes with the MAC: 219 characters of URL-safe base64. The MAC is checked once,
where a reward enters; nothing behind the log needs a key.
"""

import binascii
import hashlib
import hmac
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LAYOUT = 1
DIAG, ARMS = 0, 1
FIRST, LAST, MAX, SUM = range(4)
AGGREGATIONS = ("first", "last", "max", "sum")
MODES = ("explore", "exploit", "thompson")
FUNDED, NO_DEFAULT = 16, 32
MAC_SIZE = 8
HEADER_SIZE = 36
ARMS_SIZE = 80
CLUSTERS_MAX = ITEMS_MAX = 255
WINDOW_MS_MAX = 2**32 - 1

_HEADER = struct.Struct("<BBBBIQIHBBIfI")
_ARMS = struct.Struct("<IQdddd")
_U4, _U2, _F2 = np.dtype("<u4"), np.dtype("<u2"), np.dtype("<f2")


class TokenError(ValueError):
    """A decision id that this server did not sign, or that was altered on its way."""


class Context(NamedTuple):
    """What a decision was made of.

    `clusters` uint32 (m,), `weights` uint16 (m,), `items` uint32 (k,), `propensities` float16 (k,).
    `default` is None where the policy has no default reward. The last five fields are the bank's and its draw's.
    """

    kind: int
    policy: int
    decision: int
    time_ms: int
    window_ms: int
    default: float | None
    aggregation: int
    mode: int
    funded: bool
    items: NDArray[np.uint32]
    propensities: NDArray[np.float16]
    lineage: int = 0
    clusters: NDArray[np.uint32] = np.empty(0, np.uint32)
    weights: NDArray[np.uint16] = np.empty(0, np.uint16)
    bank: int = 0
    p: float = 0.0
    w: float = 0.0
    a: float = 0.0
    c: float = 0.0


def encode(context: Context, key_id: int = 0) -> bytes:
    """The payload of a decision.

    >>> ten = np.arange(10, dtype=np.uint32)
    >>> payload = encode(Context(DIAG, 7, 1 << 32, 1_700_000_000_000, 1_800_000, 0.0, FIRST, 0, True,
    ...     ten, np.full(10, 0.1, np.float16), 8, ten, np.full(10, 6553, np.uint16)))
    >>> len(payload), len(sign(payload, b"secret"))
    (156, 219)
    >>> decode(payload).items.tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    flags = context.aggregation | context.mode << 2 | FUNDED * context.funded | NO_DEFAULT * (context.default is None)
    head = _HEADER.pack(
        LAYOUT,
        key_id,
        context.kind,
        flags,
        context.policy,
        context.decision,
        context.time_ms & 0xFFFFFFFF,
        context.time_ms >> 32,
        len(context.clusters),
        len(context.items),
        context.window_ms,
        context.default or 0.0,
        context.lineage,
    )
    items = context.items.astype(_U4, copy=False).tobytes()
    propensities = context.propensities.astype(_F2, copy=False).tobytes()
    if context.kind == ARMS:
        bank = _ARMS.pack(0, context.bank, context.p, context.w, context.a, context.c)
        return head + bank + items + propensities
    clusters = context.clusters.astype(_U4, copy=False).tobytes()
    weights = context.weights.astype(_U2, copy=False).tobytes()
    return head + clusters + items + weights + propensities


def size_of(kind: int, m: int, k: int) -> int:
    """Bytes of a payload with m clusters and k items."""
    return ARMS_SIZE + 6 * k if kind == ARMS else HEADER_SIZE + 6 * m + 6 * k


def decode(payload: bytes) -> Context:
    """The context in a payload; raises TokenError where its bytes do not fit the layout."""
    if len(payload) < HEADER_SIZE:
        raise TokenError("the decision id is too short")
    head = _HEADER.unpack_from(payload)
    layout, _, kind, flags, policy, decision, low, high, m, k, window_ms, default, lineage = head
    if layout != LAYOUT or kind > ARMS or len(payload) != size_of(kind, m, k) or (kind == ARMS and m):
        raise TokenError("the decision id is of another version or length")
    bank, p, w, a, c = 0, 0.0, 0.0, 0.0, 0.0
    at = HEADER_SIZE
    if kind == ARMS:
        _, bank, p, w, a, c = _ARMS.unpack_from(payload, at)
        at = ARMS_SIZE
    clusters = np.frombuffer(payload, "<u4", m, at)
    items = np.frombuffer(payload, "<u4", k, at + 4 * m)
    weights = np.frombuffer(payload, "<u2", m, at + 4 * m + 4 * k)
    propensities = np.frombuffer(payload, "<f2", k, at + 6 * m + 4 * k)
    return Context(
        kind,
        policy,
        decision,
        high << 32 | low,
        window_ms,
        None if flags & NO_DEFAULT else default,
        flags & 3,
        flags >> 2 & 3,
        bool(flags & FUNDED),
        items,
        propensities,
        lineage,
        clusters,
        weights,
        bank,
        p,
        w,
        a,
        c,
    )


def _mac(payload: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=MAC_SIZE, key=key).digest()


def sign(payload: bytes, key: bytes) -> str:
    """The decision id: payload and MAC as URL-safe base64 without padding."""
    return urlsafe_b64encode(payload + _mac(payload, key)).rstrip(b"=").decode("ascii")


def verify(text: str, keys: Mapping[int, bytes]) -> bytes:
    """The payload of a decision id that one of `keys` (by key id) signed.

    Raises TokenError, with a sentence, for anything else: wrong alphabet, other layout, unknown key, altered bytes.
    """
    # Base64 decoders skip characters outside the alphabet, and the bits beyond the last byte are free: both would let
    # two spellings stand for one decision, so the spelling is made again and compared.
    try:
        raw = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise TokenError("the decision id is not URL-safe base64") from None
    if len(raw) < HEADER_SIZE + MAC_SIZE or raw[0] != LAYOUT:
        raise TokenError("the decision id is of another version or length")
    payload, mac = raw[:-MAC_SIZE], raw[-MAC_SIZE:]
    key = keys.get(payload[1])
    if key is None:
        raise TokenError("the decision id was signed with a key that this server does not have")
    if not hmac.compare_digest(_mac(payload, key), mac):
        raise TokenError("the decision id was altered, or signed by another server")
    if urlsafe_b64encode(raw).rstrip(b"=").decode("ascii") != text:
        raise TokenError("the decision id is not spelled as this server spells it")
    return payload


def segment_key(segment: str) -> int:
    """The bank key of a segment: 8 bytes of BLAKE2b, never 0, which is the shared bank.

    >>> segment_key("all") != segment_key("sport")
    True
    """
    return int.from_bytes(hashlib.blake2b(segment.encode(), digest_size=8).digest(), "little") or 1
