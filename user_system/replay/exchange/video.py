"""Images as video and back; the only door to PyAV.

H.264 with a frame every 1/fps exactly, a key frame at least every second frame and no reordering:
any frame is found by its time, and episodes are put one behind the other in a file by copying their
packets. It is lossy. How lossy is measured: every frame is decoded again and compared.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from user_system.core.errors import SpecError, StoreError
from user_system.core.types import Array
from user_system.replay.exchange.parquet import place

CODEC, CODEC_NAME = "libx264", "h264"
OPTIONS = {"crf": "18", "preset": "medium", "g": "2", "bf": "0"}
"""Constant quality: 18 is hard to tell from the original; ``g``: frames per key frame."""

TOLERANCE_S = 1e-4
"""How far from its time a frame may be; the datasets' own readers allow the same."""

Frames = Callable[[], Iterator[Array]]
"""Gives the images ``(H, W, 3)`` uint8 of an episode, each time anew."""


def pixel_format(height: int, width: int) -> str:
    """Return how pixels are kept: colours at half size where both sides are even."""
    return "yuv420p" if height % 2 == 0 == width % 2 else "yuv444p"


@dataclass(slots=True)
class Loss:
    """What encoding did to the images of one camera."""

    squares: float = 0.0
    values: int = 0
    worst: float = 0.0
    """Mean squared error of the worst frame."""
    frames: int = 0

    def add(self, image: Array, decoded: Array) -> None:
        """Compare one frame."""
        squares = float(((image.astype(np.int32) - decoded) ** 2).sum())
        self.squares += squares
        self.values += image.size
        self.worst = max(self.worst, squares / image.size)
        self.frames += 1

    def psnr(self) -> dict[str, float | int | None]:
        """Return the signal-to-noise ratio in dB, over all pixels and of the worst frame.

        ``None`` where nothing was lost.
        """
        mean = self.squares / self.values if self.values else 0.0
        return {"psnr_db": _db(mean), "worst_frame_db": _db(self.worst), "frames": self.frames}


