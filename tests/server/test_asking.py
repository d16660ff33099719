"""What the kernel reads in a request is what msgspec reads, and the rest it leaves alone, wherever a text ends."""

import json
import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server import asking, errors
from server.bodies import decode
from server.ids import Ids, layout
from server.routes.recommend import ONE
from server.schemas import RecommendRequest

ROOM = 64 << 10
MODES = ["explore", "exploit", "thompson"]
CANARY = 0xA7


def fenced(n: int, dtype: Any) -> tuple[Any, Any]:
    """An array, and the bytes of a larger one in whose middle it lies."""
    size = n * np.dtype(dtype).itemsize
    whole = np.full(size + 128, CANARY, np.uint8)
    return whole[64 : 64 + size].view(dtype), whole


class Reader:
    """`read_query` with arrays of the sizes that a desk has, and what surrounds them."""

    def __init__(self) -> None:
        sizes: list[tuple[int, Any]] = [
            (ROOM + 8, np.uint8), (asking.NUMBERS, np.int64), (asking.CLUSTERS_MAX, np.uint32),
            (asking.CLUSTERS_MAX, np.float64), (asking.DIM_MAX, np.float32), (2 * asking.LISTED_MAX, np.int64),
        ]  # fmt: skip
        pairs = [fenced(n, dtype) for n, dtype in sizes]
        (self.text, self.numbers, self.clusters, self.given, self.embedding, listed), self.wholes = zip(
            *pairs, strict=True
        )
        self.listed = listed.reshape(2, asking.LISTED_MAX)

    def read(self, body: bytes, behind: int = 0x20) -> RecommendRequest | None:
        """What was read as the struct that msgspec makes; None where it was no usual text. `behind`: what the memory
        behind the text holds from an earlier one."""
        text, n = self.text, len(body)
        text[:n] = np.frombuffer(body, np.uint8)
        text[n:] = behind
        at = text.ctypes.data
        usual = asking.read_query(at, n, self.numbers, self.clusters, self.given, self.embedding, self.listed)
        assert all((whole[:64] == CANARY).all() and (whole[-64:] == CANARY).all() for whole in self.wholes)
        assert text[:n].tobytes() == body
        if not usual:
            return None
        m, n_weights, dim, n_excluded, n_candidates, k, mode, name, name_bytes = self.numbers.tolist()
        assert 0 < name <= name + name_bytes < n
        assert n_excluded + n_candidates <= asking.LISTED_MAX
        ids = [text[a - at : a - at + b].tobytes().decode() for a, b in self.listed[:, : n_excluded + n_candidates].T]
        user: dict[str, Any] = {}
        if m:
            user["clusters"] = self.clusters[:m].tolist()
        if n_weights:
            user["weights"] = self.given[:n_weights].tolist()
        if dim:
            user["embedding"] = self.embedding[:dim].tolist()
        query = {
            "policy": body[name : name + name_bytes].decode(errors="surrogateescape"), "user": user, "k": k,
            "exclude": ids[:n_excluded], "candidates": ids[n_excluded:], "mode": None if mode < 0 else MODES[mode],
        }  # fmt: skip
        return msgspec.convert(query, RecommendRequest, strict=False) if query["policy"] else RecommendRequest("")


READER = Reader()


def by_msgspec(body: bytes) -> RecommendRequest | None:
    """The same from the decoder; None where it refuses."""
    try:
        query = decode(ONE, body)
    except errors.Problem:
        return None
    user = query.user
    if user.embedding is not None:
        with np.errstate(over="ignore"):
            user = msgspec.structs.replace(user, embedding=np.array(user.embedding, np.float32).tolist())
    if user.weights is not None:  # weights are numbers, however they are spelled
        user = msgspec.structs.replace(user, weights=[float(w) for w in user.weights] or None)
    lists = {"exclude": query.exclude or [], "candidates": query.candidates or []}
    return msgspec.structs.replace(query, user=user, **lists)


