"""A process that has imported everything and forks a child per life.

Starting Python and importing NumPy, LMDB and gRPC takes a second; a suite that ends a process two
thousand times forks them instead. The zygote itself opens nothing and starts no thread. Children
end with it, and it with the process of the tests.

    child = zygote.start("stores:serve", path=..., ...)     # kit/stores.py, function serve
    child.receive()                                         # what it says with channel.send
    child.kill(); child.wait()                              # -9
"""

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

_LENGTH = struct.Struct("<I")
_PR_SET_PDEATHSIG, _PR_SET_PTRACER, _ANYBODY = 1, 0x59616D61, -1
HANGS_S = 60.0
"""Bounds hangs only."""
PREPARED = ("stores", "wire", "damaged", "spools")
"""Modules of tasks, imported before any fork."""


class Channel:
    """Messages between a test and a process, as JSON. Sends with ``sendto``, never ``write``.

    So that no rule for a store's writes hits it, and it can be told apart in a record of calls.
    """

    def __init__(self, socket: socket.socket):
        self.socket = socket

    def send(self, message: object) -> None:
        data = json.dumps(message).encode()
        self.socket.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self, timeout_s: float = HANGS_S) -> Any:
        """Return the next message.

        Raises:
            EOFError: the other side is gone.
            TimeoutError: it said nothing for so long.
        """
        self.socket.settimeout(timeout_s)
        size = _LENGTH.unpack(self._exactly(_LENGTH.size))[0]
        return json.loads(self._exactly(size))

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = self.socket.recv(size - len(parts))
            except ConnectionResetError as error:
                raise EOFError from error
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def pending(self) -> bool:
        """Whether something can be received, or the end of the other side."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def close(self) -> None:
        self.socket.close()


class Child:
    """A forked process and the channel to it; ended with its ``with`` block."""

    def __init__(self, zygote: "Zygote", pid: int, channel: Channel):
        self.pid, self.channel = pid, channel
        self.status: int | None = None
        """As of ``subprocess``: negative for a signal."""
        self._zygote = zygote
        self._handle = os.pidfd_open(pid)

    def receive(self, timeout_s: float = HANGS_S) -> Any:
        return self.channel.receive(timeout_s)

    def send(self, message: object) -> None:
        self.channel.send(message)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> int:
        """End it as ``kill -9`` does."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def running(self) -> bool:
        return not select.select([self._handle], [], [], 0)[0]

    def wait(self, timeout_s: float = HANGS_S) -> int:
        """Return how it ended.

        Raises:
            TimeoutError: it did not, and was killed.
        """
        if self.status is None:
            hung = not select.select([self._handle], [], [], timeout_s)[0]
            if hung:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            self.status = self._zygote.reap(self.pid)
            os.close(self._handle)
            if hung:
                raise TimeoutError(f"process {self.pid} did not end in {timeout_s:g} s")
        return self.status

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.status is None:
            self.kill()
        self.channel.close()


class Zygote:
    """The tests' end.

    Args:
        log: takes what children write to standard error.
        under: a command that runs it, and with it all children, such as strace.
    """

    def __init__(self, log: Path, under: Sequence[str] = ()):
        self.log = log
        self._started: list[Child] = []
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here = str(Path(__file__).parents[1])
        # The tests' own path, so that children run the code that the tests run.
        path = os.pathsep.join([here, *filter(None, sys.path)])
        environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [*under, sys.executable, "-m", "kit.zygote", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=environment,
            )
        theirs.close()
        self._control.settimeout(HANGS_S)

    def start(self, task: str, **arguments: object) -> Child:
        """Run a task in a new process."""
        ours, theirs = socket.socketpair()
        request = json.dumps({"task": task, "arguments": arguments}, default=str).encode()
        socket.send_fds(self._control, [request], [theirs.fileno()])
        theirs.close()
        child = Child(self, json.loads(self._answer()), Channel(ours))
        self._started.append(child)
        return child

    def end_all(self) -> None:
        """End what a test has left."""
        for child in self._started:
            with child:
                pass
        self._started.clear()

    def call(self, task: str, timeout_s: float = HANGS_S, **arguments: object) -> Any:
        """Run a task that sends one answer; return it."""
        with self.start(task, **arguments) as child:
            try:
                answer = child.receive(timeout_s)
            except EOFError as error:
                raise AssertionError(f"{task} ended with {child.wait()}; {self.tail()}") from error
            child.wait()
            return answer

    def reap(self, pid: int) -> int:
        self._control.send(json.dumps({"wait": pid}).encode())
        return int(json.loads(self._answer()))

    def tail(self) -> str:
        """Return what children complained of last."""
        return self.log.read_text(errors="replace")[-3000:]

    def _answer(self) -> bytes:
        answer = self._control.recv(1 << 12)
        if not answer:
            raise AssertionError(f"the zygote is gone: {self.tail()}")
        return answer

    def close(self) -> None:
        self._control.close()
        self._process.wait(HANGS_S)


def _end_with_parent() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_PTRACER, _ANYBODY)  # strace comes from beside, not from above


def _serve(control: socket.socket) -> None:
    """Fork and reap until the tests are done."""
    while True:
        request, handles, *_ = socket.recv_fds(control, 1 << 16, 1)
        if not request:
            return
        order = json.loads(request)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            control.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if pid == 0:
            control.close()
            _live(order, socket.socket(fileno=handles[0]))
        os.close(handles[0])
        control.send(json.dumps(pid).encode())


def _live(order: dict[str, Any], end: socket.socket) -> None:
    """Be a child: run the task and end without ceremony."""
    status = 1
    try:
        _end_with_parent()
        module, _, function = order["task"].partition(":")
        task = getattr(importlib.import_module(f"kit.{module}"), function)
        task(Channel(end), **order["arguments"])
        status = 0
    except (EOFError, BrokenPipeError):
        status = 0  # the test has ended
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Run the zygote on the control socket whose number is the first argument."""
    _end_with_parent()
    for module in PREPARED:
        importlib.import_module(f"kit.{module}")
    _serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
