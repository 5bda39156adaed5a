"""Dataclasses as trees: whatever fields they have, and nothing that they do not have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, Literal, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comms import data_wire
from comms.trees import plain, typed, untyped
from user_system.codec import arrays
from user_system.core.errors import ConfigError, DamageError, SpecError
from user_system.core.interfaces import Draw, NotReady
from user_system.core.types import Array, Batch

DRAWS = st.builds(Draw, **{n: st.from_type(h) for n, h in get_type_hints(Draw).items()})
"""Every field there is, with whatever its type allows, sense or nonsense."""


class Word(Enum):
    YES = "yes"
    NO = "no"


class Number(IntEnum):
    ONE = 1
    TWO = 2


@dataclass(frozen=True)
class Relabel:
    share: float
    goals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Later:
    """What a request may look like one day."""

    n: int
    relabel: Relabel | None = None
    views: Mapping[str, Relabel] = field(default_factory=dict)
    weights: Literal["none", "return"] | float = "none"
    word: Word = Word.YES
    numbers: frozenset[Number] = frozenset()
    pair: tuple[int, str] = (0, "")
    anything: Any = None
    values: Array | None = None


@given(DRAWS)
def test_a_draw_comes_back_as_it_was(request: Draw) -> None:
    content = data_wire.encode_draw(request)
    again = data_wire.decode_draw(content)
    assert repr(plain(again, {})) == repr(plain(request, {}))  # of NaN too
    assert list(again.mix) == list(request.mix), "views in their order"
    assert type(again.weigh) is type(request.weigh)
    assert data_wire.encode_draw(again) == content


LATER = Later(
    n=3,
    relabel=Relabel(0.5, ("future", "final")),
    views={"a": Relabel(1.0)},
    weights=2.5,
    word=Word.NO,
    numbers=frozenset({Number.TWO}),
    pair=(1, "x"),
    anything={"a": [1, None, 2.5]},
    values=np.arange(4, dtype=np.float32),
)


def test_fields_that_do_not_exist_yet_need_no_change_here() -> None:
    blocks: dict[str, Array] = {}
    meta, found = arrays.unpack(arrays.pack({"it": plain(LATER, blocks)}, blocks))
    again = typed(Later, meta["it"], found, "later")
    assert np.array_equal(again.values, LATER.values)
    names = set(Later.__dataclass_fields__) - {"values"}
    assert {n: getattr(again, n) for n in names} == {n: getattr(LATER, n) for n in names}
    assert isinstance(again.relabel, Relabel)
    assert isinstance(next(iter(again.numbers)), Number)
    assert typed(Later, {"n": 1}, {}, "later") == Later(1), "what is not sent has its default"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"magic": 1}, r"draw has an unknown field; got magic; allowed: n, unit"),
        ({"n": "3"}, r"draw\.n; got '3'; allowed: a whole number"),
        ({"n": True}, r"draw\.n; got True; allowed: a whole number"),
        ({"n": 2.0}, r"draw\.n; got 2\.0"),
        ({"unit": 7}, r"draw\.unit; got 7; allowed: text"),
        ({"gamma": None}, r"draw\.gamma; got None; allowed: a number"),
        ({"mix": ["all"]}, r"draw\.mix; got \['all'\]; allowed: a mapping"),
        ({"mix": {"all": "1"}}, r"draw\.mix\.all; got '1'; allowed: a number"),
        ({"columns": "reward"}, r"draw\.columns; got 'reward'; allowed: a list"),
        ({"observations": [1]}, r"draw\.observations\[0\]; got 1; allowed: text"),
        ({"include_void": 1}, r"draw\.include_void; got 1; allowed: true or false"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], says: str) -> None:
    tree = {**plain(Draw(4), {}), **change}
    with pytest.raises(SpecError, match=says):
        data_wire.decode_draw(arrays.pack({"draw": tree}, {}))


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({}, "later lacks a field.*allowed: n"),
        ({"n": 1, "relabel": {"share": 1, "goal": []}}, r"later\.relabel has an unknown.*got goal"),
        ({"n": 1, "views": {"a": {}}}, r"later\.views\.a lacks a field.*share"),
        ({"n": 1, "word": "maybe"}, r"later\.word; got maybe; allowed: yes, no"),
        ({"n": 1, "pair": [1]}, r"later\.pair; got 1 items; allowed: 2"),
        ({"n": 1, "weights": []}, r"later\.weights; got \[\]; allowed: a number"),
        (None, "later; got None; allowed: a mapping"),
    ],
)
def test_a_wrong_field_of_a_field_is_named(tree: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        typed(Later, tree, {}, "later")


def test_an_array_that_is_not_there_is_noticed() -> None:
    with pytest.raises(DamageError, match=r"later\.values is no array"):
        typed(Later, {"n": 1, "values": {"$array": "0"}}, {}, "later")
    with pytest.raises(DamageError, match="state is no array"):
        untyped({"a": [{"$array": "3"}]}, {})


@pytest.mark.parametrize("value", [object(), b"bytes", {1: 2}, {"a": [object]}])
def test_what_cannot_travel_is_refused_where_it_is_sent(value: Any) -> None:
    with pytest.raises(SpecError, match="travel"):
        plain(value, {})


def test_numbers_of_numpy_travel_as_numbers() -> None:
    request = Draw(np.int64(4), gamma=np.float64(0.5), mix={"all": np.float32(1)})  # type: ignore[arg-type]
    assert data_wire.decode_draw(data_wire.encode_draw(request)) == Draw(4, gamma=0.5)


def batch(extras: Mapping[str, Array]) -> Batch:
    return Batch(
        observation={
            "q": np.ones((2, 3)),
            "cam": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3),
        },
        action=np.ones((2, 1), np.float32),
        reward=np.array([0.5, np.nan], np.float32),
        discount=np.zeros(2, np.float32),
        next_observation={"q": np.zeros((2, 3)), "cam": np.zeros((2, 2, 2, 3), np.uint8)},
        end=np.zeros(2, np.uint8),
        valid=np.array([True, False]),
        ids=np.array([1, 1 << 63], np.uint64),
        extras=extras,
    )


def same(left: Any, right: Any) -> None:
    """Check that two batches are equal bit by bit."""
    for name in Batch.__dataclass_fields__:
        mine, theirs = getattr(left, name), getattr(right, name)
        if not isinstance(mine, Mapping):
            mine, theirs = {name: mine}, {name: theirs}
        assert list(mine) == list(theirs)
        for key, array in mine.items():
            assert (array.dtype, array.shape) == (theirs[key].dtype, theirs[key].shape), key
            assert array.tobytes() == theirs[key].tobytes(), key


def test_a_batch_comes_back_bit_by_bit_and_may_be_written_to() -> None:
    sent = batch({"a/b": np.arange(2, dtype=np.int16), "empty": np.zeros((2, 0), np.float16)})
    data = data_wire.encode_batch(sent, {"rng": 1 << 120, "at": np.arange(3)})
    answer = data_wire.decode_answer(np.frombuffer(bytearray(data), np.uint8))
    assert answer.batch is not None
    same(answer.batch, sent)
    answer.batch.reward[:] = 7  # as in place of a local one
    answer.batch.extras["empty"][:] = 7
    answer.batch.observation["cam"][1] = 0
    assert (answer.batch.observation["cam"][0] == sent.observation["cam"][0]).all()
    assert answer.state is not None
    assert answer.state["rng"] == 1 << 120
    assert answer.state["at"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "error",
    [
        NotReady("view 'online' is empty"),
        SpecError("draw", got="x", allowed="y", todo="Do this."),
        ConfigError("unknown view", got="mine"),
        DamageError("too many damaged images"),
    ],
)
def test_errors_keep_their_class_and_text(error: Exception) -> None:
    data = data_wire.encode_error(error, {"a": 1})
    answer = data_wire.decode_answer(np.frombuffer(data, np.uint8))
    assert type(answer.error) is type(error)
    assert str(answer.error) == str(error)


def test_a_damaged_answer_is_noticed() -> None:
    data = bytearray(data_wire.encode_batch(batch({}), {}))
    data[len(data) // 2] ^= 1
    with pytest.raises(DamageError, match="checksum"):
        data_wire.decode_answer(np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("columns", [("x" * 100,) * 1000, ("x" * 70_000,)])
def test_a_request_that_is_too_long_is_refused_where_it_is_sent(columns: Sequence[str]) -> None:
    with pytest.raises(SpecError, match="too large to send"):
        data_wire.encode_draw(Draw(1, columns=columns))


def test_too_many_views_are_refused() -> None:
    opening = data_wire.Opening(views={f"v{i}": {} for i in range(65)})
    with pytest.raises(SpecError, match="too many views; got 65; allowed: 64"):
        data_wire.decode_opening(data_wire.encode_opening(opening, None))