def check(body: bytes) -> RecommendRequest | None:
    """Whatever lies behind the text, the same is read, and it is what msgspec reads."""
    read = READER.read(body)
    for behind in (0x00, 0x22, 0x30, 0x5D, 0x7D):
        assert READER.read(body, behind) == read
    if read is not None and read.policy and read.policy.isprintable():  # other names are no policy's
        assert read == by_msgspec(body), "what is refused is not usual"
    return read


def spelled(rng: random.Random, value: Any) -> bytes:
    """The value as JSON, in any order and with any white space."""
    space = b"".join(rng.choice([b"", b"", b" ", b"\n", b"\t", b"\r"]) for _ in range(3))
    if isinstance(value, dict):
        members = [json.dumps(key).encode() + space + b":" + spelled(rng, each) for key, each in value.items()]
        rng.shuffle(members)
        return space + b"{" + b",".join(space + member for member in members) + space + b"}" + space
    if isinstance(value, list):
        return space + b"[" + b",".join(spelled(rng, each) for each in value) + space + b"]" + space
    return space + (value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()) + space


ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=127, exclude_characters='"\\'), max_size=9)
DIGITS = st.from_regex(rb"\A-?(0|[1-9][0-9]{0,12})(\.[0-9]{1,6})?([eE][+-]?[0-9]{1,2})?\Z")
WEIGHTS = st.floats(0, 1e300) | st.integers(0, 1 << 62) | DIGITS.map(lambda text: text.lstrip(b"-"))
NUMBERS = st.floats(-1e30, 1e30) | st.integers(-(1 << 62), 1 << 62) | DIGITS
USERS = st.fixed_dictionaries(
    {},
    optional={
        "clusters": st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=asking.CLUSTERS_MAX),
        "weights": st.lists(WEIGHTS, min_size=1, max_size=asking.CLUSTERS_MAX),
        "embedding": st.lists(NUMBERS, min_size=1, max_size=12),
    },
).filter(bool)
NAMES = st.text(st.characters(min_codepoint=32, exclude_characters='"\\', exclude_categories=["Cs"]), min_size=1)
QUERIES = st.fixed_dictionaries(
    {"policy": NAMES, "user": USERS},
    optional={
        "k": st.integers(1, 255),
        "mode": st.sampled_from(MODES),
        "exclude": st.lists(ASCII, max_size=5),
        "candidates": st.lists(ASCII, min_size=1, max_size=5),
    },
)  # fmt: skip


@settings(deadline=None)
@given(query=QUERIES, seed=st.integers(0, 99))
def test_usual_texts_are_read(query: dict[str, Any], seed: int) -> None:
    body = spelled(random.Random(seed), query)
    read = check(body)  # exclude and candidates may come in an order that is left alone
    assert read is not None or ("exclude" in query and "candidates" in query) or any_open(query)


def any_open(query: dict[str, Any]) -> bool:
    """A number whose nearest float64 is left open, or beyond float32."""
    floats = query["user"].get("weights", []) + query["user"].get("embedding", [])
    return any(isinstance(each, bytes) or len(repr(each).strip("-0.")) > 17 for each in floats)


def test_exclude_goes_before_candidates() -> None:
    begin = b'{"policy":"p","user":{"clusters":[1]},'
    read = check(begin + b'"exclude":["a","bc"],"candidates":["d"]}')
    assert read is not None
    assert (read.exclude, read.candidates) == (["a", "bc"], ["d"])
    assert check(begin + b'"candidates":["d"],"exclude":["a","bc"]}') is None


@settings(deadline=None)
@given(query=QUERIES, seed=st.integers(0, 99), data=st.data())
def test_mutated_texts(query: dict[str, Any], seed: int, data: st.DataObject) -> None:
    body = bytearray(spelled(random.Random(seed), query))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        new = data.draw(st.sampled_from([*b'"\\{}[],:0159.eE+- \n\x00\x1f\x7f\x80\xc3\xff', None]))
        body[at : at + data.draw(st.integers(0, 2))] = b"" if new is None else bytes([new])
    check(bytes(body))


