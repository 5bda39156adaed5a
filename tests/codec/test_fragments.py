import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from user_system.codec import arrays, fragments
from user_system.core.errors import DamageError, SpecError
from user_system.core.types import End, Fragment, FragmentHeader, Purpose, Segment, Stream

HEADER = FragmentHeader(
    producer="arm-1",
    epoch=2,
    sequence=7,
    run="r",
    task="sim.pick_cube",
    episode="e1",
    start=4,
    purpose=Purpose.TRAIN,
    schema="s",
    robot="arm-1",
    embodiment="b",
    boot="0a",
    wall_ns=1_800_000_000_000_000_000,
    wall_bound_ns=5_000_000,
    names=("", "rlpd", "ann"),
)


def make(steps: int = 3, last: End = End.NONE, **changes) -> Fragment:
    """Return a valid fragment of ``steps`` steps, with ``changes`` made to it."""
    rows = steps + (last != End.NONE)
    ends = np.zeros(steps, np.uint8)
    ends[-1:] = last
    counter = np.arange(rows, dtype=np.float32)
    fragment = Fragment(
        header=HEADER,
        observation={
            "joints": np.outer(counter, np.ones(7, np.float32)).astype(np.float64),
            "wrist": np.full((rows, 4, 4, 3), 9, np.uint8),
        },
        executed=np.ones((steps, 4), np.float32),
        proposed=np.full((steps, 4), np.nan, np.float32),
        reward=np.full(steps, np.nan, np.float32),
        segment=np.full(steps, Segment.AUTO, np.uint8),
        end=ends,
        robot_ns=np.arange(rows, dtype=np.int64) * 100_000_000,
        policy=np.ones(steps, np.uint16),
        version=np.full(steps, 12, np.int64),
        operator=np.zeros(steps, np.uint16),
        chunk=np.arange(steps, dtype=np.int32),
        position=np.zeros(steps, np.int32),
        extras={"log_prob": np.zeros(steps, np.float16)},
        streams={"force": Stream(np.arange(50, dtype=np.int64), np.ones((50, 6), np.float32))},
    )
    return dataclasses.replace(fragment, **changes)


def assert_equal(got: Fragment, want: Fragment) -> None:
    assert got.header == want.header
    assert got.streams.keys() == want.streams.keys()
    pairs = [(getattr(got, name), getattr(want, name)) for name in fragments.COLUMNS]
    for kind in ("observation", "extras"):
        assert getattr(got, kind).keys() == getattr(want, kind).keys()
        pairs += [(array, getattr(want, kind)[k]) for k, array in getattr(got, kind).items()]
    for name, stream in got.streams.items():
        pairs += [
            (stream.stamps, want.streams[name].stamps),
            (stream.values, want.streams[name].values),
        ]
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


any_dtype = st.sampled_from(sorted(arrays.DTYPES))


@st.composite
def any_fragment(draw) -> Fragment:
    steps = draw(st.integers(1, 6))
    end = draw(st.sampled_from(list(End)))
    text = st.text(max_size=6)
    count = draw(st.integers(0, 9))
    rows = steps + (end != End.NONE)
    field = hnp.arrays(draw(any_dtype), (rows, *draw(hnp.array_shapes(max_dims=2, max_side=3))))
    extra = hnp.arrays(draw(any_dtype), (steps, 2))
    header = dataclasses.replace(
        HEADER,
        names=("", *draw(st.lists(text, max_size=3))),
        success=draw(st.none() | st.booleans()),
        void_from=draw(st.none() | st.integers(0, 4)),
        purpose=draw(st.sampled_from(list(Purpose))),
        task=draw(text),
        wall_ns=draw(st.integers(-(2**63), 2**63 - 1)),
    )
    return make(
        steps,
        end,
        header=header,
        observation=draw(st.dictionaries(text, field, max_size=3)),
        extras=draw(st.dictionaries(text, extra, max_size=2)),
        streams={
            name: Stream(np.arange(count), draw(hnp.arrays(draw(any_dtype), (count, 2))))
            for name in draw(st.sets(text, max_size=2))
        },
    )


@given(any_fragment())
def test_round_trip_is_exact(fragment):
    got = fragments.decode(fragments.encode(fragment))
    assert_equal(got, fragment)
    assert isinstance(got.header.purpose, Purpose)
    assert isinstance(got.header.names, tuple)


def test_decoding_does_not_copy():
    buffer = fragments.encode(make())
    got = fragments.decode(buffer)
    assert np.shares_memory(got.observation["wrist"], np.frombuffer(buffer, np.uint8))


@given(any_fragment(), st.data())
def test_changed_bytes_are_damage(fragment, data):
    buffer = bytearray(fragments.encode(fragment))
    where = data.draw(st.integers(0, len(buffer) - 1))
    buffer[where] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamageError):
        fragments.decode(buffer)


wrong = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers())


@given(st.data())
def test_headers_of_other_types_are_damage(data):
    """A message may be whole and still no fragment."""
    meta, blocks = arrays.unpack(fragments.encode(make()))
    key = data.draw(st.sampled_from(sorted(meta["header"])))
    old = meta["header"][key]
    meta["header"][key] = data.draw(wrong.filter(lambda value: type(value) is not type(old)))
    try:
        header = fragments.decode(arrays.pack(meta, blocks)).header
    except DamageError:
        return
    assert key in {"success", "void_from"}
    assert getattr(header, key) == meta["header"][key]


