"""An sshd for robot hosts alone: the machine's own program, and a file that leads to this head.

sshd gives each connection a process that leads a session of its own and outlives whoever listens.
So this process is where orphans below it go, and it ends what is left of them with itself.
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from user_system.cluster.configs import SshdHostConfig
from user_system.cluster.process import Life, run
from user_system.core.errors import LinkError, MissingError

_PR_SET_CHILD_SUBREAPER = 36
SBIN = "/usr/sbin:/usr/local/sbin:/sbin"
"""Where sshd is, which is on few people's path."""

_LOOK_S, _REACH_S, _END_S = 0.2, 1.0, 3.0


def main(config: SshdHostConfig, life: Life) -> None:
    """Let robot hosts through until told to stop.

    Raises:
        MissingError: this machine has no sshd.
        LinkError: it ended.
    """
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:{SBIN}")
    if program is None:
        raise MissingError(
            "tunnel.ssh.host_key: own runs an sshd, and this machine has none",
            todo="apt-get install openssh-server; its service need not run.",
        )
    if os.geteuid() == 0:  # sshd started by root insists on this empty folder
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    _take_orphans()
    tied = ("setpriv", "--pdeathsig", "TERM", "--")
    argv = [*(tied if shutil.which(tied[0]) else ()), program, "-D", "-e", "-f", str(config.file)]
    sshd = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        while not life.stop.is_set() and sshd.poll() is None and not _answers(config.port):
            life.stop.wait(_LOOK_S)
        if sshd.poll() is None:
            life.ready()
        while not life.stop.wait(_LOOK_S) and sshd.poll() is None:
            _reap()
        if not life.stop.is_set():
            raise LinkError(
                "sshd ended",
                got=f"status {sshd.returncode}",
                todo=f"What it said stands above; is port {config.port} somebody else's?",
            )
    finally:
        sshd.terminate()
        _end_all()


def _take_orphans() -> None:
    """Become the parent of what processes below this one leave behind (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), _REACH_S) as dialled:
            return dialled.recv(8).startswith(b"SSH-2.0-")
    except OSError:
        return False


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _reap() -> None:
    """Bury orphans that ended; sshd itself is its ``Popen``'s."""
    for pid in _children():
        with suppress(ChildProcessError):
            if (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) == "Z":
                os.waitpid(pid, os.WNOHANG)


def _end_all() -> None:
    """End what is below this process, generation after generation."""
    deadline = time.monotonic() + _END_S
    while children := _children():
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for pid in children:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, number)
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)


if __name__ == "__main__":
    run(main, SshdHostConfig)
