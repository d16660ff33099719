"""Ids in shared memory are those of the graph, whichever way they are asked for."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import ids
from server.ids import Ids, layout

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(st.lists(TEXTS, min_size=1, max_size=40, unique=True), TEXTS)
def test_every_id_is_read_and_found_and_no_other(texts: list[str], other: str) -> None:
    found = Ids(layout(texts)[1])
    assert found.all() == list(found) == texts
    assert [found.find(text) for text in texts] == list(range(len(texts)))
    assert found.find(other) == (texts.index(other) if other in texts else None)
    fresh = Ids(layout(texts)[1])
    asked = [*texts, other, texts[0], other]
    for _ in range(2):
        assert fresh.find_all(asked).tolist() == [texts.index(each) if each in texts else -1 for each in asked]
    assert fresh.find_all([]).tolist() == []


def test_ids_of_the_same_hash_are_told_apart() -> None:
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    found = Ids(layout(["a", "plumless", "buckeroo"])[1])
    assert (found.find("plumless"), found.find("buckeroo")) == (1, 2)
    assert Ids(layout(["a", "plumless"])[1]).find("buckeroo") is None


def test_half_a_character_is_no_id() -> None:
    assert Ids(layout(["?"])[1]).find("\ud800") is None


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "KEPT_MAX", 3)
    texts = [f"item {i}" for i in range(10)]
    found = Ids(layout(texts)[1])
    for _ in range(2):
        assert list(found) == texts
        assert [found.find(text) for text in texts] == list(range(10))
        assert found.find_all(texts).tolist() == list(range(10))
        assert len(found._read) <= 3
        assert len(found._found) <= 3
