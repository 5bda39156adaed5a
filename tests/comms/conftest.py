"""A small authority for all tests of the wire, and fragments to send over it."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from comms.authority import Authority
from comms.credentials import AllowList, Credentials, Role
from user_system.core.types import End, Fragment, FragmentHeader, Purpose, Segment

NAMES = {
    "hub": Role.SERVICE,
    "replay": Role.SERVICE,
    "teleop": Role.SERVICE,
    "host-1": Role.ROBOT,
    "host-2": Role.ROBOT,
    "learner": Role.LEARNER,
    "ada": Role.OPERATOR,
    "eve": Role.VIEWER,
    "kim": Role.ENGINEER,
}


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("pki")
    authority = Authority.open(directory)
    for name, role in NAMES.items():
        authority.issue(name, role)
    return directory


@pytest.fixture(scope="session")
def credentials(pki: Path) -> Callable[[str], Credentials]:
    return lambda name: Credentials.load(pki, name)


@pytest.fixture
def allow(pki: Path) -> AllowList:
    return AllowList(pki)


@pytest.fixture
def make_fragment() -> Callable[..., Fragment]:
    def make(
        producer: str = "arm-1",
        epoch: int = 0,
        sequence: int = 0,
        steps: int = 2,
        final: bool = False,
        image: int = 0,
    ) -> Fragment:
        rows = steps + final
        observation = {"q": np.full((rows, 3), float(sequence), np.float32)}
        if image:
            pixels = np.arange(rows * image * image * 3).reshape(rows, image, image, 3) % 251
            observation["wrist"] = pixels.astype(np.uint8)
        end = np.zeros(steps, np.uint8)
        end[-1] = End.TERMINATED if final else End.NONE
        return Fragment(
            header=FragmentHeader(
                producer=producer,
                epoch=epoch,
                sequence=sequence,
                run="run",
                task="task",
                episode=f"{producer}-{epoch}-{sequence // 5}",
                start=(sequence % 5) * steps,
                purpose=Purpose.TRAIN,
                schema="schema",
                robot=producer,
                embodiment="body",
                boot="boot",
                wall_ns=1_700_000_000_000_000_000,
                wall_bound_ns=1000,
            ),
            observation=observation,
            executed=np.zeros((steps, 2), np.float32),
            proposed=np.full((steps, 2), np.nan, np.float32),
            reward=np.zeros(steps, np.float32),
            segment=np.full(steps, Segment.AUTO, np.uint8),
            end=end,
            robot_ns=np.arange(rows, dtype=np.int64) + sequence % 5 * steps,
            policy=np.zeros(steps, np.uint16),
            version=np.zeros(steps, np.int64),
            operator=np.zeros(steps, np.uint16),
            chunk=np.zeros(steps, np.int32),
            position=np.zeros(steps, np.int32),
        )

    return make


class Cutter:
    """A TCP proxy that can be cut: the link between host and head."""

    def __init__(self) -> None:
        self.target = 0
        self.moving = threading.Event()
        """Cleared: bytes wait, as on a link that is up but dead."""
        self.moving.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.live: list[socket.socket] = []
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            with self.lock:
                self.live += [near, far]
            thread = threading.Thread(target=self._pair, args=(near, far), daemon=True)
            thread.start()
            self.threads.append(thread)

    def _pair(self, near: socket.socket, far: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
        back.start()
        self._pump(near, far)
        back.join()
        with self.lock:
            self.live = [end for end in self.live if end not in (near, far)]
            near.close()
            far.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(4096):
                self.moving.wait()
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        with self.lock:
            for end in self.live:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.moving.set()
        self.cut()
        for thread in self.threads:
            thread.join()


@pytest.fixture
def cutter() -> Iterator[Cutter]:
    cutter = Cutter()
    yield cutter
    cutter.close()
