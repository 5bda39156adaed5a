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
        images, "encode", lambda image, codec: tried.append(codec) or encode(image, codec)
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
