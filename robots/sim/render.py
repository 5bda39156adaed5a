"""Pictures of the world, rendered off-screen in a thread of their own.

Physics never waits for a picture: the thread works on a copy of the joint positions, and MuJoCo
lets go of the interpreter lock while it draws.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from robots.sim.engine import PACKAGES, mujoco, require_rendering
from user_system.core.errors import MissingError
from user_system.core.types import Array

log = logging.getLogger(__name__)

Done = Callable[[str, Array], None]


class Renderer:
    """Draws cameras of a model at given joint positions; one thread, one context.

    Args:
        model: compiled MJCF.
        size: height and width, pixels.
    """

    def __init__(self, model: Any, size: tuple[int, int]):
        self._model, self._size = model, size
        self._context: Any = None
        self._data: Any = None

    def draw(self, qpos: Array, camera: str) -> Array:
        """Return the image ``(H, W, 3)`` uint8 of ``camera`` at joint positions ``(nq,)``.

        Raises:
            MissingError: the machine cannot render; the message says what to install.
        """
        if self._context is None:
            self._open()
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        self._context.update_scene(self._data, camera)
        return np.asarray(self._context.render())

    def _open(self) -> None:
        require_rendering()
        try:
            self._context = mujoco.Renderer(self._model, *self._size)
        except (RuntimeError, mujoco.FatalError) as error:
            raise MissingError(
                "cameras cannot be rendered: no OpenGL context",
                got=error,
                todo=f"Run: apt-get install -y {PACKAGES}",
            ) from error
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._context.scene.flags[flag] = 0
        self._data = mujoco.MjData(self._model)

    def close(self) -> None:
        """Let go of the context; in the thread that drew."""
        if self._context is not None:
            self._context.close()
            self._context = None


class RenderThread:
    """Draws on request, newest first; a request while it is busy is dropped by the caller.

    Args:
        renderer: what draws; touched by the thread only.
        done: called in the thread with each image.
    """

    def __init__(self, renderer: Renderer, done: Done):
        self._renderer, self._done = renderer, done
        self._requests: queue.Queue[tuple[Array, Sequence[str]] | None] = queue.Queue(1)
        self._thread = threading.Thread(target=self._run, name="render", daemon=True)
        self.error = ""
        """Why it cannot render; empty while it can."""

    def request(self, qpos: Array, cameras: Sequence[str]) -> bool:
        """Ask for images of ``cameras`` at ``qpos``; False while it is still busy."""
        if self._thread.ident is None:
            self._thread.start()
        try:
            self._requests.put_nowait((qpos, cameras))
        except queue.Full:
            return False
        return True

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            qpos, cameras = request
            try:
                for camera in cameras:
                    self._done(camera, self._renderer.draw(qpos, camera))
            except Exception as error:  # top of a thread: cameras end, physics goes on
                self.error = f"{error}"
                log.exception("pictures end here")
                break
        self._renderer.close()

    def close(self) -> None:
        """Finish the picture at hand and end the thread."""
        if self._thread.is_alive():
            self._requests.put(None)
        if self._thread.ident is not None:
            self._thread.join()
