"""What does not belong into a store is refused at its door: with what, got and allowed, counted.

Each bad fragment arrives between good ones of its own and of another robot. It must be refused as
one, and nothing else may notice: not the call it came with, not what its producer sends next, not
what is there already, and not a reader, whether it follows or starts anew.
"""

import dataclasses
import json
from contextlib import suppress

import numpy as np
import pytest

from user_system.codec import arrays, fragments
from user_system.core.draws import Draw
from user_system.core.errors import DamageError, SpecError, StoreError, UserSystemError
from user_system.core.types import End, Stream
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store

CAM = (6, 5, 3)


def header(**changes):
    return lambda f: dataclasses.replace(f, header=dataclasses.replace(f.header, **changes))


def column(**changes):
    return lambda f: dataclasses.replace(
        f, **{n: make(getattr(f, n)) for n, make in changes.items()}
    )


def seen(**changes):
    def change(fragment):
        observation = dict(fragment.observation)
        for name, make in changes.items():
            observation[name] = make(observation.get(name))
        return dataclasses.replace(fragment, observation=observation)

    return change


def less(name):
    return lambda f: dataclasses.replace(
        f, observation={n: v for n, v in f.observation.items() if n != name}
    )


def extra(value):
    return lambda f: dataclasses.replace(f, extras={"logp": value})


def stream(stamps, values):
    return lambda f: dataclasses.replace(f, streams={"touch": Stream(stamps, values)})


def put(index, value):
    """Return a change of one element."""

    def change(array):
        array = array.copy()
        array[index] = value
        return array

    return change