class VideoSeries:
    """Files ``chunk-000/file-000.mp4`` … of one camera, each of several episodes.

    No file is larger than the limit, unless one episode is. Episodes wait as files of their own in
    ``scratch`` until it is known how many share a file.
    """

    def __init__(self, root: Path, scratch: Path, *, fps: int, limit_bytes: int, chunk_files: int):
        self.loss = Loss()
        self._root, self._scratch = root, scratch
        self._fps, self._limit, self._chunk_files = fps, limit_bytes, chunk_files
        self._clips: list[tuple[Path, int]] = []
        self._size = self._frames = self._number = 0

    def write(self, frames: Frames) -> tuple[int, int, float, float]:
        """Append an episode; return chunk, file, and when in it the episode begins and ends, s."""
        clip = self._scratch / f"{self._number}-{len(self._clips)}.mp4"
        clip.parent.mkdir(parents=True, exist_ok=True)
        count = encode(clip, frames(), self._fps)
        self._compare(clip, frames())
        size = clip.stat().st_size
        if self._clips and self._size + size > self._limit:
            self._finish()
            clip = clip.rename(self._scratch / f"{self._number}-0.mp4")
        begin = self._frames
        self._clips.append((clip, count))
        self._size += size
        self._frames += count
        chunk, file = divmod(self._number, self._chunk_files)
        return chunk, file, begin / self._fps, self._frames / self._fps

    def close(self) -> None:
        """Write the last file; safe to repeat."""
        if self._clips:
            self._finish()

    def _finish(self) -> None:
        chunk, file = divmod(self._number, self._chunk_files)
        path = self._root / place(chunk, file, "mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        join(self._clips, path, self._fps)
        for clip, _ in self._clips:
            clip.unlink()
        self._clips, self._size, self._frames = [], 0, 0
        self._number += 1

    def _compare(self, clip: Path, frames: Iterator[Array]) -> None:
        first = next(frames)
        with VideoFile(clip, first.shape, self._fps) as file:
            decoded = file.all()
            self.loss.add(first, next(decoded))
            for image, again in zip(frames, decoded, strict=True):
                self.loss.add(image, again)


def encode(path: Path, frames: Iterable[Array], fps: int) -> int:
    """Write one episode ``(H, W, 3)`` uint8 as a video; return how many frames it has."""
    count = 0
    try:
        with av.open(str(path), "w") as container:
            stream: Any = None
            for count, image in enumerate(frames, 1):
                if stream is None:
                    stream = _output(container, image.shape, fps)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame.pts, frame.time_base = count - 1, Fraction(1, fps)
                container.mux(stream.encode(frame))
            if stream is not None:
                container.mux(stream.encode())
    except av.FFmpegError as error:
        raise StoreError(f"cannot encode {path}", got=error) from error
    return count


def join(clips: Sequence[tuple[Path, int]], path: Path, fps: int) -> None:
    """Put videos of ``encode``, given with their frames, one behind the other, undecoded."""
    before, packets = 0, 0
    with av.open(str(path), "w") as container:
        target: Any = None
        for clip, frames in clips:
            with av.open(str(clip)) as source:
                stream = source.streams.video[0]
                if target is None:
                    target = container.add_stream_from_template(stream)
                    target.time_base = stream.time_base
                shift = int(Fraction(before, fps) / stream.time_base)
                for packet in source.demux(stream):
                    if packet.dts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = target
                    container.mux(packet)
                    packets += 1
            before += frames
    if packets != before:
        raise StoreError(f"video {path} lost frames", got=packets, allowed=before)


class VideoFile:
    """A video that may be anything, read forwards.

    Args:
        path: the file.
        shape: ``(H, W, 3)`` that its frames must have.
        fps: frames per second that it must have.

    Raises:
        SpecError: from all methods; it is no video, or not such a one.
    """

    def __init__(self, path: Path, shape: Sequence[int], fps: int):
        self.path, self._fps = path, fps
        self._shape = tuple(shape)
        self._container: Any = None
        self._ahead: tuple[float, Any] | None = None
        self._open()

    def close(self) -> None:
        """Close it; safe to repeat."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def all(self) -> Iterator[Array]:
        """Yield every frame ``(H, W, 3)`` uint8."""
        while self._ahead is not None:
            yield self._pixels(self._take()[1])

    def frames(self, begin_s: float, count: int) -> Iterator[Array]:
        """Yield ``count`` frames, the first of them at ``begin_s``."""
        if self._ahead is None or self._ahead[0] > begin_s + TOLERANCE_S:
            self._open()
        for i in range(count):
            wanted = begin_s + i / self._fps
            while self._ahead is not None and self._ahead[0] < wanted - TOLERANCE_S:
                self._take()
            if self._ahead is None or self._ahead[0] > wanted + TOLERANCE_S:
                raise SpecError(
                    f"{self.path} has no frame at {wanted:.4f} s",
                    got="its end" if self._ahead is None else f"the next at {self._ahead[0]:.4f} s",
                    allowed=f"a frame every 1/{self._fps} s",
                )
            yield self._pixels(self._take()[1])

    def _open(self) -> None:
        self.close()
        try:
            self._container = av.open(str(self.path))
            if not self._container.streams.video:
                raise SpecError(f"{self.path} holds no video")
            stream = self._container.streams.video[0]
            self._check(stream.codec_context.height, stream.codec_context.width)
            stream.codec_context.options = {"err_detect": "explode"}
            self._frames = self._container.decode(stream)
            self._ahead = None
            self._take()
        except (av.FFmpegError, OSError) as error:
            self.close()
            raise SpecError(f"{self.path} is not a readable video", got=error) from error
        except SpecError:
            self.close()
            raise

    def _check(self, height: int, width: int) -> None:
        if (height, width, 3) != self._shape:
            raise SpecError(
                f"{self.path} shows another size", got=(height, width, 3), allowed=self._shape
            )

    def _take(self) -> Any:
        """Return the frame ahead and decode the next one."""
        taken = self._ahead
        try:
            frame = next(self._frames, None)
        except (av.FFmpegError, OSError) as error:
            raise SpecError(f"{self.path} is damaged", got=error) from error
        if frame is not None and (frame.time is None or frame.is_corrupt):
            what = "a frame without a time" if frame.time is None else "a damaged frame"
            raise SpecError(f"{self.path} has {what}")
        self._ahead = None if frame is None else (float(frame.time), frame)
        return taken

    def _pixels(self, frame: Any) -> Array:
        self._check(frame.height, frame.width)
        pixels: Array = frame.to_ndarray(format="rgb24")
        return pixels


def _output(container: Any, shape: Sequence[int], fps: int) -> Any:
    stream = container.add_stream(CODEC, rate=fps, options=OPTIONS)
    stream.height, stream.width = shape[0], shape[1]
    stream.pix_fmt = pixel_format(shape[0], shape[1])
    stream.time_base = Fraction(1, fps)
    return stream


def _db(mean_square: float) -> float | None:
    return None if mean_square == 0 else round(10 * math.log10(255**2 / mean_square), 2)
