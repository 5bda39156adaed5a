"""Bringing a WireGuard interface up and down, where this process may; else saying what to run.

``wg-quick`` does the work: it uses the kernel's WireGuard, or ``wireguard-go`` where the kernel has
none. It needs root, which our processes usually are not, and should not be made for this.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from user_system.core.errors import LinkError

_NET_ADMIN = 12
"""The capability's number, from capabilities(7)."""

STALE_S = 200.0
"""Age of a handshake beyond which nobody answers: with keepalives there is one every two minutes,
and after three the other side takes nothing under the old keys."""

_PATIENCE_S = 20.0
"""For a command that sets addresses and routes; it takes a tenth of a second."""


def is_up(interface: str) -> bool:
    """Return whether there is such an interface in this network namespace."""
    return interface in {name for _, name in socket.if_nameindex()}


def may_configure() -> bool:
    """Return whether this process may set up interfaces: ``wg-quick`` wants to be root."""
    if os.geteuid() != 0:
        return False
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> _NET_ADMIN & 1)


def lacking() -> str:
    """Return which programs are missing, as a command that installs them; "": none is."""
    packages = []
    if shutil.which("wg-quick") is None or shutil.which("wg") is None:
        packages.append("wireguard-tools")
    if shutil.which("wireguard-go") is None and not Path("/sys/module/wireguard").exists():
        packages.append("wireguard-go")
    if shutil.which("ip") is None:
        packages.append("iproute2")
    return f"apt-get install {' '.join(packages)}" if packages else ""


def bring_up(conf: Path) -> bool:
    """Bring up the interface that ``conf`` is named after; False where it was up already.

    Raises:
        LinkError: it cannot be, or this process may not; says what to run as root.
    """
    interface = conf.stem
    if is_up(interface):
        return False
    if not may_configure():
        raise LinkError(f"WireGuard's interface {interface} is not up", todo=by_hand(conf))
    if missing := lacking():
        raise LinkError(f"WireGuard's interface {interface} cannot be made", todo=missing)
    try:
        _run(("wg-quick", "up", str(conf)), f"bring up {interface}", conf)
    except LinkError:
        if not is_up(interface):  # another process of this host may have been faster
            raise
        return False
    return True


def take_down(conf: Path) -> None:
    """Take the interface down again, if it is up.

    Raises:
        LinkError: it cannot be.
    """
    if is_up(conf.stem):
        _run(("wg-quick", "down", str(conf)), f"take down {conf.stem}", conf)


def follow(conf: Path) -> str:
    """Give an interface that is up the keys and peers of ``conf``: "" or what to run as root.

    Another run's interface may be up under that name, with other keys, and nobody would get in.

    Raises:
        LinkError: it cannot be changed.
    """
    if not may_configure():
        return f"where robot hosts do not get in, its keys are an earlier run's. {_sync(conf)}"
    what = f"give {conf.stem} its keys"
    plain = _run(("wg-quick", "strip", str(conf)), what, conf)
    _run(("wg", "syncconf", conf.stem, "/dev/stdin"), what, conf, plain)
    return ""


def set_peer(conf: Path, key: str, address: str) -> str:
    """Let a peer in while the interface is up; "" or what to run as root so that it is."""
    command = ("wg", "set", conf.stem, "peer", key, "allowed-ips", f"{address}/32")
    return _live(conf, command)


def drop_peer(conf: Path, key: str) -> str:
    """Take a peer out while the interface is up; "" or what to run as root so that it is."""
    return _live(conf, ("wg", "set", conf.stem, "peer", key, "remove"))


def handshake_age_s(interface: str) -> float | None:
    """Return the time since the youngest handshake, inf for never; None: only root may know."""
    if not may_configure() or shutil.which("wg") is None:
        return None
    command = ("wg", "show", interface, "latest-handshakes")
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
    stamps = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.strip()]
    newest = max(stamps, default=0)
    return time.time() - newest if newest else float("inf")


def by_hand(conf: Path) -> str:
    """Return what a person with root runs, once and for every boot."""
    place = f"/etc/wireguard/{conf.name}"
    install = f"{missing} && " if (missing := lacking()) else ""
    return (
        f"Run as root: {install}ln -sf {conf.resolve()} {place} && "
        f"systemctl enable --now wg-quick@{conf.stem}  (without systemd: wg-quick up {conf})"
    )


def _live(conf: Path, command: Sequence[str]) -> str:
    if not is_up(conf.stem):
        return ""  # it reads its file when it is brought up
    if not may_configure():
        return _sync(conf)
    _run(command, f"change the peers of {conf.stem}", conf)
    return ""


def _sync(conf: Path) -> str:
    return f"Run as root: wg syncconf {conf.stem} <(wg-quick strip {conf.resolve()})"


def _run(command: Sequence[str], what: str, conf: Path, given: str = "") -> str:
    """Run a command that reads ``given``; return what it printed."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_S, input=given
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LinkError(f"could not {what}", got=error, todo=by_hand(conf)) from error
    if done.returncode:
        spoken = [line for line in done.stderr.splitlines() if not line.startswith("[#]")]
        said = " ".join(spoken)[-300:] or f"exit status {done.returncode}"
        raise LinkError(f"could not {what}", got=said, todo=by_hand(conf))
    return done.stdout