BAD = {
    # shape
    "an action more": (column(executed=lambda a: a[1:]), "proposed"),
    "actions without an axis": (column(executed=lambda a: np.float32(0) * a[0, 0]), "executed"),
    "actions of other dimensions": (
        column(executed=lambda a: a[:, :2], proposed=lambda a: a[:, :2]),
        "actions differ",
    ),
    "no steps": (column(executed=lambda a: a[:0], proposed=lambda a: a[:0]), "executed"),
    "rewards of other steps": (column(reward=lambda a: a[1:]), "column reward"),
    "ends without an axis": (column(end=lambda a: a[0]), "column end"),
    "observation rows too few": (seen(o=lambda a: a[1:]), "observation 'o'"),
    "observation without an axis": (seen(o=lambda a: a[0, 0]), "observation 'o'"),
    "observation of another shape": (seen(o=lambda a: a[:, :1]), "observation 'o' differs"),
    "stamps too few": (column(robot_ns=lambda a: a[1:]), "robot_ns"),
    "extra of other steps": (extra(np.zeros(9, np.float32)), "extra 'logp'"),
    "extra without an axis": (extra(np.float32(1) * np.zeros(())), "extra 'logp'"),
    # dtype
    "actions of float64": (column(executed=lambda a: a.astype(np.float64)), "wrong dtype"),
    "observation of float32": (seen(o=lambda a: a.astype(np.float32)), "observation 'o' differs"),
    "observation of complex": (seen(o=lambda a: a.astype(np.complex128)), "may not travel"),
    "observation of objects": (seen(o=lambda a: a.astype(object)), "may not travel"),
    "observation of text": (seen(o=lambda a: a.astype(str)), "may not travel"),
    "extra of objects": (extra(np.array([None] * 4)), "may not travel"),
    # not finite
    "NaN in an action": (column(executed=put((1, 1), np.nan)), "executed is not finite"),
    "NaN in an observation": (seen(o=put((2, 0), np.nan)), "o is not finite"),
    "infinity in an observation": (seen(o=put((2, 0), np.inf)), "o is not finite"),
    "an infinite reward": (column(reward=put(0, -np.inf)), "reward is infinite"),
    "NaN from a sensor": (
        stream(np.array([1, 2]), np.array([0.5, np.nan], np.float32)),
        "stream 'touch' is not finite",
    ),
    # time
    "time stands still": (column(robot_ns=lambda a: np.full_like(a, 7)), "does not increase"),
    "time runs backwards": (column(robot_ns=lambda a: a[::-1].copy()), "does not increase"),
    "a sensor's time runs backwards": (
        stream(np.array([3, 2]), np.zeros((2, 1), np.float32)),
        "run backwards",
    ),
    "before what the episode has": (
        column(robot_ns=lambda a: a - a[0] + 100_000_000),
        "robot_ns runs backwards",
    ),
    # images
    "an oversize image": (
        seen(cam=lambda a: np.zeros((len(a), 70_000, 1, 3), np.uint8)),
        "image 'cam'",
    ),
    "an image without pixels": (seen(cam=lambda a: a[:, :0]), "image 'cam'"),
    "an image of another size": (seen(cam=lambda a: a[:, 1:]), "observation 'cam' differs"),
    "an image of another dtype": (seen(cam=lambda a: a.astype(np.uint16)), "'cam' differs"),
    # fields
    "an unknown field": (seen(more=lambda _: np.zeros((4, 1))), "observation 'more' differs"),
    "a field less": (less("o"), "observation 'o' differs"),
    "another robot's fields under our schema": (
        lambda f: dataclasses.replace(f, observation={"x": f.observation["o"]}),
        "differs from the others of schema",
    ),
    # labels of steps
    "an unknown segment": (column(segment=put(1, 99)), "unknown segment"),
    "an unknown end": (column(end=put(-1, 99)), "robot_ns"),
    "an end in the middle": (column(end=put(1, int(End.TIMEOUT))), "only the last step may end"),
    "an operator without a name": (column(operator=put(1, 7)), "operator index"),
    "a negative version": (column(version=put(1, -3)), "version is negative"),
    # header
    "no episode": (header(episode=""), "episode is empty"),
    "no names": (header(names=()), "names must begin"),
    "a rewind of the future": (header(void_from=1 << 20), "void_from"),
    "a start nobody can number": (header(start=(1 << 31) - 1), "too long"),
    "a wall clock beyond any": (header(wall_ns=1 << 70), "wall_ns"),
    "a wall clock before any": (header(wall_ns=-(1 << 70)), "wall_ns"),
    "a bound beyond any": (header(wall_bound_ns=1 << 70), "wall_bound_ns"),
    "a name that is no text": (header(episode="e\ud800"), "text"),
    "a task that is no text": (header(task="t\udfff"), "text"),
    "a name of an operator that is no text": (header(names=("", "\ud800")), "text"),
    "a schema id too long": (header(schema="s" * 300), "schema id is too long"),
    "a success that is a number": (header(success=1), "success in the header"),
    "a start that is a yes": (header(start=True), "start in the header"),
    "a task that is bytes": (header(task=b"pick"), "task in the header"),
    "a boot that is a number": (header(boot=7), "boot in the header"),
    "a boot that is no text": (header(boot="\ud800"), "no text"),
    "a start of NumPy's": (header(start=np.int64(4)), "start in the header"),
    "a purpose there is none of": (header(purpose=99), "purpose in the header"),
    "names that are numbers": (header(names=("", 3)), "names in the header"),
    # what is no array
    "actions in a list": (column(executed=lambda a: a.tolist()), "column executed is no array"),
    "an image under a mask": (
        seen(cam=lambda a: np.ma.masked_array(a, mask=True)),
        "observation 'cam' is no array",
    ),
    "an extra of nothing": (extra(None), "extra 'logp' is no array"),
    "a sensor that is an array": (
        lambda f: dataclasses.replace(f, streams={"touch": np.zeros(3)}),
        "stream 'touch' is none",
    ),
    "stamps in a list": (stream([1, 2], np.zeros(2)), "stream 'touch' is no array"),
    "extras that are a list": (lambda f: dataclasses.replace(f, extras=[]), "extras: no mapping"),
    "a field without a name": (
        lambda f: dataclasses.replace(f, observation={**f.observation, 3: f.observation["o"]}),
        "observation: a name is none",
    ),
    "an extra of an endless name": (
        lambda f: dataclasses.replace(f, extras={"é" * 128: np.zeros(4)}),
        "extras: a name is none",
    ),
    "a sensor's time that goes all the way back": (
        stream(np.array([(1 << 63) - 1, -(1 << 63)]), np.zeros((2, 1), np.float32)),
        "run backwards",
    ),
    "an extra that fills readers": (
        lambda f: dataclasses.replace(f, extras={"map": np.zeros((len(f), 1_000_000), np.float32)}),
        "most of them 'map'; allowed: <= 1048576 bytes a step. Record",
    ),
    "extras that fill them together": (
        lambda f: dataclasses.replace(
            f, extras={f"x{i}": np.zeros((len(f), 10_000), np.float64) for i in range(20)}
        ),
        "extras are too large",
    ),
    # how many
    "more fields than cameras have numbers": (
        lambda f: dataclasses.replace(f, observation={f"f{i}": f.robot_ns for i in range(1025)}),
        "too many observation; got 1025; allowed: <= 1024",
    ),
    "more extras than columns": (
        lambda f: dataclasses.replace(
            f, extras={f"x{i}": np.zeros(len(f), np.float32) for i in range(129)}
        ),
        "too many extras; got 129; allowed: <= 128",
    ),
    "more streams than sensors": (
        lambda f: dataclasses.replace(
            f, streams={f"t{i}": Stream(np.zeros(1, np.int64), np.zeros(1)) for i in range(65)}
        ),
        "too many streams; got 65; allowed: <= 64",
    ),
    "an episode id with a zero byte": (header(episode="a\0b"), "zero byte"),
}
"""Name -> what makes a good fragment bad, and what is said of it."""


