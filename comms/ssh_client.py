"""The OpenSSH client as a child: its command line, and a thread that keeps one running.

Nothing of the user's or the machine's own configuration is read, nothing is asked, nothing is
learned: one key, one host key, and forwards that begin at unix sockets in a folder of ours. A
socket there takes up no port, and no other user of this host can reach it; what runs inside proves
itself anyway, as over every kind of tunnel.
"""

import logging
import os
import re
import select
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from comms.ssh_causes import TIMED_OUT, Cause, cause_of, why
from user_system.core.errors import ConfigError, MissingError
from user_system.core.supervise import Backoff

log = logging.getLogger(__name__)

ALIAS = "user-system-head"
"""Name under which the head's host key is pinned, whatever address it is dialled by."""

KEY, KNOWN_HOSTS = "ssh.key", "ssh.known_hosts"
"""Files in a robot host's ``pki``."""

ALIVE_S, ALIVE_COUNT = 2, 3
"""A head that is silent for the product is dialled anew: less than gRPC takes to notice, so that
by the time it dials there is something to dial to."""

CONNECT_S = 3
"""Time of one attempt to connect; a new one asks at once, an old one less and less often."""

_PATIENT_S = (0.1, 1.0, 5.0)
_LASTING_S = (1.0, 15.0, 60.0)
"""Base, cap and quiet life of the waits between attempts. The latter are for causes that only
a person mends: often enough to notice that one has, seldom enough that no watchman at the head
(fail2ban, PerSourcePenalties) shuts this host out."""

_JITTER_S = 0.3

_TIED = ("setpriv", "--pdeathsig", "TERM", "--")
"""Makes the child end with the thread that started it, however that ends."""

_END_S = 2.0
"""Time in which a client that was asked to end does; then it is killed."""

_SEEN = 20
"""Lines of stderr that are kept."""

_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:-]{0,254}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Destination:
    """Where the head's sshd is.

    Raises:
        ConfigError: something that is no host, user or port; nothing of it may look like an option.
    """

    user: str
    host: str
    port: int = 22

    def __post_init__(self) -> None:
        if not (isinstance(self.host, str) and _HOST.fullmatch(self.host)):
            raise ConfigError(
                "host is no name or address", got=repr(self.host), allowed="DNS name, IPv4, IPv6"
            )
        if not (isinstance(self.user, str) and _USER.fullmatch(self.user)):
            raise ConfigError(
                "user is no name of an account", got=repr(self.user), allowed="letters, digits, _.-"
            )
        if isinstance(self.port, bool) or not isinstance(self.port, int):
            raise ConfigError("port is no number", got=repr(self.port), allowed="1..65535")
        if not 0 < self.port < 65536:
            raise ConfigError("port is out of range", got=self.port, allowed="1..65535")


def client_argv(
    to: Destination,
    pki: Path,
    forwards: Mapping[Path, str],
    qos: Literal["lowdelay", "throughput"],
) -> tuple[str, ...]:
    """Return the command line.

    Args:
        to: the head.
        pki: folder of this host's key and of the head's pinned host key.
        forwards: unix socket here -> ``host:port`` as seen from the head.
        qos: what routers are told about this connection.
    """
    options = {
        # Nobody is asked, and only one key is offered.
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "IdentityFile": _quoted(pki / KEY),
        "PreferredAuthentications": "publickey",
        # One host key is right, and none is ever learned.
        "StrictHostKeyChecking": "yes",
        "HostKeyAlias": ALIAS,
        "UserKnownHostsFile": _quoted(pki / KNOWN_HOSTS),
        "GlobalKnownHostsFile": "none",
        "UpdateHostKeys": "no",
        "VerifyHostKeyDNS": "no",
        "CheckHostIP": "no",
        # Forwards to the head and nothing else.
        "ExitOnForwardFailure": "yes",
        "StreamLocalBindMask": "0177",
        "StreamLocalBindUnlink": "yes",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "GatewayPorts": "no",
        "Tunnel": "no",
        "PermitLocalCommand": "no",
        "ControlMaster": "no",
        "ControlPath": "none",
        # Alive, or ended and dialled anew.
        "ServerAliveInterval": str(ALIVE_S),
        "ServerAliveCountMax": str(ALIVE_COUNT),
        "ConnectTimeout": str(CONNECT_S),
        "ConnectionAttempts": "1",
        "IPQoS": qos,
        # What travels is compressed where it can be, and encrypted.
        "Compression": "no",
        "LogLevel": "INFO",
    }
    argv = ["ssh", "-F", "none", "-N", "-T", "-l", to.user, "-p", str(to.port)]
    for name, value in options.items():
        argv += ["-o", f"{name}={value}"]
    for path, endpoint in forwards.items():
        argv += ["-L", f"{path}:{endpoint}"]
    return (*argv, "--", to.host)


