import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from user_system.codec import images
from user_system.core.errors import DamageError, SpecError

pictures = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 24), st.integers(1, 24), st.sampled_from([1, 3])),
)


@given(pictures, st.sampled_from(["raw", "zstd"]))
def test_lossless_codecs_give_back_every_pixel(image, codec):
    got = images.decode(images.encode(image, codec), codec, image.shape)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, image)


def gradient(channels: int) -> np.ndarray:
    ramp = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
    return np.stack([ramp, 255 - ramp, ramp // 2][:channels], axis=-1)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_gives_back_nearly_every_pixel(channels):
    image = gradient(channels)
    data = images.encode(image, "jpeg")
    got = images.decode(data, "jpeg", image.shape)
    assert len(data) < image.nbytes
    assert got.shape == image.shape
    assert np.abs(got.astype(int) - image).max() <= 8


@given(pictures, st.sampled_from(images.CODECS), st.data())
def test_mutated_bytes_are_damage_or_an_image_of_that_shape(image, codec, data):
    buffer = bytearray(images.encode(image, codec))
    for _ in range(data.draw(st.integers(1, 4))):
        buffer[data.draw(st.integers(0, len(buffer) - 1))] ^= data.draw(st.integers(1, 255))
    del buffer[data.draw(st.integers(0, len(buffer))) :]
    try:
        got = images.decode(bytes(buffer), codec, image.shape)
    except DamageError:
        return
    assert got.shape == image.shape


@given(st.binary(max_size=64), st.sampled_from(images.CODECS))
def test_random_bytes_are_damage(data, codec):
    with pytest.raises(DamageError):
        images.decode(data, codec, (9, 9, 3))


@pytest.mark.parametrize("codec", images.CODECS)
def test_another_shape_than_declared_is_damage(codec):
    data = images.encode(gradient(3), codec)
    with pytest.raises(DamageError):
        images.decode(data, codec, (64, 64, 3))


def test_jpeg_of_another_colour_is_damage():
    with pytest.raises(DamageError, match="shape"):
        images.decode(images.encode(gradient(1), "jpeg"), "jpeg", (48, 64, 3))


def test_zstd_that_states_a_huge_size_is_refused_before_decoding():
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    with pytest.raises(DamageError, match="wrong size"):
        images.decode(bomb, "zstd", (48, 64, 3))


def test_zstd_without_a_stated_size_is_refused():
    data = zstandard.ZstdCompressor(write_content_size=False).compress(gradient(3).tobytes())
    with pytest.raises(DamageError, match="wrong size"):
        images.decode(data, "zstd", (48, 64, 3))


@pytest.mark.parametrize(
    ("image", "codec"),
    [
        (np.zeros((4, 4, 3), np.float32), "raw"),
        (np.zeros((4, 4), np.uint8), "raw"),
        (np.zeros((4, 0, 3), np.uint8), "zstd"),
        (np.zeros((4, 4, 2), np.uint8), "jpeg"),
        (np.zeros((4, 4, 3), np.uint8), "png"),
        (np.zeros((1, images.MAX_SIDE + 1, 1), np.uint8), "raw"),
    ],
)
def test_what_is_no_image_is_refused(image, codec):
    with pytest.raises(SpecError):
        images.encode(image, codec)


@pytest.mark.parametrize("shape", [(1 << 14, 1 << 14, 3), (-1, 4, 3), (4, 4), (4, 4, 3, 1)])
def test_shapes_of_no_image_are_refused(shape):
    with pytest.raises(SpecError):
        images.decode(b"", "raw", shape)


def test_checksum_is_the_published_xxh3():
    assert images.checksum(b"") == 0x2D06800538D394C2
    assert images.checksum(b"a") != images.checksum(b"b")