WHOLE = (
    b' {"policy": "films", "user": {"clusters": [3, 17], "weights": [0.25, 7.5e-1]}, "k": 12, "mode": "explore",'
    b' "exclude": ["a b", ""], "candidates": ["x"]} '
)
EMBEDDED = b'{"k":9,"mode":"thompson","user":{"embedding":[1,-2.5,3e2,0.1]},"policy":"caf\xc3\xa9"}'


@pytest.mark.parametrize("body", [WHOLE, EMBEDDED])
def test_every_piece_of_a_text(body: bytes) -> None:
    assert check(body) is not None
    for i in range(len(body.rstrip())):
        assert check(body[:i]) is None
        assert check(body[:i] + b"\0" + body[i:]) is None
    for i in range(len(body)):
        for byte in b'"\\}],:0.e- \xff':
            check(body[:i] + bytes([byte]) + body[i + 1 :])
            check(body[:i] + bytes([byte]) + body[i:])
        check(body[:i] + body[i + 1 :])


def usual(**more: bytes) -> bytes:
    members = {"policy": b'"p"', "user": b'{"clusters":[1]}'} | more
    return b"{" + b",".join(b'"%b":%b' % (name.encode(), value) for name, value in members.items()) + b"}"


USUAL: list[bytes] = [
    usual(), usual(k=b"255"), usual(exclude=b"[ ]"), usual(user=b'{"clusters":[4294967295,0]}'),
    usual(user=b'{"clusters":[%b]}' % b",".join(b"%d" % i for i in range(asking.CLUSTERS_MAX))),
    usual(user=b'{"weights":[%b]}' % b",".join([b"1"] * asking.CLUSTERS_MAX)),
    usual(user=b'{"embedding":[%b]}' % b",".join([b"1"] * asking.DIM_MAX)),
    usual(exclude=b"[%b]" % b",".join([b'"a"'] * asking.LISTED_MAX)),
    usual(exclude=b'["a"]', candidates=b"[%b]" % b",".join([b'"a"'] * (asking.LISTED_MAX - 1))),
    usual(user=b'{"embedding":[3.4028234663852886e38,-3.4028234663852886e38,0,-0,1E5,0.1e+1]}'),
    usual().ljust(ROOM), b" " * (ROOM - len(usual())) + usual(), usual(exclude=b'["%b"]' % (b"x" * 65_000)),
]  # fmt: skip
UNUSUAL: list[bytes] = [
    b"", b"{}", b"[]", b"null", b" ", b"\xef\xbb\xbf" + usual(), usual() + b"{}", usual() + b"\0", usual()[:-1] + b",}",
    usual(k=b"0"), usual(k=b"256"), usual(k=b"1.0"), usual(k=b"01"), usual(k=b"-1"), usual(k=b"null"), usual(k=b"1e1"),
    usual(k=b"00000000001"), usual(k=b"99999999999999999999"), usual(mode=b'"Explore"'), usual(mode=b'"explores"'),
    usual(mode=b'""'), usual(mode=b"null"), usual(mode=b'"thompso\\u006e"'), usual(extra=b"1"), usual(K=b"1"),
    usual(kk=b"1"), usual(polic=b'"p"'), usual(candidat=b'["a"]'), usual(candidatEs=b'["a"]'),
    usual(modes=b'"explore"'),
    usual(user=b"{}"), usual(user=b"null"), usual(user=b"[]"), usual(user=b'{"segment":"all"}'),
    usual(user=b'{"clusters":[]}'), usual(user=b'{"clusters":[1,]}'), usual(user=b'{"clusters":[,1]}'),
    usual(user=b'{"clusters":[-1]}'), usual(user=b'{"clusters":[4294967296]}'), usual(user=b'{"clusters":[1.0]}'),
    usual(user=b'{"clusters":[1],"clusters":[2]}'), usual(user=b'{"weights":[1],"weights":[2]}'),
    usual(user=b'{"embedding":[1],"embedding":[2]}'), usual(user=b'{"embeddinG":[1]}'), usual(user=b'{"Clusters":[1]}'),
    usual(user=b'{"clusters":[%b]}' % b",".join(b"%d" % i for i in range(asking.CLUSTERS_MAX + 1))),
    usual(user=b'{"weights":[%b]}' % b",".join([b"1"] * (asking.CLUSTERS_MAX + 1))), usual(user=b'{"weights":[-1]}'),
    usual(user=b'{"embedding":[%b]}' % b",".join([b"1"] * (asking.DIM_MAX + 1))),
    usual(user=b'{"embedding":[3.4028235e38]}'), usual(user=b'{"embedding":[NaN]}'), usual(user=b'{"embedding":["1"]}'),
    usual(user=b'{"weights":[1e999]}'), usual(user=b'{"weights":[Infinity]}'), usual(exclude=b"null"),
    usual(exclude=b'["a",]'), usual(exclude=b"[1]"), usual(exclude=b'["\xc3\xa9"]'), usual(exclude=b'["\\n"]'),
    usual(exclude=b'["\n"]'), usual(candidates=b"[]"), usual(candidates=b"null"),
    usual(exclude=b"[%b]" % b",".join([b'"a"'] * (asking.LISTED_MAX + 1))),
    usual(exclude=b'["a"]', candidates=b"[%b]" % b",".join([b'"a"'] * asking.LISTED_MAX)),
    usual(policy=b"1"), usual(policy=b'"\\u0070"'), usual(policy=b'"a\tb"'), usual()[:-1] + b',"policy":"q"}',
    usual()[:-1] + b',"user":{"weights":[1]}}', usual(k=b"1")[:-1] + b',"k":1}', b'{"policy":"p"}',
    b'{"user":{"clusters":[1]}}', usual(exclude=b"[]")[:-1] + b',"exclude":[]}',
    usual(candidates=b'["a"]')[:-1] + b',"candidates":["b"]}', usual(mode=b'"explore"')[:-1] + b',"mode":"explore"}',
]  # fmt: skip


