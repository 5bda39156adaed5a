"""Whatever somebody makes of a fragment, it is refused with a reason or stored and served.

Each comes between good ones of its own and of another robot, in one call. The call never fails, the
good ones are stored, and readers, the log's blocks and ``verify`` find nothing that they cannot
read.
"""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from user_system.codec import fragments
from user_system.core.draws import Draw
from user_system.core.types import End, FragmentHeader, Purpose, Stream
from user_system.replay import verify
from user_system.replay.episodes import Episodes
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store

CAM = (4, 3, 3)
FIELDS = tuple(field.name for field in dataclasses.fields(FragmentHeader))
COLUMNS = tuple(fragments.COLUMNS)
MAPPINGS = ("observation", "extras", "streams")

DTYPES = (
    *("bool", "u1", "i1", "<u2", ">u2", "<i4", ">i4", "<i8", ">i8", "<u8", ">u8"),
    *("<f2", "<f4", ">f4", "<f8", ">f8", "g", "c8", "O", "U3", "S3", "M8[s]", "m8[ns]", "V3"),
    "i4,f4",
)
SHAPES = (
    *((), (0,), (1,), (3,), (4,), (5,), (4, 0), (4, 2), (4, 3), (5, 2), (0, 3)),
    *((4, 0, 10**12), (4, 3, 2, 1), (4, 4, 3, 3), (1,) * 17),
)


class Unprintable:
    """Something that cannot even be named."""

    def __repr__(self):
        raise RuntimeError("no")


class Late:
    """Something that is like an array, and is none."""

    dtype, shape, ndim = np.dtype("float32"), (4,), 1

    def __len__(self):
        return 4


numbers = st.sampled_from(
    [
        *(0, 1, 2, -1, True, 1 << 31, (1 << 63) - 1, 1 << 63, 1 << 64, 1 << 70, -(1 << 70)),
        *(0.0, 1.5, float("nan"), float("inf"), 1j, Purpose.EVAL, End.FAULT),
        *(np.int64(3), np.uint8(3), np.uint64(2**64 - 1), np.float32(2), np.bool_(True)),
    ]
)
texts = st.sampled_from(
    [
        *("", "a", "s", "\0", "a\0b", "é", "\ud800", "x" * 300, "y" * 5_000, "a/b", "c/executed"),
        *(b"", b"arm", bytearray(b"a"), np.str_("arm"), np.bytes_(b"arm")),
    ]
)
things = st.sampled_from([None, ..., int, object(), Unprintable(), Late(), lambda: 0, {1}, {}, []])
atoms = st.one_of(numbers, texts, things)
scalars = st.one_of(
    atoms,
    st.lists(atoms, max_size=3),
    st.lists(atoms, max_size=3).map(lambda values: ("", *values)),
    st.dictionaries(st.sampled_from(["", "a", 0, None]), atoms, max_size=2),
)


@st.composite
def arrays(draw):
    """Return an array of any dtype and shape, with odd values, in any order of its bytes."""
    dtype, shape = np.dtype(draw(st.sampled_from(DTYPES))), draw(st.sampled_from(SHAPES))
    array = np.zeros(shape, dtype)
    return draw(twisted(array))


def twisted(array):
    """Return ways to look at an array, or to fill it."""
    ways = [
        lambda a: a,
        lambda a: a[::-1] if a.ndim else a,
        lambda a: np.repeat(a, 2, 0)[::2] if a.ndim else a,
        lambda a: np.asfortranarray(a),
        lambda a: np.broadcast_to(a[:1], a.shape) if a.ndim else a,
        lambda a: a[1:] if a.ndim else a,
        lambda a: a[:0] if a.ndim else a,
        lambda a: a[..., None],
        lambda a: a.T,
        lambda a: a.tolist(),
        lambda a: np.ma.masked_array(a, True),
        lambda a: a.view(np.memmap),
        lambda a: a.view(np.recarray),
        lambda a: memoryview(bytes(4)),
        lambda a: filled(a, np.nan),
        lambda a: filled(a, np.inf),
        lambda a: filled(a, "least"),
        lambda a: filled(a, "most"),
        lambda a: filled(filled(a, "most"), "least", slice(1, None)),
        lambda a: a.view(np.uint8).view(bool) if a.dtype.itemsize == 1 else a,
    ]
    return st.sampled_from(ways).map(lambda way: way(array))


def filled(array, value, where=...):
    """Return a copy that is full of one value, if its dtype has it."""
    array = array.copy()
    kind = array.dtype.kind
    if value in ("least", "most"):
        if kind in "iu":
            info = np.iinfo(array.dtype)
            array[where if array.ndim else ...] = info.min if value == "least" else info.max
    elif kind == "f":
        array[where if array.ndim else ...] = value
    return array


@st.composite
def changed(draw, array):
    """Return something in the place of a good array."""
    way = draw(st.integers(0, 3))
    if way == 0:
        return draw(st.one_of(scalars, arrays()))
    if way == 1:
        return draw(twisted(array))
    dtype = draw(st.sampled_from([d for d in DTYPES if d not in ("V3", "i4,f4", "M8[s]")]))
    with np.errstate(all="ignore"):
        other = np.abs(array).astype(dtype) if way == 2 else array.astype(dtype)
    return draw(twisted(other))


