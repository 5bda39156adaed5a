"""What this machine has for tunnels, each finding with the line that mends it."""

import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from comms import admission, wireguard_link
from comms.ssh_client import KEY, KNOWN_HOSTS
from comms.ssh_keys import AUTHORIZED, HOST_KEY, make_key
from user_system.cluster import sshd_host
from user_system.cluster.finding import Finding
from user_system.core.errors import MissingError

_REACH_S = 3.0


def programs() -> Iterator[Finding]:
    """Look for what the kinds of tunnels need; a lack is no fault unless the kind is wanted."""
    yield _program("ssh", "tunnel.kind: ssh", "openssh-client", ("ssh", "-V"))
    missing = wireguard_link.lacking()
    found = "kernel" if Path("/sys/module/wireguard").exists() else "wireguard-go"
    yield Finding(
        "wireguard", f"no; only for tunnel.kind: wireguard ({missing})" if missing else found, True
    )


def robot_host(pki: Path, kind: str, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Look at what a robot host's tunnel of a kind needs.

    Args:
        pki: its keys.
        kind: of its tunnel.
        settings: of the tunnel, as in its link.
    """
    if kind == "ssh":
        yield _installed("ssh", "openssh-client")
        yield _installed("setpriv", "util-linux")
        yield from (_key(pki / name) for name in (KEY, KNOWN_HOSTS))
        yield _reached(str(settings.get("host", "")), int(settings.get("port", 22)))
    if kind == "wireguard":
        yield from _interface(pki / f"{settings.get('interface', '')}.conf")


def head(pki: Path) -> Iterator[Finding]:
    """Look at what the head of a run that is up needs, so that robot hosts get in.

    Args:
        pki: the run's.
    """
    offer = admission.offered(pki)
    settings = offer["settings"]
    if offer["kind"] == "ssh":
        port = int(settings["port"])
        yield (there := _reached("127.0.0.1", port))
        if there.ok:
            yield _host_key(port, settings["host_key"])
        if not _own(pki, settings["host_key"]):
            yield _reads(pki / AUTHORIZED, settings["user"])
    if offer["kind"] == "wireguard":
        yield from _interface(pki / f"{settings['interface']}.conf", heard=False)


def _own(pki: Path, host_key: str) -> bool:
    """Whether the head's sshd is the run's own, which reads what it was started with."""
    return (pki / HOST_KEY).exists() and make_key(pki / HOST_KEY) == host_key


def _host_key(port: int, wanted: str) -> Finding:
    """Compare the host key that is shown with the one that robot hosts pin."""
    what, kind = "tunnel: host key", wanted.split()[0].removeprefix("ssh-").partition("-")[0]
    try:
        words = ["ssh-keyscan", "-T", f"{_REACH_S:.0f}", "-p", str(port), "-t", kind, "127.0.0.1"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=4 * _REACH_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(what, f"cannot be asked for ({error})", False, _install("openssh-client"))
    keys = [line.split(maxsplit=1)[1].strip() for line in done.stdout.splitlines()]
    if keys == [wanted]:
        return Finding(what, "the one that robot hosts pin", True)
    found = "another one than robot hosts pin" if keys else f"none of type {kind}"
    todo = "Give tunnel.ssh.host_key what this sshd shows, or `own`; robot hosts join again then."
    return Finding(what, found, False, todo)


def _reads(keys: Path, user: str) -> Finding:
    """Look whether the machine's own sshd asks ``keys`` who may come in; only root may know."""
    what, todo = "tunnel: sshd reads", "Give it the block in docs/network.md, and reload it."
    words = ["sshd", "-T", "-C", f"user={user},host=robot,addr=192.0.2.1"]
    try:
        words[0] = sshd_host.program()
        done = subprocess.run(words, capture_output=True, text=True, timeout=4 * _REACH_S)
    except (MissingError, OSError, subprocess.TimeoutExpired) as error:
        return Finding(what, f"nobody knows ({error})", False, todo)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding(what, f"only root may ask it ({said}); needed: {keys}", True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("authorizedkeys")]
    ok = any(str(keys) in line or str(keys.resolve()) in line for line in lines)
    return Finding(what, str(keys) if ok else "; ".join(lines), ok, "" if ok else todo)


def _program(name: str, purpose: str, package: str, version: tuple[str, ...]) -> Finding:
    if shutil.which(name) is None:
        return Finding(name, f"no; only for {purpose} (apt-get install {package})", True)
    done = subprocess.run(version, capture_output=True, text=True, timeout=10.0)
    return Finding(name, (done.stderr or done.stdout).strip().split(",")[0], True)


def _installed(name: str, package: str) -> Finding:
    there = shutil.which(name)
    return Finding(name, there or "missing", bool(there), "" if there else _install(package))


def _key(path: Path) -> Finding:
    what = f"tunnel: {path.name}"
    if not path.exists():
        return Finding(what, "missing", False, "Join again: user-system edge join LINE.")
    mode = path.stat().st_mode & 0o777
    if path.name == KEY and mode & 0o077:
        return Finding(what, f"others can read it ({mode:o})", False, f"chmod 600 {path}")
    return Finding(what, "there", True)


def _reached(host: str, port: int) -> Finding:
    what = f"tunnel: {host}:{port}"
    try:
        with socket.create_connection((host, port), _REACH_S) as dialled:
            dialled.settimeout(_REACH_S)
            banner = dialled.recv(64)
    except socket.gaierror as error:
        todo = "Check DNS here, and tunnel.ssh.host of the manifest."
        return Finding(what, f"the name does not resolve ({error.strerror})", False, todo)
    except ConnectionRefusedError:
        return Finding(what, "nothing listens there", False, "Start sshd at the head.")
    except OSError as error:
        todo = f"Open outbound TCP {port} in the firewall between here and there."
        return Finding(what, f"no answer ({error})", False, todo)
    if not banner.startswith(b"SSH-2.0-"):
        todo = "Is tunnel.ssh.port sshd's, and is nothing in between that speaks for it?"
        return Finding(what, f"not ssh: {banner[:20]!r}", False, todo)
    return Finding(what, banner.decode(errors="replace").strip(), True)


def _interface(conf: Path, *, heard: bool = True) -> Iterator[Finding]:
    """Look at an interface; ``heard``: also whether its other end ever answered."""
    interface, missing = conf.stem, wireguard_link.lacking()
    yield Finding("tunnel: programs", (missing and "missing") or "there", not missing, missing)
    if not conf.exists():
        todo = "Join again: user-system edge join LINE."
        yield Finding(f"tunnel: {conf.name}", "missing", False, todo)
        return
    up = wireguard_link.is_up(interface)
    yield Finding(
        f"tunnel: {interface}",
        "up" if up else "down",
        up or wireguard_link.may_configure(),
        "" if up else wireguard_link.by_hand(conf),
    )
    if up and heard and (age_s := wireguard_link.handshake_age_s(interface)) is not None:
        ok = age_s < wireguard_link.STALE_S
        found = "never" if age_s == float("inf") else f"{age_s:.0f} s ago"
        todo = "Open outbound UDP to the head's tunnel.wireguard.port, and that port at the head."
        yield Finding("tunnel: last handshake", found, ok, "" if ok else todo)


def _install(package: str) -> str:
    return f"apt-get install {package}"
