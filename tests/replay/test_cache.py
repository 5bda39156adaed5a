"""Decoded frames and features of a frozen encoder: right whatever made room, and bounded."""

import numpy as np
import pytest

from user_system.codec import images as codecs
from user_system.core.draws import Draw
from user_system.core.errors import ConfigError, DamageError, PluginError
from user_system.core.interfaces import Encoder
from user_system.replay import frames
from user_system.replay.cache import Cache
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store

SHAPE = (8, 8, 3)
SIZE = 8 * 8 * 3 + 8
"""Bytes of a frame in the cache, and of what is kept beside it."""


class Sums:
    """An encoder that is easy to check: the image's sum, mean and first pixel."""

    hash = "sums-1"

    def __init__(self, dtype=np.float32):
        self.dtype, self.seen = dtype, []

    def encode(self, images):
        self.seen.append(len(images))
        flat = images.reshape(len(images), -1).astype(np.float64)
        return np.stack([flat.sum(1) / 1000, flat.mean(1), flat[:, 0]], 1).astype(self.dtype)


def features(number, dtype=np.float32):
    flat = picture(number).reshape(1, -1).astype(np.float64)
    return np.stack([flat.sum(1) / 1000, flat.mean(1), flat[:, 0]], 1).astype(dtype)[0]


def picture(number):
    return np.random.default_rng(number).integers(0, 256, SHAPE, np.uint8)


@pytest.fixture
def coded(tmp_path):
    with Store(tmp_path / "coded", codecs={"cam": "zstd"}).open(create=True) as store:
        yield store


def decodes(monkeypatch):
    """Return a list that grows by the codec of each image that is decoded."""
    made, decode = [], codecs.decode

    def counted(data, codec, shape):
        made.append(codec)
        return decode(data, codec, shape)

    monkeypatch.setattr(codecs, "decode", counted)
    return made


# --- the cache itself ---


def test_the_oldest_make_room_and_never_give_what_is_not_theirs():
    cache = Cache((3,), np.float32, 3 * (4 * 3 + 8))
    rng = np.random.default_rng(1)
    kept = []
    for _ in range(400):
        row = int(rng.integers(0, 20))
        (slot,) = cache.find(np.array([row]))
        assert (slot >= 0) == (row in kept)
        if slot >= 0:
            assert cache.values[slot].tolist() == [row] * 3
        else:
            cache.put(np.array([row]), np.full((1, 3), row, np.float32))
            kept = [*kept, row][-3:]
    assert cache.nbytes == 60
    assert 0 < cache.hits < cache.asked == 400


def test_more_than_fits_is_not_kept_and_nothing_is_an_empty_cache():
    cache = Cache((2,), np.uint8, (2 + 8) * 5)
    rows = np.arange(9)
    cache.put(rows, np.repeat(rows[:, None], 2, 1).astype(np.uint8))
    slots = cache.find(rows)
    there = slots >= 0
    assert there.sum() == 5
    assert (cache.values[slots[there], 0] == rows[there]).all()
    none = Cache((2,), np.uint8, 1)
    none.put(rows, np.zeros((9, 2), np.uint8))
    assert (none.find(rows) < 0).all()


# --- decoded frames ---


@pytest.mark.parametrize("cache_bytes", [0, 3 * SIZE, 12 * SIZE, 1 << 20])
def test_decoded_frames_are_right_whatever_the_cache_holds(coded, recorder, cache_bytes):
    robot = recorder(cameras={"cam": SHAPE})
    coded.append(robot.run_episode(30))
    data = ReplayData(coded.env, seed=4, cache_bytes=cache_bytes)
    for unit in ("step", "window") * 15:
        batch = data.draw(Draw(8, unit=unit, length=3))
        for images, flags in (
            (batch.observation["cam"], batch.observation["flag"]),
            (batch.next_observation["cam"], batch.next_observation["flag"]),
        ):
            for image, flag in zip(images.reshape(-1, *SHAPE), flags.ravel(), strict=True):
                assert (image == (picture(flag) if flag else 0)).all()
        assert data.stats()["frame_cache_bytes"] <= cache_bytes