@pytest.mark.parametrize("name", BAD)
def test_it_is_refused_and_nothing_else_is_disturbed(store, recorder, name):
    spoil, reason = BAD[name]
    cameras = {"cam": CAM}
    robot, other = recorder("arm", cameras=cameras), recorder("leg", cameras=cameras)
    follower = ReplayData(store.env)
    robot.step(4)
    assert store.append([robot.flush(), *other.run_episode(4)]) == []
    before = follower.consume(Draw(follower.count()))
    robot.step(4)
    bad, good = spoil(robot.flush()), other.run_episode(4)
    robot.step(4, end=End.NONE)
    robot.step(1, end=End.TERMINATED)
    after = robot.flush()
    (refused,) = store.append([good[0], bad, after])
    assert (refused.producer, refused.epoch, refused.sequence) == ("arm", 1, 1)
    assert reason in refused.reason, refused.reason
    assert "got" in refused.reason or "allowed" in refused.reason, refused.reason
    assert store.expected("arm", 1) == 3
    assert store.expected("leg", 1) == 2
    stats = store.stats()
    assert (stats["refused"], stats["appended_fragments"], stats["fragments"]) == (1, 4, 4)
    assert store.append([bad])[0].reason == refused.reason, "and again"
    fresh = ReplayData(store.env)
    assert follower.count() == fresh.count() == 3 + 4 + 4 + 5
    everything = fresh.consume(Draw(16))
    assert (
        everything.observation["flag"].tolist()[: len(before)]
        == before.observation["flag"].tolist()
    )
    assert (everything.observation["cam"][: len(before)] == before.observation["cam"]).all()
    assert fresh.stats()["damaged_records"] == 0


def test_a_bad_fragment_may_be_the_first_of_all(store, data, recorder):
    """It defines no schema, and leaves nothing behind that readers would stumble over."""
    robot = recorder()
    robot.step(2)
    bad = header(wall_ns=1 << 70)(robot.flush())
    robot.step(2, end=End.NONE)
    robot.step(1, end=End.TERMINATED)
    (refused,) = store.append([bad, robot.flush()])
    assert refused.sequence == 0
    assert data.count() == 3
    assert store.stats()["fragments"] == 1


@pytest.mark.parametrize("odd", [None, 3, b"fragment"])
def test_what_is_no_fragment_is_refused_as_nobodys(store, data, recorder, odd):
    robot = recorder()
    first, second = robot.run_episode(8)
    without = dataclasses.replace(first, header=odd)
    refused = store.append([first, odd, without, second])
    assert [(r.producer, r.epoch, r.sequence) for r in refused] == [("", 0, 0)] * 2
    assert all("not a fragment" in r.reason for r in refused)
    assert data.count() == 8


def test_a_sensor_may_have_stamps_as_far_apart_as_there_are(store, data, recorder):
    """Their difference has one bit more than they have."""
    far = stream(np.array([-(1 << 63), (1 << 63) - 1]), np.zeros((2, 1), np.float32))
    assert store.append([far(recorder("leg").run_episode(4)[0])]) == []
    assert data.count() == 4


@pytest.mark.parametrize("sequence", [-1, -(1 << 70), 1 << 64, 1 << 70, "0", 0.0, None, True])
def test_a_sequence_that_is_none_is_no_repeat_and_no_gap_for_ever(store, recorder, sequence):
    robot = recorder()
    robot.step(2)
    odd = header(sequence=sequence)(robot.flush())
    good = recorder("leg").run_episode(4)
    refused = store.append([odd, *good])
    assert [r.sequence for r in refused] == [sequence]
    assert store.expected("arm", 1) == 0
    assert store.expected("leg", 1) == 1


@pytest.mark.parametrize(
    ("producer", "epoch"),
    [
        ("arm\ud800", 1),
        ("arm", -1),
        ("arm", 1 << 70),
        ("a\0b", 1),
        (7, 1),
        (b"arm", 1),
        ("arm", "1"),
    ],
)
def test_a_source_that_fits_no_key_is_refused(store, recorder, producer, epoch):
    robot = recorder()
    robot.step(2)
    odd = header(producer=producer, epoch=epoch)(robot.flush())
    (refused,) = store.append([odd, *recorder("leg").run_episode(4)])
    assert "allowed" in refused.reason
    assert store.expected("leg", 1) == 1
    with pytest.raises(SpecError):
        store.expected(producer, epoch)


