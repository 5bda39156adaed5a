import hashlib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import comms.pb
from comms import wire
from comms.packing import Packing
from comms.pb import experience_pb2, types_pb2, weights_pb2
from comms.wire_specs import (
    manifest_from_proto,
    manifest_to_proto,
    spec_from_proto,
    spec_to_proto,
)
from user_system.codec import arrays
from user_system.codec import fragments as codec_of_fragments
from user_system.codec.arrays import DTYPES
from user_system.core.errors import DamageError, SpecError, UserSystemError
from user_system.core.ports import Manifest, TensorEntry
from user_system.core.specs import ActionSpec, Field, Limits, RobotSpec, StreamSpec
from user_system.core.types import End, Fragment, FragmentHeader, Purpose, Segment, Stream
from user_system.core.versions import PROTOCOL

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES))
TEXT = st.text(max_size=8)
NAME = st.text("abcdef.-/ü", min_size=1, max_size=8)
FINITE = st.floats(-1e6, 1e6, width=32)


def same(left: Any, right: Any) -> bool:
    """Equality that looks into arrays: dtype, shape and bytes."""
    if isinstance(left, np.ndarray):
        return bool(
            left.dtype == right.dtype
            and left.shape == right.shape
            and left.tobytes() == right.tobytes()
        )
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (Fragment, Stream)):
        return all(same(getattr(left, k), getattr(right, k)) for k in left.__slots__)
    return bool(left == right)


FIELDS = {2: "229338277343c018"}
"""Protocol -> digest of all messages and methods as they were then."""


def test_other_messages_are_another_protocol() -> None:
    """Ends of two protocols refuse each other by name; of one, they would misread each other."""
    digest = hashlib.sha256()
    for module in sorted(m.name for m in pkgutil.iter_modules(comms.pb.__path__)):
        if module.endswith("_pb2"):
            digest.update(importlib.import_module(f"comms.pb.{module}").DESCRIPTOR.serialized_pb)
    assert {PROTOCOL: digest.hexdigest()[:16]} == FIELDS, "raise PROTOCOL, and note the digest here"


