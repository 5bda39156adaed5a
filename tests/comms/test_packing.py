"""What does not shrink goes as it is, and nothing is lost either way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comms.packing import PATIENCE, Packing
from user_system.codec import images

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
FLAT = np.full((24, 32, 3), 7, np.uint8)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.booleans()), max_size=80))
def test_every_image_comes_back(sent):
    packing = Packing()
    for camera, noisy in sent:
        image = NOISE if noisy else FLAT
        codec, data = packing.encode(camera, image)
        assert (images.decode(data, codec, image.shape) == image).all()
        assert len(data) <= image.nbytes


def test_noise_is_tried_once_in_a_while_and_pictures_always(monkeypatch):
    tried = []
    encode = images.encode
    monkeypatch.setattr(
        images, "encode", lambda image, codec, **how: tried.append(codec) or encode(image, codec)
    )
    packing = Packing()
    for _ in range(2 * (1 + PATIENCE)):
        assert packing.encode("noisy", NOISE)[0] == "raw"
    assert tried.count("zstd") == 2
    for _ in range(5):
        assert packing.encode("calm", FLAT)[0] == "zstd"
    assert tried.count("zstd") == 7


def test_a_camera_that_calms_down_is_compressed_again():
    packing = Packing()
    packing.encode("cam", NOISE)
    codecs = [packing.encode("cam", FLAT)[0] for _ in range(PATIENCE + 1)]
    assert codecs == ["raw"] * PATIENCE + ["zstd"]


def test_where_room_is_short_whatever_saves_is_taken():
    packing, nearly = Packing(tight=True), NOISE.copy()
    nearly[:1] = 0  # a little less than noise
    kinds = [packing.encode("cam", image)[0] for image in (NOISE, FLAT, nearly, FLAT)]
    assert kinds == ["raw", "zstd", "zstd", "zstd"]
    assert Packing().encode("cam", nearly)[0] == "raw"


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_what_is_asked_for_is_what_is_sent(codec):
    assert Packing(codec).encode("cam", NOISE)[0] == codec


SOFT = np.kron(np.random.default_rng(1).integers(0, 255, (16, 16, 3)), np.ones((8, 8, 1)))
SOFT = SOFT.astype(np.uint8)
"""A picture as drawn ones are, 48 KiB."""


def test_the_slower_the_link_the_more_a_saving_is_worth():
    nearly = NOISE.copy()
    nearly[:2] = 0  # shrinks by a twelfth
    kinds = {
        rate: Packing(pressed=lambda r=rate: r).encode("cam", nearly)[0] for rate in (1e5, 0.0)
    }
    assert kinds == {1e5: "zstd", 0.0: "raw"}


def test_a_slow_link_is_worth_effort_and_nothing_is_lost():
    sizes = {}
    for rate in (0.0, 125_000.0):
        codec, data = Packing(pressed=lambda r=rate: r).encode("cam", SOFT)
        assert (images.decode(data, codec, SOFT.shape) == SOFT).all()
        sizes[rate] = len(data)
    assert sizes[125_000.0] < 0.8 * sizes[0.0]


@pytest.mark.parametrize(
    ("rate", "camera", "codec"),
    [(125_000.0, "kept as jpeg", "jpeg"), (0.0, "kept as jpeg", "zstd"), (1e5, "other", "zstd")],
)
def test_only_what_is_kept_as_jpeg_goes_as_jpeg_and_only_over_a_slow_link(rate, camera, codec):
    packing = Packing(pressed=lambda: rate, lossy=["kept as jpeg"])
    assert packing.encode(camera, SOFT)[0] == codec


def test_jpeg_over_the_wire_and_again_in_the_store_is_as_good_as_once():
    once = images.decode(images.encode(SOFT, "jpeg"), "jpeg", SOFT.shape)
    twice = images.decode(images.encode(once, "jpeg"), "jpeg", SOFT.shape)
    first, second = (np.abs(a.astype(int) - b).mean() for a, b in ((once, SOFT), (twice, once)))
    assert second < 0.5 * first
