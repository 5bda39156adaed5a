"""What is said to systemd and what it is told: readiness, the watchdog, and the unit of a host."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from user_system.core.errors import LinkError

WATCHDOG_S = 30
"""Silence of the process that keeps a host's others running after which systemd replaces it."""

_SYSTEM = Path("/etc/systemd/system")
_BOOTED = Path("/run/systemd/system")


def tell(*words: str) -> None:
    """Send ``READY=1``, ``WATCHDOG=1``, ``STATUS=…`` where systemd started us, see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall("\n".join(words).encode())


def runs_here() -> bool:
    """Whether systemd is what started this machine, see sd_booted(3)."""
    return _BOOTED.is_dir()


def as_root() -> bool:
    """Whether units are the whole machine's, or this user's."""
    return os.geteuid() == 0


def unit_name(host: str) -> str:
    """Return the name of the unit of a robot host."""
    return f"user-system-edge-{host}.service"


def unit_folder() -> Path:
    """Return where units lie that a person adds."""
    if as_root():
        return _SYSTEM
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "systemd" / "user"


def unit(host: str, directory: Path) -> str:
    """Return the unit that keeps a robot host running.

    Left out on purpose: ``PrivateDevices``, ``DevicePolicy`` and ``ProtectClock``, which implies it
    (robots and cameras are devices), ``RestrictRealtime`` (loops ask for SCHED_FIFO),
    ``MemoryDenyWriteExecute`` (policies may compile kernels), ``PrivateIPC`` and ``PrivateTmp``
    (vendors' daemons are reached through both).
    """
    command = " ".join(_quoted(word) for word in (*command_line(), str(directory)))
    return f"""\
[Unit]
Description=user-system robot host {host}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
Restart=always
RestartSec=2
# Ended as asked to: this is no failure.
SuccessExitStatus={128 + signal.SIGTERM}
WatchdogSec={WATCHDOG_S}
# Only the first process is asked to end: it ends the others in order, robots at rest first.
KillMode=mixed
TimeoutStopSec=60
Environment=PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
LimitRTPRIO=50
LimitMEMLOCK=infinity
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictSUIDSGID=yes
{_ROOT_ONLY.format(directory=_quoted(str(directory))) if as_root() else ""}
[Install]
WantedBy={"multi-user.target" if as_root() else "default.target"}
"""


_ROOT_ONLY = """\
ProtectSystem=strict
ReadWritePaths={directory} /tmp /var/tmp
ProtectHome=read-only
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_CAN AF_PACKET AF_BLUETOOTH
"""
"""These need mount namespaces, which a user's own systemd often may not make."""


def command_line() -> tuple[str, ...]:
    """Return how this very installation runs a host, the directory left out."""
    return (sys.executable, "-m", "user_system.cli", "edge", "run")


def _quoted(word: str) -> str:
    # systemd expands %-specifiers and $-variables, also within quotes.
    return shlex.quote(word.replace("%", "%%").replace("$", "$$"))


def start(unit_file: str, *, again: bool) -> None:
    """Have systemd run a unit now and at every boot.

    Args:
        unit_file: its name.
        again: also where it runs already: what it reads has changed.

    Raises:
        LinkError: systemd refuses; the text is its own.
    """
    for words in (
        ("daemon-reload",),
        ("enable", unit_file),
        ("restart" if again else "start", "--no-block", unit_file),
    ):
        _systemctl(*words)


def stop(unit_file: str) -> None:
    """Have systemd end a unit, and not run it at boot any more.

    Raises:
        LinkError: systemd refuses; the text is its own.
    """
    _systemctl("disable", "--now", unit_file)


def forget() -> None:
    """Have systemd notice that a unit's file is gone.

    Raises:
        LinkError: systemd refuses.
    """
    _systemctl("daemon-reload")


def active(unit_file: str) -> bool:
    """Whether systemd runs a unit, or is about to."""
    done = subprocess.run(
        [*_systemctl_words(), "is-active", "--quiet", unit_file], check=False, timeout=20.0
    )
    return done.returncode == 0


def _systemctl_words() -> tuple[str, ...]:
    found = shutil.which("systemctl")
    if found is None:
        raise LinkError("systemd runs this machine, and systemctl is not there")
    return (found,) if as_root() else (found, "--user")


def _systemctl(*words: str) -> None:
    command = [*_systemctl_words(), *words]
    done = subprocess.run(command, check=False, timeout=60.0, capture_output=True, text=True)
    if done.returncode:
        raise LinkError(
            f"`{' '.join(command)}` failed",
            got=done.stderr.strip() or f"status {done.returncode}",
            todo="Mend that, then run it again.",
        )