@pytest.mark.parametrize("key", ["c/executed", "t/force", "v/force"])
def test_missing_parts_are_damage(key):
    meta, blocks = arrays.unpack(fragments.encode(make()))
    del blocks[key]
    with pytest.raises(DamageError):
        fragments.decode(arrays.pack(meta, blocks))


@pytest.mark.parametrize("key", ["c/other", "q/x", "plain"])
def test_unknown_parts_are_damage(key):
    meta, blocks = arrays.unpack(fragments.encode(make()))
    with pytest.raises(DamageError):
        fragments.decode(arrays.pack(meta, {**blocks, key: np.zeros(1)}))


def test_other_messages_are_no_fragments():
    with pytest.raises(DamageError, match="not a fragment"):
        fragments.decode(arrays.pack({"plan": 1}, {}))


@pytest.mark.parametrize("end", list(End))
@pytest.mark.parametrize("steps", [1, 4])
def test_valid_fragments_pass(steps, end):
    fragments.check(make(steps, end))


def header(**changes):
    return {"header": dataclasses.replace(HEADER, **changes)}


BROKEN = {
    "no steps": ("executed", {"executed": np.zeros((0, 4), np.float32)}),
    "flat actions": ("executed", {"executed": np.zeros(3, np.float32)}),
    "proposed of another size": ("proposed", {"proposed": np.zeros((3, 5), np.float32)}),
    "float64 actions": ("column executed", {"executed": np.ones((3, 4))}),
    "short reward": ("column reward", {"reward": np.zeros(2, np.float32)}),
    "short extra": ("extra 'x'", {"extras": {"x": np.zeros((2, 1))}}),
    "scalar extra": ("extra 'x'", {"extras": {"x": np.zeros(())}}),
    "extra of objects": ("extras x", {"extras": {"x": np.array([None] * 3)}}),
    "border row before the end": (
        "as many as steps",
        {"observation": {"joints": np.zeros((4, 7))}},
    ),
    "scalar observation": ("observation 'joints'", {"observation": {"joints": np.zeros(())}}),
    "short stamps": ("robot_ns", {"robot_ns": np.arange(2)}),
    "end in the middle": ("only the last", {"end": np.array([0, End.TIMEOUT, 0], np.uint8)}),
    "end without a last row": (
        "one more than",
        {"end": np.array([0, 0, End.TERMINATED], np.uint8)},
    ),
    "unknown end": ("unknown end", {"end": np.array([77, 0, 0], np.uint8)}),
    "unknown segment": ("unknown segment", {"segment": np.array([2, 2, 0], np.uint8)}),
    "unnamed policy": ("policy index", {"policy": np.array([0, 3, 0], np.uint16)}),
    "unnamed operator": ("operator index", {"operator": np.array([9, 0, 0], np.uint16)}),
    "negative version": ("version is", {"version": np.array([0, 0, -1])}),
    "negative position": ("position is", {"position": np.array([0, 0, -1], np.int32)}),
    "NaN executed": ("executed is not finite", {"executed": np.full((3, 4), np.nan, np.float32)}),
    "infinite proposed": (
        "proposed is infinite",
        {"proposed": np.full((3, 4), np.inf, np.float32)},
    ),
    "infinite reward": ("reward is infinite", {"reward": np.full(3, -np.inf, np.float32)}),
    "NaN observation": (
        "joints is not finite",
        {"observation": {"joints": np.full((3, 7), np.nan)}},
    ),
    "equal stamps": ("does not increase", {"robot_ns": np.array([0, 1, 1])}),
    "stamps back": ("does not increase", {"robot_ns": np.array([0, 2, 1])}),
    "stream stamps back": (
        "run backwards",
        {"streams": {"s": Stream(np.array([1, 0]), np.zeros((2, 1)))}},
    ),
    "stream rows": ("stamps of stream", {"streams": {"s": Stream(np.arange(3), np.zeros((2, 1)))}}),
    "stream scalar": ("stamps of stream", {"streams": {"s": Stream(np.arange(0), np.zeros(()))}}),
    "stream dtype": ("stamps of stream", {"streams": {"s": Stream(np.zeros(2), np.zeros((2, 1)))}}),
    "stream of objects": ("stream s", {"streams": {"s": Stream(np.arange(1), np.array([None]))}}),
    "no producer": ("producer is empty", header(producer="")),
    "no episode": ("episode is empty", header(episode="")),
    "negative epoch": ("epoch is", header(epoch=-1)),
    "void after start": ("void_from", header(void_from=5)),
    "negative void": ("void_from", header(void_from=-1)),
    "no names": ("names must", header(names=())),
    "names without the empty one": ("names must", header(names=("rlpd", "ann"))),
}


@pytest.mark.parametrize(("named", "changes"), BROKEN.values(), ids=BROKEN)
def test_each_broken_rule_is_named(named, changes):
    with pytest.raises(SpecError, match=named):
        fragments.check(make(3, **changes))


def test_final_fragment_needs_its_last_observation():
    whole = make(3, End.TERMINATED)
    cut = {name: array[:-1] for name, array in whole.observation.items()}
    with pytest.raises(SpecError, match="one more than steps"):
        fragments.check(dataclasses.replace(whole, observation=cut))