class SshClient:
    """Keeps one client running from ``start`` to ``close``; it ends with this process.

    Args:
        name: of the way, for people: ``urgent`` or ``bulk``.
        argv: its command line.
        sockets: where it listens once it is connected, authenticated and through.
    """

    def __init__(self, name: str, argv: Sequence[str], sockets: Sequence[Path]):
        self._name = name
        self._argv = (*_TIED, *argv)
        self._sockets = tuple(sockets)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closing, self._settled = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"ssh {name}", daemon=True)
        self._patient, self._lasting = Backoff(*_PATIENT_S), Backoff(*_LASTING_S)
        self._lines: deque[str] = deque(maxlen=_SEEN)
        self._cause: Cause | None = None
        self._trouble = ""
        self._figures = dict.fromkeys(("starts", "connected"), 0.0)

    def start(self) -> None:
        """Begin to dial; idempotent."""
        with self._lock:
            if self._thread.ident is None and not self._closing.is_set():
                self._trouble = f"ssh ({self._name}): not connected yet"
                self._thread.start()

    def settle(self, timeout_s: float) -> None:
        """Wait until the first attempt is through or has failed, at most ``timeout_s``."""
        self._settled.wait(timeout_s)

    def close(self) -> None:
        """End the client; idempotent."""
        self._settled.set()
        with self._lock:
            self._closing.set()
        for end in (subprocess.Popen.terminate, subprocess.Popen.kill):
            if self._process is not None:
                end(self._process)
            if self._thread.ident is not None:
                self._thread.join(_END_S)

    @property
    def pid(self) -> int:
        """Process id of the living client; 0: there is none just now."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else 0

    def trouble(self) -> str:
        """Return why there is no way just now and what to do; "": there is one."""
        return self._trouble

    def stats(self) -> dict[str, float]:
        """Return how often the client was started, and whether it is through."""
        return {f"ssh_{self._name}_{name}": value for name, value in self._figures.items()}

    def _run(self) -> None:
        # The client ends with the thread that started it, so this one lives as long as the tunnel.
        while not self._closing.is_set():
            born = time.monotonic()
            process = self._spawn()
            if process is None:
                return
            self._listen(process)
            lived = time.monotonic() - born
            self._closing.wait(self._bury(process, lived))

    def _spawn(self) -> "subprocess.Popen[bytes] | None":
        for socket in self._sockets:
            socket.unlink(missing_ok=True)  # of one that was killed: it would look alive
        self._lines.clear()
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        with self._lock:
            if self._closing.is_set():
                return None
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**kept, "LC_ALL": "C"},  # no agent, no askpass, messages as we know them
                # Ctrl-C is for us: we still have things to say to the head before we go.
                start_new_session=True,
            )
        self._figures["starts"] += 1
        return self._process

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        """Take what the client says until it ends, and notice when it is through."""
        pipe, rest = process.stderr, b""
        if pipe is None:  # pragma: no cover - it was asked for
            return
        while True:
            through = self._figures["connected"] == 1
            if select.select([pipe], [], [], 1.0 if through else 0.02)[0]:
                data = os.read(pipe.fileno(), 4096)
                if not data:
                    return
                *lines, rest = (rest + data)[-4096:].split(b"\n")
                for line in lines:
                    self._hear(line.decode(errors="replace").strip())
            elif not through and all(socket.exists() for socket in self._sockets):
                self._through()

    def _through(self) -> None:
        self._figures["connected"] = 1
        self._patient.failures = self._lasting.failures = 0
        if self._cause is not None:
            log.info("ssh (%s): connected again", self._name)
        self._cause, self._trouble = None, ""
        self._settled.set()

    def _hear(self, line: str) -> None:
        self._lines.append(line)
        log.debug("ssh (%s): %s", self._name, line)
        if self._figures["connected"] and (cause := cause_of(line)):
            self._note(cause, line)

    def _note(self, cause: Cause, line: str) -> None:
        """Say a cause once, not once per attempt."""
        self._trouble = str(cause.error(line))
        if cause != self._cause and not self._closing.is_set():
            log.warning("%s (%s)", self._trouble, self._name)
        self._cause = cause

    def _bury(self, process: "subprocess.Popen[bytes]", lived_s: float) -> float:
        """Note why the client ended; return the time to wait before the next."""
        code = process.wait()
        if process.stderr is not None:
            process.stderr.close()
        self._figures["connected"] = 0
        cause, line = why(self._lines)
        self._note(cause, line or f"exit status {code}")
        self._settled.set()
        delay = (self._lasting if cause.lasting else self._patient).died(lived_s)
        # An attempt that was waited for in vain was wait enough: only the jitter is left.
        return min(delay, _JITTER_S) if cause is TIMED_OUT else delay


def check_installed() -> None:
    """Check that the programs are there.

    Raises:
        MissingError: one is not installed.
    """
    for program, package in (("ssh", "openssh-client"), ("setpriv", "util-linux")):
        if shutil.which(program) is None:
            raise MissingError(
                f"{program} is not installed, which a tunnel of kind ssh needs",
                todo=f"apt-get install {package}",
            )


def _quoted(path: Path) -> str:
    """Return a path as a value of an option: spaces are separators there, % begins a token."""
    return '"' + str(path.resolve()).replace("%", "%%") + '"'