streams = st.one_of(
    st.builds(
        Stream,
        st.one_of(scalars, arrays(), changed(np.arange(4))),
        st.one_of(scalars, arrays(), changed(np.zeros((4, 2), np.float32))),
    ),
    scalars,
)
names = st.one_of(texts, numbers, st.sampled_from([None, ("a",), "cam", "o", "logp"])).filter(
    lambda name: not isinstance(name, bytearray)
)


@st.composite
def changes(draw, good):
    """Return a fragment that differs from a good one in a place or two."""
    fragment = good
    for _ in range(draw(st.integers(1, 2))):
        what = draw(st.sampled_from([*FIELDS, *FIELDS, *COLUMNS, *MAPPINGS, *MAPPINGS, "header"]))
        if what in FIELDS:
            value = draw(st.one_of(scalars, arrays()))
            if isinstance(fragment.header, FragmentHeader):
                header = dataclasses.replace(fragment.header, **{what: value})
                fragment = dataclasses.replace(fragment, header=header)
        elif what in COLUMNS:
            value = draw(changed(getattr(good, what)))
            fragment = dataclasses.replace(fragment, **{what: value})
        elif what == "header":
            fragment = dataclasses.replace(fragment, header=draw(scalars))
        else:
            fragment = dataclasses.replace(fragment, **{what: draw(parts(good, what))})
    return fragment


@st.composite
def parts(draw, good, what):
    """Return something in the place of observation, extras or streams."""
    there = dict(getattr(good, what))
    if draw(st.integers(0, 5)) == 0:
        return draw(st.one_of(scalars, arrays()))
    name = draw(st.sampled_from([*there, None]))
    if name is None:
        name = draw(names)
    if what == "streams":
        there[name] = draw(streams)
    else:
        there[name] = draw(changed(there.get(name, np.zeros((len(good), 2), np.float32))))
    return there


class Bench:
    """One store in memory, its follower, and robots without end."""

    def __init__(self, path, recorder):
        self.store = Store(path).open(create=True)
        self.follower = ReplayData(self.store.env, seed=1, schema="s")
        self._recorder = recorder
        self._epochs = itertools.count(1)

    def three(self):
        """Return three fragments that follow each other, with an image, an extra and a stream."""
        epoch = next(self._epochs)
        robot = self._recorder("arm", epoch=epoch, cameras={"cam": CAM}, extras=True)
        found = []
        for last in (End.NONE, End.NONE, End.TERMINATED):
            robot.step(3)
            robot.step(1, end=last)
            felt = {"touch": Stream(np.arange(4), np.ones((4, 2), np.float32))}
            found.append(dataclasses.replace(robot.flush(), streams=felt))
        return found

    def other(self):
        """Return a whole episode of another robot."""
        return self._recorder("leg", epoch=next(self._epochs), cameras={"cam": CAM}).run_episode(4)


@pytest.fixture
def bench(quick_path, recorder):
    bench = Bench(quick_path / "replay", recorder)
    yield bench
    bench.store.tend()
    fresh = ReplayData(bench.store.env, seed=1, schema="s")
    assert fresh.count() == bench.follower.count()
    for stats in (fresh.stats(), bench.follower.stats()):
        assert stats["damaged_records"] == stats["damaged_steps"] == 0
    assert sum(len(episode) for episode in Episodes(bench.store.env)) >= fresh.count()
    bench.store.close()
    found = verify.verify(quick_path / "replay")
    assert found.ok, found.damaged[:5]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_it_is_refused_or_stored_and_nothing_else_is_disturbed(bench, data):
    first, good, last = bench.three()
    odd = data.draw(changes(good))
    put_in(bench, first, good, odd, last)


def put_in(bench, first, good, odd, last):
    store, (leg,) = bench.store, bench.other()
    epoch = good.header.epoch
    assert store.append([first]) == []
    before = bench.follower.count()
    refused = store.append([odd, leg, last])
    assert len(refused) <= 1
    assert all(isinstance(each.reason, str) and each.reason for each in refused)
    assert store.expected("leg", leg.header.epoch) == 1, "a neighbour is stored"
    whose = source(odd)
    if whose == (good.header.producer, epoch, good.header.sequence):
        assert store.expected("arm", epoch) == 3, "dealt with, once for all"
        again = store.append([odd])
        assert [each.reason for each in again] == [each.reason for each in refused]
    else:
        assert refused or whose[2] != 0 or whose[0] != "", "it names nobody"
        assert store.expected("arm", epoch) == 1
    assert bench.follower.count() >= before + 4, "the other robot's episode can be drawn"
    bench.follower.draw(Draw(8))


def source(odd):
    """Return who a fragment says that it is of, as far as it says so."""
    header = odd.header
    if not isinstance(header, FragmentHeader):
        return None, None, None
    said = header.producer, header.epoch, header.sequence
    right = isinstance(said[0], str) and all(type(number) is int for number in said[1:])
    return said if right else (None, None, None)
