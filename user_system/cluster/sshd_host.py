"""The sshd of a run: the way in for robot hosts whose tunnel is of kind ssh, and for nobody else.

OpenSSH does the work, with the configuration that ``comms.admission`` wrote. This process stands
beside it to see that it serves, and that nothing of it outlives the run: a connection that sshd
accepted is a process that would outlive sshd, and that carries no mark of the run.
"""

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from user_system.cluster.configs import SshdHostConfig
from user_system.cluster.process import Life, run
from user_system.core.errors import LinkError, MissingError

POLL_S = 0.1
END_S = 3.0
"""Time in which sshd and its connections end; then they are killed."""

SEPARATION = Path("/run/sshd")
"""Where an sshd of root's locks the process in that speaks to strangers; it must be there."""

_PLACES = f"{os.defpath}:/usr/sbin:/usr/local/sbin:/sbin"
"""Where to look for it: it is no program of a user's."""

_PR_SET_CHILD_SUBREAPER = 36


def program() -> str:
    """Return where sshd is; it must be run by its whole path.

    Raises:
        MissingError: it is not installed.
    """
    if (found := shutil.which("sshd", path=_PLACES)) is None:
        raise MissingError(
            "sshd is not installed, which tunnel.ssh.host_key: own needs",
            todo="apt-get install openssh-server",
        )
    return found


def main(config: SshdHostConfig, life: Life) -> None:
    """Let robot hosts in until told to stop.

    Raises:
        LinkError: sshd ended; what it said stands in this process's log.
    """
    with serving(config) as sshd:
        life.ready()
        while not life.stop.wait(POLL_S):
            _check(sshd)


@contextmanager
def serving(config: SshdHostConfig) -> Iterator["subprocess.Popen[bytes]"]:
    """Run sshd within the ``with``; it listens when that begins.

    Raises:
        MissingError: sshd or setpriv is not installed.
        LinkError: it ended.
    """
    # Orphans of sshd become children of this process, which can then end them.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.geteuid() == 0:
        SEPARATION.mkdir(mode=0o755, exist_ok=True)
    config.pid_file.unlink(missing_ok=True)
    try:
        sshd = subprocess.Popen(_command(config), stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise MissingError(
            "setpriv is not installed, which ends sshd with its run",
            todo="apt-get install util-linux",
        ) from error
    try:
        while not config.pid_file.exists():  # written once it listens
            _check(sshd)
            time.sleep(POLL_S / 4)
        yield sshd
    finally:
        _end(sshd)


def _command(config: SshdHostConfig) -> list[str]:
    tied = ["setpriv", "--pdeathsig", "TERM", "--"]  # should this process be killed
    words = ["-D", "-e", "-f", str(config.file), "-o", f'PidFile="{config.pid_file}"']
    return [*tied, program(), *words]


def _check(sshd: "subprocess.Popen[bytes]") -> None:
    if (status := sshd.poll()) is not None:
        raise LinkError(
            f"sshd ended with status {status}",
            todo="Its last lines in the log of this process say why.",
        )


def _end(sshd: "subprocess.Popen[bytes]") -> None:
    """End sshd, so that nobody more comes in, then whoever is."""
    sshd.terminate()
    try:
        sshd.wait(END_S)
    except subprocess.TimeoutExpired:
        sshd.kill()
        sshd.wait()
    left = psutil.Process().children(recursive=True)
    for connection in left:
        with suppress(psutil.NoSuchProcess):  # it was faster
            connection.terminate()
    for connection in psutil.wait_procs(left, END_S)[1]:
        connection.kill()


if __name__ == "__main__":
    run(main, SshdHostConfig)