def over_the_wire(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


@given(ARRAYS)
def test_arrays_come_back(array: Any) -> None:
    back = wire.array_from_proto(over_the_wire(wire.array_to_proto(array)))
    assert same(back, array)
    assert not back.flags.writeable or back.size == 0


def test_strided_and_big_endian_arrays_come_back() -> None:
    array = np.arange(12, dtype=">f4").reshape(3, 4)[:, ::2]
    back = wire.array_from_proto(wire.array_to_proto(array))
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("object", (1,), b"x" * 8),
        ("datetime64[ns]", (1,), b"x" * 8),
        ("", (), b""),
        (">f4", (1,), b"x" * 4),
        ("float32", (2,), b"x" * 4),
        ("float32", (1,), b"x" * 8),
        ("uint8", (1 << 31, 1 << 31), b""),
        ("uint8", (0, 1 << 31), b""),
        ("uint8", (1,) * 40, b"x"),
        ("bool", (1,), b"\x07"),
    ],
)
def test_arrays_that_lie_are_refused(dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    with pytest.raises(DamageError):
        wire.array_from_proto(types_pb2.Array(dtype=dtype, shape=shape, data=data))


def test_objects_never_travel() -> None:
    with pytest.raises(SpecError, match="may not travel"):
        wire.array_to_proto(np.array([object()]))


@st.composite
def fragments(draw: st.DrawFn) -> Fragment:
    steps = draw(st.integers(1, 4))
    final = draw(st.booleans())
    rows = steps + final
    dims = draw(st.integers(1, 3))

    def column(dtype: Any, low: int, high: int) -> Any:
        return draw(hnp.arrays(dtype, steps, elements=st.integers(low, high)))

    names = ("", *draw(st.lists(NAME, max_size=3)))
    end = np.zeros(steps, np.uint8)
    end[-1] = draw(st.integers(1, len(End) - 1)) if final else 0
    start = draw(st.integers(0, 1000))
    observation = draw(
        st.dictionaries(NAME, hnp.arrays(np.float32, (rows, 2), elements=FINITE), max_size=2)
    )
    sides = draw(st.tuples(*[st.integers(1, 6)] * 2, st.sampled_from([1, 3, 4])))
    pictures = hnp.arrays(np.uint8, (rows, *sides))
    observation |= draw(st.dictionaries(st.just("wrist") | st.just("top"), pictures))
    extras = draw(st.dictionaries(NAME, hnp.arrays(np.float64, (steps, 2)), max_size=2))
    count = draw(st.integers(0, 5))
    streams = draw(
        st.dictionaries(
            NAME,
            st.builds(
                Stream,
                st.just(np.arange(count, dtype=np.int64)),
                hnp.arrays(np.int16, (count, 2)),
            ),
            max_size=2,
        )
    )
    header = FragmentHeader(
        producer=draw(NAME),
        epoch=draw(st.integers(0, 2**63)),
        sequence=draw(st.integers(0, 2**63)),
        run=draw(NAME),
        task=draw(TEXT),
        episode=draw(NAME),
        start=start,
        purpose=draw(st.sampled_from(Purpose)),
        schema=draw(NAME),
        robot=draw(NAME),
        embodiment=draw(TEXT),
        boot=draw(TEXT),
        wall_ns=draw(st.integers(-(2**63), 2**63 - 1)),
        wall_bound_ns=draw(st.integers(0, 2**63 - 1)),
        names=names,
        success=draw(st.sampled_from([None, True, False])),
        void_from=draw(st.none() | st.integers(0, start)),
    )
    proposed = draw(hnp.arrays(np.float32, (steps, dims), elements=FINITE | st.just(float("nan"))))
    return Fragment(
        header=header,
        observation=observation,
        executed=draw(hnp.arrays(np.float32, (steps, dims), elements=FINITE)),
        proposed=proposed,
        reward=draw(hnp.arrays(np.float32, steps, elements=FINITE | st.just(float("nan")))),
        segment=column(np.uint8, 1, len(Segment)),
        end=end,
        robot_ns=np.arange(rows, dtype=np.int64) + draw(st.integers(0, 2**60)),
        policy=column(np.uint16, 0, len(names) - 1),
        version=column(np.int64, 0, 2**40),
        operator=column(np.uint16, 0, len(names) - 1),
        chunk=column(np.int32, 0, 2**20),
        position=column(np.int32, 0, 100),
        extras=extras,
        streams=streams,
    )


@settings(deadline=None, max_examples=60)
@given(fragments(), st.sampled_from(["raw", "zstd"]))
def test_fragments_come_back(fragment: Fragment, codec: Any) -> None:
    back = wire.fragment_from_proto(over_the_wire(wire.fragment_to_proto(fragment, Packing(codec))))
    assert same(back.fragment, fragment)
    assert back.record == codec_of_fragments.record(fragment), "what is stored is what was sent"


@settings(deadline=None, max_examples=60)
@given(fragments(), st.data())
def test_damaged_fragments_are_refused_or_still_keep_the_rules(
    fragment: Fragment, data: st.DataObject
) -> None:
    """Changed bytes are either still a lawful fragment, or a UserSystemError says no."""
    sent = bytearray(wire.fragment_to_proto(fragment).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    message = experience_pb2.Fragment()
    try:
        message.MergeFromString(bytes(sent))
    except Exception as error:
        assert type(error).__name__ == "DecodeError"  # noqa: PT017
        return
    try:
        back = wire.fragment_from_proto(message)
    except UserSystemError:
        return
    assert len(back.fragment) >= 1


def hostile(change: Callable[[Any], None], fragment: Fragment) -> Any:
    message = wire.fragment_to_proto(fragment)
    change(message)
    return message


def _huge_image(message: Any) -> None:
    message.images[0].height = message.images[0].width = 16000


def _many_images(message: Any) -> None:
    for _ in range(wire.MAX_PARTS):
        message.images.add()


def _bomb(message: Any) -> None:
    import zstandard

    data = zstandard.ZstdCompressor().compress(bytes(32 << 20))
    message.images[0].data = data
    from user_system.codec import images

    message.images[0].checksum = images.checksum(data)


def _lost_image(message: Any) -> None:
    del message.images[0]


def _double_image(message: Any) -> None:
    message.images.add().CopyFrom(message.images[0])


def _flipped_bit(message: Any) -> None:
    data = bytearray(message.images[1].data)
    data[-1] ^= 1
    message.images[1].data = bytes(data)


def record_of(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Callable[[Any], None]:
    """Return a change of a message whose record's checksum is right all the same."""

    def apply(message: Any) -> None:
        meta, parts = arrays.unpack(message.record)
        change(meta, parts)
        message.record = arrays.pack(meta, parts)

    return apply


_lost_column = record_of(lambda meta, parts: parts.pop("c/reward"))
_strange_array = record_of(lambda meta, parts: parts.update({"z/what": np.zeros(3)}))
_no_purpose = record_of(lambda meta, parts: meta["header"].update(purpose=0))
_other_producer = record_of(lambda meta, parts: meta["header"].update(producer="somebody"))
_other_sequence = record_of(lambda meta, parts: meta["header"].update(sequence=1 << 40))
_more_meta = record_of(lambda meta, parts: meta.update(extra="x"))
_long_header = record_of(lambda meta, parts: meta["header"].update(task="x" * wire.MAX_HEADER))
_many_arrays = record_of(
    lambda meta, parts: parts.update({f"x/{i}": parts["c/reward"] for i in range(5000)})
)
_image_inside = record_of(
    lambda meta, parts: parts.update({"o/top": np.zeros((3, 2, 2, 3), np.uint8)})
)
_no_text = record_of(lambda meta, parts: parts.update({"x/\ud800": parts["c/reward"]}))
_not_finite = record_of(
    lambda meta, parts: parts.update({"c/executed": np.full_like(parts["c/executed"], np.nan)})
)


def _damaged_record(message: Any) -> None:
    data = bytearray(message.record)
    data[-1] ^= 1
    message.record = bytes(data)


def _two_records(message: Any) -> None:
    message.record = message.record + message.record


def _unknown_codec(message: Any) -> None:
    message.images[0].codec = "exe"


_image_and_array = record_of(
    lambda meta, parts: parts.update({"o/wrist": np.zeros((3, 2), np.float32)})
)


def _short_rows(message: Any) -> None:
    del message.images[-1]


@pytest.mark.parametrize(
    "change",
    [
        _huge_image,
        _many_images,
        _bomb,
        _lost_image,
        _double_image,
        _flipped_bit,
        _lost_column,
        _strange_array,
        _other_producer,
        _other_sequence,
        _more_meta,
        _long_header,
        _many_arrays,
        _image_inside,
        _not_finite,
        _no_text,
        _damaged_record,
        _two_records,
        _unknown_codec,
        _no_purpose,
        _image_and_array,
        _short_rows,
    ],
)
def test_hostile_fragments(
    change: Callable[[Any], None], make_fragment: Callable[..., Fragment]
) -> None:
    fragment = make_fragment(steps=3, image=8)
    wire.fragment_from_proto(wire.fragment_to_proto(fragment))
    with pytest.raises((DamageError, SpecError)):
        wire.fragment_from_proto(hostile(change, fragment))


def test_a_name_alone_is_refused(make_fragment: Callable[..., Fragment]) -> None:
    with pytest.raises(DamageError, match="could not send it"):
        wire.fragment_from_proto(wire.unsendable_to_proto(make_fragment().header))


def spec() -> RobotSpec:
    return RobotSpec(
        kind="sim.test",
        observation={
            "q": Field((7,), "float32", "rad", "base", -3.0, 3.0, "joints"),
            "grip": Field((), "bool"),
        },
        cameras={"wrist": Field((64, 64, 3), "uint8", frame="wrist")},
        action=ActionSpec(("x", "w"), ("m", "m"), (-0.1, 0.0), (0.1, 0.08), (True, False), (0, 1)),
        limits=Limits(
            ("x", "w"), ("m", "m"), (-1.0, 0.0), (1.0, 0.1), (1.0, 1.0), (2.0, 2.0), (9.0, 9.0)
        ),
        control_hz=20.0,
        home=(0.0, 0.05),
        resettable=True,
        streams={
            "force": StreamSpec(Field((3,), "float32", "N", "tcp"), 500.0),
            "sound": StreamSpec(Field((), "int16"), 8000.0),
        },
    )


def test_specs_come_back() -> None:
    back = spec_from_proto(over_the_wire(spec_to_proto(spec())))
    assert back == spec()
    assert back.schema == spec().schema
    assert list(back.observation) == ["q", "grip"]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.limits.ClearField("names"),
        lambda m: m.limits.low.append(1.0),
        lambda m: m.limits.velocity.__setitem__(0, float("nan")),
        lambda m: m.limits.velocity.__setitem__(0, -1.0),
        lambda m: m.action.names.append("z"),
        lambda m: m.action.coordinate.__setitem__(0, 2),
        lambda m: m.action.low.__setitem__(0, float("nan")),
        lambda m: setattr(m, "control_hz", 0.0),
        lambda m: setattr(m, "tick_hz", float("inf")),
        lambda m: m.home.append(1.0),
        lambda m: m.observation.add().CopyFrom(m.observation[0]),
        lambda m: m.observation.add(name="evil", dtype="object"),
        lambda m: m.cameras.add(name="big", dtype="uint8", shape=[1 << 31, 1 << 31]),
        lambda m: m.streams.add().CopyFrom(m.streams[0]),
        lambda m: setattr(m.streams[0], "hz", float("nan")),
        lambda m: setattr(m.streams[0].field, "dtype", "object"),
        lambda m: m.Clear(),
    ],
)
def test_specs_that_lie_are_refused(change: Callable[[Any], None]) -> None:
    message = spec_to_proto(spec())
    change(message)
    with pytest.raises((SpecError, DamageError)):
        spec_from_proto(message)


ROW = TensorEntry("policy", "w", "float32", (3, 4), "0" * 64)


def test_manifests_come_back() -> None:
    manifest = Manifest("p", 7, "a" * 64, (ROW, ROW._replace(name="b")), {"base": "x"}, {"n": 1.0})
    assert manifest_from_proto(over_the_wire(manifest_to_proto(manifest))) == manifest


@pytest.mark.parametrize(
    "row",
    [
        ROW._replace(dtype="object"),
        ROW._replace(shape=(1 << 20, 1 << 20)),
        ROW._replace(hash="xyz"),
        ROW._replace(hash="../../etc/passwd"),
    ],
)
def test_manifests_that_lie_are_refused(row: TensorEntry) -> None:
    message = manifest_to_proto(Manifest("p", 7, "a" * 64, (row,)))
    with pytest.raises((SpecError, DamageError)):
        manifest_from_proto(message)


def test_manifest_with_a_tensor_twice_is_refused() -> None:
    message = manifest_to_proto(Manifest("p", 7, "a" * 64, (ROW, ROW)))
    with pytest.raises(SpecError, match="twice"):
        manifest_from_proto(message)


@pytest.mark.parametrize("version", [1 << 53, 1 << 63, (1 << 64) - 1])
def test_no_version_has_a_number_that_records_cannot_hold(version: int) -> None:
    manifest_from_proto(manifest_to_proto(Manifest("p", (1 << 53) - 1, "a" * 64, (ROW,))))
    message = manifest_to_proto(Manifest("p", version, "a" * 64, (ROW,)))
    with pytest.raises(SpecError, match=f"no number of a version; got {version}"):
        manifest_from_proto(message)


def test_manifest_needs_hashes() -> None:
    with pytest.raises(SpecError):
        manifest_from_proto(weights_pb2.Manifest(policy="p"))


def test_same_sees_differences(make_fragment: Callable[..., Fragment]) -> None:
    one = make_fragment()
    assert same(one, make_fragment())
    assert not same(one, replace(one, reward=one.reward + 1))
    assert not same(one, make_fragment(sequence=1))