def test_a_record_that_readers_would_not_take_is_not_acknowledged(store, recorder, monkeypatch):
    """What is larger than a message may be would look like damage to every reader."""
    monkeypatch.setattr(arrays, "MAX_BYTES", 1 << 12)
    monkeypatch.setitem(fragments.decode.__kwdefaults__, "max_bytes", 1 << 12)
    robot = recorder()
    robot.step(100)
    (refused,) = store.append([robot.flush(), *recorder("leg").run_episode(4)])
    assert store.expected("leg", 1) == 1
    assert "too large" in refused.reason
    assert "allowed" in refused.reason


# --- late labels ---


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("arm-1-1", "reward", "v", None, np.zeros((2, 2), np.float32)), "numbers"),
        (("arm-1-1", "reward", "v", None, np.array(["a"])), "numbers"),
        (("arm-1-1", "", "v", None, np.zeros(2, np.float32)), "label"),
        (("arm-1-1", "executed", "v", None, np.zeros(2, np.float32)), "hide a recorded column"),
        (("arm-1-1", "reward", "v", None, np.array([np.inf], np.float32)), "infinite"),
        (("arm-1-1", "reward", "v", None, np.array([1e300])), "infinite"),
        (("arm\ud800", "reward", "v", None, np.zeros(2, np.float32)), "text"),
        (("arm-1-1", "reward", "\ud800", None, np.zeros(2, np.float32)), "text"),
        (("arm-1-1", "a@b", "v", None, np.zeros(2, np.float32)), "label"),
    ],
)
def test_a_label_that_is_none_is_refused(store, data, recorder, arguments, match):
    store.append(recorder().run_episode(4))
    with pytest.raises(SpecError, match=match):
        store.label(*arguments)
    assert store.stats()["labels"] == 0
    assert data.consume(Draw(4)).reward.tolist() == [0.0] * 4


# --- bytes from outside ---


def test_a_message_of_another_version_is_refused_by_name(recorder):
    robot = recorder()
    robot.step(2)
    message = fragments.encode(robot.flush())
    meta, blocks = arrays.unpack(message)
    for version in (0, 2, "1", None):
        other = arrays.pack({**meta, "fragment": version}, blocks)
        with pytest.raises(DamageError, match=r"not a fragment.*; allowed: 1"):
            fragments.decode(other)


def test_a_store_of_an_older_or_newer_format_is_not_touched(tmp_path):
    path = tmp_path / "replay"
    Store(path).open(create=True).close()
    manifest = path / "manifest.json"
    said = json.loads(manifest.read_text())
    for version in (said["format"] - 1, said["format"] + 1, None):
        manifest.write_text(json.dumps({**said, "format": version}))
        data = (path / "data.mdb").read_bytes()
        with pytest.raises(StoreError, match=r"replay.*; got .*; allowed: .*format"):
            Store(path).open(create=True)
        assert (path / "data.mdb").read_bytes() == data


@pytest.mark.parametrize("codec", ["zstd", "jpeg"])
def test_a_stored_image_that_lies_about_its_size_is_not_decoded(tmp_path, recorder, codec):
    """Whoever writes the file may lie, too: a bomb with a right checksum is damage."""
    from user_system.codec import images as codecs

    huge = np.zeros((4096, 4096, 3), np.uint8)
    bomb = codecs.encode(huge, codec)
    with pytest.MonkeyPatch.context() as patch:
        encode = codecs.encode
        patch.setattr(
            codecs,
            "encode",
            lambda image, c: bomb if (image == 77).all() else encode(image, c),
        )
        with Store(tmp_path / "replay", codecs={"cam": codec}).open(create=True) as store:
            robot = recorder(cameras={"cam": (16, 16, 3)})
            robot.step(6, end=End.NONE)
            robot.step(1, end=End.TERMINATED)
            fragment = robot.flush()
            pictures = fragment.observation["cam"].copy()
            pictures[3] = 77
            observation = {**fragment.observation, "cam": pictures}
            store.append([dataclasses.replace(fragment, observation=observation)])
            data = ReplayData(store.env, seed=1)
            for _ in range(10):
                batch = data.draw(Draw(8))
                assert 4 not in batch.observation["flag"]
                assert 4 not in batch.next_observation["flag"]
            assert data.stats()["damaged_steps"] == 2


@pytest.mark.parametrize("name", BAD)
def test_every_refusal_is_an_error_of_ours(recorder, name):
    """``check`` names the rule; it never ends in an error of NumPy's or Python's."""
    robot = recorder("arm", cameras={"cam": CAM})
    robot.step(4)
    spoiled = BAD[name][0](robot.flush())
    with suppress(UserSystemError):
        fragments.check(spoiled)


# --- draws ---


@pytest.mark.parametrize("field", ["n", "mix"])
def test_a_draw_of_nothing_is_named(store, data, recorder, field):
    store.append(recorder().run_episode(4))
    request = Draw(0) if field == "n" else Draw(1, mix={"all": 0.0})
    with pytest.raises(SpecError, match=r"mix; got .*allowed"):
        data.draw(request)
