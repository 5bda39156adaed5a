"""A LeRobotDataset v3 as somebody else writes it: plain pyarrow, none of our columns."""

import io
import json
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def scalar(dtype):
    return {"dtype": dtype, "shape": [1], "names": None}


class Foreign:
    """Rows of ``episodes`` (lengths), to be spoiled before ``write``."""

    def __init__(self, rng, lengths=(7, 4, 60), *, fps=20, files=((0, 1), (2,))):
        self.fps, self.files, self.lengths = fps, files, list(lengths)
        total = sum(lengths)
        frames = np.concatenate([np.arange(n) for n in lengths])
        episodes = np.repeat(np.arange(len(lengths)), lengths)
        self.arrays = {
            "observation.state": rng.normal(size=(total, 3)).astype(np.float32),
            "observation.effort": rng.normal(size=total),
            "action": rng.normal(size=(total, 2)).astype(np.float32),
            "next.reward": rng.normal(size=total).astype(np.float32),
            "next.done": frames == np.repeat(np.array(lengths) - 1, lengths),
            "timestamp": (frames / fps).astype(np.float32),
            "frame_index": frames,
            "episode_index": episodes,
            "index": np.arange(total),
            "task_index": episodes % 2,
        }
        self.features = {
            "observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]},
            "observation.effort": scalar("float64"),
            "action": {"dtype": "float32", "shape": [2], "names": ["a", "b"]},
            "next.reward": scalar("float32"),
            "next.done": scalar("bool"),
            "timestamp": scalar("float32"),
            **{n: scalar("int64") for n in ("frame_index", "episode_index", "index", "task_index")},
        }
        self.images, self.videos = {}, {}
        self.info = {
            "codebase_version": "v3.0", "robot_type": "so101", "total_episodes": len(lengths),
            "total_frames": total, "total_tasks": 2, "chunks_size": 1000, "fps": fps,
            "splits": {"train": f"0:{len(lengths)}"}, "data_path": DATA, "video_path": VIDEO,
        }  # fmt: skip
        self.rows = []
        first = 0
        for i, length in enumerate(self.lengths):
            file = next(n for n, members in enumerate(files) if i in members)
            self.rows.append({
                "episode_index": i, "tasks": [f"task {i % 2}"], "length": length,
                "data/chunk_index": 0, "data/file_index": file,
                "dataset_from_index": first, "dataset_to_index": first + length,
            })  # fmt: skip
            first += length

    def drop(self, *keys):
        for key in keys:
            del self.arrays[key], self.features[key]
        return self

    def add_images(self, key, images, names=("height", "width", "channel")):
        shape = list(images.shape[1:])
        if names[0] == "channels":
            shape = [shape[2], shape[0], shape[1]]
        self.images[key] = images
        self.features[key] = {"dtype": "image", "shape": shape, "names": list(names)}

    def add_video(self, key, images, fps=None):
        """All episodes in one file, one behind the other."""
        self.videos[key] = (images, fps or self.fps)
        self.features[key] = {
            "dtype": "video", "shape": list(images.shape[1:]),
            "names": ["height", "width", "channels"], "info": {"video.fps": self.fps},
        }  # fmt: skip
        for row in self.rows:
            row[f"videos/{key}/chunk_index"] = row[f"videos/{key}/file_index"] = 0
            row[f"videos/{key}/from_timestamp"] = row["dataset_from_index"] / self.fps
            row[f"videos/{key}/to_timestamp"] = row["dataset_to_index"] / self.fps

    def write(self, root):
        (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
        info = self.info | {"features": self.features}
        (root / "meta" / "info.json").write_text(json.dumps(info))
        pq.write_table(
            pa.table({"task_index": [0, 1], "task": ["task 0", "task 1"]}),
            root / "meta" / "tasks.parquet",
        )
        pq.write_table(
            pa.Table.from_pylist(self.rows), root / "meta/episodes/chunk-000/file-000.parquet"
        )
        for number, members in enumerate(self.files):
            keep = np.isin(np.repeat(np.arange(len(self.lengths)), self.lengths), members)
            path = root / "data" / "chunk-000" / f"file-{number:03d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(self.table(keep), path)
        for key, (images, fps) in self.videos.items():
            self.encode(root / "videos" / key / "chunk-000" / "file-000.mp4", images, fps)
        return root

    def table(self, keep):
        columns = {key: cells(values[keep]) for key, values in self.arrays.items()}
        for key, images in self.images.items():
            columns[key] = pa.array([png(image) for image in images[keep]])
        return pa.table(columns)

    def encode(self, path, images, fps):
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=fps, options={"qscale": "2"})
            stream.height, stream.width = images.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for i, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, fps)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def cells(values):
    return pa.array(values) if values.ndim == 1 else pa.array(values.tolist())