def test_a_frame_in_the_cache_is_not_decoded_again(coded, recorder, monkeypatch):
    coded.append(recorder(cameras={"cam": SHAPE}).run_episode(20))
    data, made = ReplayData(coded.env, seed=4), decodes(monkeypatch)
    data.consume(Draw(20))
    first = len(made)
    for _ in range(10):
        data.draw(Draw(32))
    assert len(made) == first
    stats = data.stats()
    assert stats["frame_hit_rate"] > 0.9
    assert stats["frame_cache_bytes"] == 21 * SIZE


def test_a_small_cache_hits_as_often_as_it_is_large(coded, recorder):
    coded.append(recorder(cameras={"cam": SHAPE}).run_episode(200))
    data = ReplayData(coded.env, seed=4, cache_bytes=50 * SIZE)
    for _ in range(60):
        data.draw(Draw(64))
    assert 0.15 < data.stats()["frame_hit_rate"] < 0.6
    assert data.stats()["frame_cache_bytes"] == 50 * SIZE


def test_raw_frames_need_no_cache(store, recorder):
    store.append(recorder(cameras={"cam": SHAPE}).run_episode(20))
    data = ReplayData(store.env, seed=4)
    data.draw(Draw(32))
    assert data.stats()["frame_cache_bytes"] == 0
    assert data.stats()["frame_hit_rate"] == 0


def test_an_image_that_stops_decoding_is_left_out(coded, recorder, monkeypatch):
    """Its bytes were right once, so it is noticed when they are decoded again."""
    coded.append(recorder(cameras={"cam": SHAPE}).run_episode(10))
    data, decode, bad = ReplayData(coded.env, seed=4, cache_bytes=0), codecs.decode, []
    data.consume(Draw(10))

    def damaged(found, codec, shape):
        image = decode(found, codec, shape)
        if (image == picture(5)).all():
            bad.append(1)
            raise DamageError("zstd image is damaged")
        return image

    monkeypatch.setattr(codecs, "decode", damaged)
    for _ in range(20):
        batch = data.draw(Draw(16))
        assert 5 not in batch.observation["flag"]
        assert 5 not in batch.next_observation["flag"]
    assert bad
    assert data.stats()["damaged_steps"] == 2