@pytest.mark.parametrize("body", USUAL, ids=range(len(USUAL)))
def test_usual(body: bytes) -> None:
    assert check(body) == by_msgspec(body) is not None


@pytest.mark.parametrize("body", UNUSUAL, ids=range(len(UNUSUAL)))
def test_unusual(body: bytes) -> None:
    assert check(body) is None


def find(ids: list[str], asked: list[bytes]) -> list[int]:
    """`find_items` of ids that stand in a text."""
    text = np.frombuffer(b"".join(asked) + b"\0", np.uint8)
    sizes = [len(each) for each in asked]
    listed = np.array([np.cumsum([text.ctypes.data, *sizes[:-1]])[: len(sizes)], sizes], np.int64).reshape(2, -1)
    arrays = layout(ids)[1]
    found, whole = fenced(len(asked), np.int64)
    n = asking.find_items(
        listed, 0, len(asked), arrays["ids"].ctypes.data, arrays["ids_at"].ctypes.data, arrays["ids_hash"],
        arrays["ids_order"], found,
    )  # fmt: skip
    assert (whole[:64] == CANARY).all()
    assert (whole[-64:] == CANARY).all()
    return found[:n].tolist()


TEXTS = st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x17F), min_size=1, max_size=4)


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=30, unique=True), st.lists(ASCII, max_size=9), st.randoms())
@example(["a", "plumless", "buckeroo"], ["buckeroo", "plumless", "nobody"], random.Random(1))
@example(["plumless"], ["buckeroo"], random.Random(1))
def test_items_are_found_as_ids_finds_them(ids: list[str], others: list[str], rng: random.Random) -> None:
    asked = [each for each in [*ids, *others] if each.isascii() and each.isprintable() and not {*each} & {*'"\\'}]
    rng.shuffle(asked)
    by_ids = [Ids(layout(ids)[1]).find(each) for each in asked]
    assert find(ids, [each.encode() for each in asked]) == [item for item in by_ids if item is not None]


def test_a_range_of_the_listed_is_looked_up() -> None:
    assert find(["a", "b", "c"], [b"", b"c", b"d", b"a", b"c"]) == [2, 0, 2]


def test_the_escaped_spelling_of_an_id_is_not_the_id() -> None:
    assert find(['a"b', "é"], [b'a\\"b', b"\\u00e9", b"\xc3\xa9"]) == [1]
