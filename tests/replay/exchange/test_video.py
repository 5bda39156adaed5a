"""Videos: a frame at every 1/fps, episodes one behind the other, and a loss that is measured."""

from fractions import Fraction

import av
import numpy as np
import pytest

from user_system.core.errors import SpecError
from user_system.replay.exchange import video
from user_system.replay.exchange.parquet import place
from user_system.replay.exchange.video import VideoFile, VideoSeries

SHAPE = (32, 48, 3)


@pytest.fixture
def clip(kit):
    def make(first, count, shape=SHAPE):
        return [kit.smooth(shape, first + i) for i in range(count)]

    return make


def series(tmp_path, **options):
    defaults = {"fps": 10, "limit_bytes": 1 << 30, "chunk_files": 2}
    return VideoSeries(tmp_path / "videos", tmp_path / "scratch", **(defaults | options))


def write(made, episodes):
    places = [made.write(lambda e=episode: iter(e)) for episode in episodes]
    made.close()
    return places


def decoded(path):
    """(time, image) of every frame, by the library alone."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [(Fraction(f.pts) * stream.time_base, f.to_ndarray(format="rgb24"))
                for f in container.decode(stream)]  # fmt: skip


@pytest.mark.parametrize("fps", [1, 7, 30, 1000])
def test_a_frame_stands_at_every_period(tmp_path, fps, clip, kit):
    episodes = [clip(0, 5), clip(50, 1), clip(90, 12)]
    places = write(series(tmp_path, fps=fps), episodes)
    assert [p[:2] for p in places] == [(0, 0)] * 3
    assert [p[2:] for p in places] == [
        (0, pytest.approx(5 / fps)),
        (pytest.approx(5 / fps), pytest.approx(6 / fps)),
        (pytest.approx(6 / fps), pytest.approx(18 / fps)),
    ]
    found = decoded(tmp_path / "videos" / place(0, 0, "mp4"))
    assert [time for time, _ in found] == [Fraction(i, fps) for i in range(18)]
    for image, (_, again) in zip(
        [image for episode in episodes for image in episode], found, strict=True
    ):
        assert kit.decibels(image, again) > 30


def test_the_stated_loss_is_the_one_that_a_reader_finds(tmp_path, clip, kit):
    episodes = [clip(0, 6), clip(40, 9)]
    made = series(tmp_path)
    write(made, episodes)
    found = [image for _, image in decoded(tmp_path / "videos" / place(0, 0, "mp4"))]
    images = [image for episode in episodes for image in episode]
    stated = made.loss.psnr()
    assert stated["frames"] == 15
    assert stated["psnr_db"] == pytest.approx(kit.decibels(images, found), abs=0.01)
    worst = min(kit.decibels(a, b) for a, b in zip(images, found, strict=True))
    assert stated["worst_frame_db"] == pytest.approx(worst, abs=0.01)
    assert worst < stated["psnr_db"]


def test_without_loss_there_is_no_figure(tmp_path):
    made = series(tmp_path)
    write(made, [[np.zeros(SHAPE, np.uint8)] * 3])
    assert made.loss.psnr()["psnr_db"] is None


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 3), (2, 3, 3), (16, 16, 3)], ids=str)
def test_any_size_is_shown_as_it_is(tmp_path, shape, clip, kit):
    episode = clip(3, 4, shape)
    write(series(tmp_path), [episode])
    with VideoFile(tmp_path / "videos" / place(0, 0, "mp4"), shape, 10) as file:
        found = list(file.frames(0.0, 4))
    assert all(image.shape == shape for image in found)
    assert kit.decibels(episode, found) > 20


def test_files_stay_below_the_limit_and_episodes_stay_whole(tmp_path, rng):
    episodes = [list(rng.integers(0, 256, (n, 16, 16, 3), np.uint8)) for n in (3, 4, 5, 2, 6, 3)]
    one = series(tmp_path / "one")
    write(one, episodes)
    whole = (tmp_path / "one" / "videos" / place(0, 0, "mp4")).stat().st_size
    limit = whole // 2
    made = series(tmp_path, limit_bytes=limit)
    places = write(made, episodes)
    files = sorted((tmp_path / "videos").rglob("*.mp4"))
    assert len(files) > 1
    assert all(file.stat().st_size <= limit for file in files)
    assert len({p[:2] for p in places}) == len(files)
    assert made.loss.psnr() == one.loss.psnr()
    for episode, (chunk, number, begin, end) in zip(episodes, places, strict=True):
        assert end - begin == pytest.approx(len(episode) / 10)
        with VideoFile(tmp_path / "videos" / place(chunk, number, "mp4"), (16, 16, 3), 10) as file:
            found = list(file.frames(begin, len(episode)))
        # Noise is lossy, yet no other frame is nearer.
        nearest = [
            min(
                range(len(episode)),
                key=lambda k, f=frame: float(np.abs(f - 1.0 * episode[k]).sum()),
            )
            for frame in found
        ]
        assert nearest == list(range(len(episode)))
    assert not list((tmp_path / "scratch").iterdir())


def test_frames_may_be_asked_for_in_any_order(tmp_path, clip, kit):
    write(series(tmp_path), [clip(0, 5), clip(50, 5)])
    with VideoFile(tmp_path / "videos" / place(0, 0, "mp4"), SHAPE, 10) as file:
        late, early = list(file.frames(0.5, 5)), list(file.frames(0.0, 5))
        assert np.array_equal(list(file.frames(0.5, 5)), late)
    assert kit.decibels(clip(0, 5), early) > 30
    assert kit.decibels(clip(50, 5), late) > 30


def test_frames_that_are_not_there_are_refused(tmp_path, clip):
    write(series(tmp_path), [clip(0, 5)])
    path = tmp_path / "videos" / place(0, 0, "mp4")
    with VideoFile(path, SHAPE, 10) as file:
        with pytest.raises(SpecError, match=r"no frame at 0.5000 s; got its end"):
            list(file.frames(0.0, 6))
        with pytest.raises(SpecError, match=r"no frame at 0.0500 s; got the next at 0.1000 s"):
            list(file.frames(0.05, 1))
    with VideoFile(path, SHAPE, 30) as file, pytest.raises(SpecError, match="every 1/30 s"):
        list(file.frames(0.0, 2))


def test_another_size_is_refused_before_decoding(tmp_path, clip):
    write(series(tmp_path), [clip(0, 2)])
    with pytest.raises(SpecError, match=r"another size; got \(32, 48, 3\)"):
        VideoFile(tmp_path / "videos" / place(0, 0, "mp4"), (32, 32, 3), 10)


def test_what_is_no_video_is_refused(tmp_path, clip):
    write(series(tmp_path), [clip(0, 5)])
    data = (tmp_path / "videos" / place(0, 0, "mp4")).read_bytes()
    for content in (b"", b"not a video", data[: len(data) // 2]):
        path = tmp_path / "bad.mp4"
        path.write_bytes(content)
        with pytest.raises(SpecError, match="not a readable video"):
            VideoFile(path, SHAPE, 10)
    with pytest.raises(SpecError, match="not a readable video"):
        VideoFile(tmp_path / "absent.mp4", SHAPE, 10)


def test_damaged_packets_are_refused_or_decoded_but_never_fewer(tmp_path, clip, rng):
    """The codec has no checksums; who needs them takes the hashes of the whole file."""
    write(series(tmp_path), [clip(0, 20)])
    path = tmp_path / "videos" / place(0, 0, "mp4")
    sound = path.read_bytes()
    begin, end = sound.index(b"mdat") + 4, sound.index(b"moov") - 4

    def read():
        with VideoFile(path, SHAPE, 10) as file:
            return list(file.frames(0.0, 20))

    refused = 0
    for at in rng.integers(begin, end - 40, 30).tolist():
        path.write_bytes(sound[:at] + bytes(40) + sound[at + 40 :])
        try:
            assert [image.shape for image in read()] == [SHAPE] * 20
        except SpecError:
            refused += 1
    assert refused > 10


def test_key_frames_come_at_least_every_second_frame(tmp_path, clip):
    write(series(tmp_path), [clip(0, 7), clip(30, 4)])
    with av.open(str(tmp_path / "videos" / place(0, 0, "mp4"))) as container:
        keys = [p.is_keyframe for p in container.demux(video=0) if p.dts is not None]
        assert container.streams.video[0].codec_context.name == video.CODEC_NAME
    assert keys == [True, False] * 3 + [True] + [True, False] * 2