def test_frames_that_there_was_no_memory_to_keep_are_not_taken_for_raw_ones(
    coded, recorder, monkeypatch
):
    coded.append(recorder(cameras={"cam": SHAPE}).run_episode(10))
    data = ReplayData(coded.env, seed=4)

    def none(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(frames, "Cache", none)
        with pytest.raises(MemoryError):
            data.draw(Draw(16))
    batch = data.draw(Draw(16))
    for image, flag in zip(batch.observation["cam"], batch.observation["flag"], strict=True):
        assert (image == picture(flag)).all()


# --- features ---


@pytest.mark.parametrize("cache_bytes", [0, 5 * 20, 1 << 20])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_features_take_the_place_of_images(store, recorder, cache_bytes, dtype):
    store.append(recorder(cameras={"cam": SHAPE, "other": SHAPE}).run_episode(20))
    encoder = Sums(dtype)
    assert isinstance(encoder, Encoder)
    data = ReplayData(store.env, seed=4, encoders={"cam": encoder}, cache_bytes=2 * cache_bytes)
    for unit, history in (("step", 0), ("window", 0), ("step", 3)) * 8:
        batch = data.draw(Draw(8, unit=unit, length=4, history=history))
        for part in (batch.observation, batch.next_observation):
            found, flags = part["cam"].reshape(-1, 3), part["flag"].ravel()
            assert part["cam"].dtype == dtype
            assert part["other"].dtype == np.uint8
            for feature, flag in zip(found, flags, strict=True):
                expected = features(flag, dtype) if flag else np.zeros(3, dtype)
                assert feature.tobytes() == expected.tobytes()
        assert data.stats()["feature_cache_bytes"] <= cache_bytes


def test_features_are_made_once_per_frame(store, recorder):
    store.append(recorder(cameras={"cam": SHAPE}).run_episode(50))
    encoder = Sums()
    data = ReplayData(store.env, seed=4, encoders={"cam": encoder})
    data.consume(Draw(50))
    for _ in range(30):
        data.draw(Draw(64))
    assert sum(encoder.seen) == 51
    stats = data.stats()
    assert stats["features_made"] == 51
    assert stats["feature_hit_rate"] > 0.95
    assert stats["images_read"] == 51
    assert stats["feature_cache_bytes"] == 51 * 20


def test_many_frames_are_encoded_in_parts(store, recorder):
    store.append(recorder(cameras={"cam": SHAPE}).run_episode(600))
    encoder = Sums()
    ReplayData(store.env, encoders={"cam": encoder}).consume(Draw(600))
    assert max(encoder.seen) <= 256
    assert sum(encoder.seen) == 601


def test_another_encoder_makes_its_own(store, recorder):
    store.append(recorder(cameras={"cam": SHAPE}).run_episode(10))
    encoder = Sums()
    data = ReplayData(store.env, seed=4, encoders={"cam": encoder})
    before = data.consume(Draw(10)).observation["cam"]
    data._consumed.load([])
    encoder.hash = "sums-2"
    encoder.encode = lambda images: np.full((len(images), 3), 7, np.float32)
    after = data.consume(Draw(10)).observation["cam"]
    assert (before != 7).any()
    assert (after == 7).all()


def test_damaged_frames_have_no_features(store, recorder, monkeypatch):
    store.append(recorder(cameras={"cam": SHAPE}).run_episode(10))
    encoder = Sums()
    data = ReplayData(store.env, seed=4, encoders={"cam": encoder})
    checksum = codecs.checksum
    monkeypatch.setattr(
        codecs,
        "checksum",
        lambda data: 0 if bytes(data) == picture(5).tobytes() else checksum(data),
    )
    for _ in range(20):
        batch = data.draw(Draw(16))
        assert 5 not in batch.observation["flag"]
        assert 5 not in batch.next_observation["flag"]
        for feature, flag in zip(batch.observation["cam"], batch.observation["flag"], strict=True):
            assert feature.tobytes() == features(flag).tobytes()
    assert data.stats()["damaged_steps"] == 2


def test_a_reader_that_resumes_has_the_same_features(store, recorder):
    store.append(recorder(cameras={"cam": SHAPE}).run_episode(40))
    data = ReplayData(store.env, seed=4, encoders={"cam": Sums()}, cache_bytes=100)
    data.draw(Draw(16))
    again = ReplayData(store.env, seed=5, encoders={"cam": Sums()})
    again.load_state_dict(data.state_dict())
    for _ in range(5):
        ours, theirs = data.draw(Draw(16)), again.draw(Draw(16))
        assert ours.observation["cam"].tobytes() == theirs.observation["cam"].tobytes()


def raising(images):
    raise RuntimeError("no memory")


@pytest.mark.parametrize(
    ("encode", "match"),
    [
        (raising, "encoder of 'cam' raised; got RuntimeError"),
        (lambda images: np.zeros((1, 3), np.float32), "features of 'cam'"),
        (lambda images: np.zeros((len(images), 3)), "float16 or float32"),
        (lambda images: np.full((len(images), 3), np.nan, np.float32), "finite"),
        (lambda images: None, "features of 'cam'"),
    ],
)
def test_an_encoder_that_answers_nonsense_is_named(store, recorder, encode, match):
    store.append(recorder(cameras={"cam": SHAPE}).run_episode(5))
    encoder = Sums()
    encoder.encode = encode
    data = ReplayData(store.env, encoders={"cam": encoder})
    with pytest.raises(PluginError, match=match):
        data.draw(Draw(4))
    assert len(data.draw(Draw(4, observations=["o"]))) == 4


def test_an_encoder_of_no_camera_is_named(store, recorder):
    store.append(recorder(cameras={"cam": SHAPE}).run_episode(5))
    data = ReplayData(store.env, encoders={"cma": Sums()})
    with pytest.raises(ConfigError, match=r"encoder of no camera; got .*cma.*allowed: cam"):
        data.draw(Draw(4))
