"""Somebody may look at a ring without taking anything out of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_system.core.errors import LinkError
from user_system.edge.rings import Ring


@pytest.fixture
def rings(tmp_path):
    owner, onlooker = Ring(tmp_path / "r", 4096), Ring(tmp_path / "r")
    owner.open()
    onlooker.open()
    yield owner, onlooker
    owner.close()
    onlooker.close()


@given(data=st.data())
def test_an_onlooker_sees_what_was_put_and_takes_nothing(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("ring") / "r"
    owner, onlooker = Ring(path, 4096), Ring(path)
    owner.open()
    onlooker.open()
    at, seen, put, got = onlooker.head, [], [], []
    for payload in data.draw(st.lists(st.binary(max_size=900), max_size=40)):
        if owner.put(payload):
            put.append(payload)
        while (found := onlooker.look(at)) is not None:
            at, record = found
            seen.append(record)
        if data.draw(st.booleans()):
            while (record := owner.get()) is not None:
                got.append(record)
    while (record := owner.get()) is not None:
        got.append(record)
    assert seen == put == got
    owner.close()
    onlooker.close()


def test_who_falls_behind_is_told(rings):
    owner, onlooker = rings
    at = onlooker.head
    for number in range(100):
        assert owner.put(bytes([number]) * 500)
        owner.get()
    with pytest.raises(LinkError, match="ran away"):
        onlooker.look(at)
    assert onlooker.look(onlooker.head) is None
