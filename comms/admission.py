"""How a newcomer's tunnel comes about: what it sends along, what the head does, what it is told.

In the order of time::

    publish(pki, kind, settings, endpoints)   head, at its start: what is offered
    prepare(pki) -> keys                      robot host, before it asks to join: public keys
    admit(pki, name, keys) -> way             head, as it joins: lets it in; plain values, public
    settle(pki, way) -> settings              robot host, after: pins the head, writes its files
    dismiss(pki, name)                        head: revoked

A robot host makes keys for every kind, since it learns which one is used only from the answer, over
the connection that its join line has pinned.
"""

import fcntl
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comms import ssh_keys, wireguard, wireguard_link
from comms.credentials import check_name, write
from comms.tunnel import KINDS
from comms.tunnel_ssh import destination
from user_system.core.errors import ConfigError, SecurityError

log = logging.getLogger(__name__)

OFFER = "tunnel.json"
"""In the head's ``pki``: kind, settings and endpoints of its tunnel."""


def publish(pki: Path, kind: str, settings: Mapping[str, Any], endpoints: Sequence[str]) -> None:
    """Write down how robot hosts reach this head, and make its keys where there are none.

    Args:
        pki: the head's.
        kind: of the tunnel.
        settings: ssh: ``user``, ``host``, ``port``, ``host_key``; wireguard: ``host`` (outside),
            ``port``, ``network``, ``interface``; direct: none.
        endpoints: ``host:port`` of each service, as seen from the head: no others are let through.

    Raises:
        ConfigError: unknown kind, or settings that are none.
        SecurityError: a key that is none.
    """
    if kind not in KINDS:
        raise ConfigError("unknown kind of tunnel", got=repr(kind), allowed=", ".join(KINDS))
    offer = {"kind": kind, "settings": dict(settings), "endpoints": list(endpoints)}
    with _locked(pki):
        if kind == "ssh":
            to = destination(settings)
            ssh_keys.checked_host_key(settings.get("host_key"))
            ssh_keys.reauthorize(pki / ssh_keys.AUTHORIZED, endpoints)
            own = ssh_keys.sshd_config(
                pki.resolve(), to.user, endpoints, listen="0.0.0.0", port=to.port
            )
            write(pki / ssh_keys.SSHD_CONFIG, own.encode())
        if kind == "wireguard":
            wireguard.make_key(pki / wireguard.KEY)
            # Peers of an earlier start stay, and the file is there to be brought up.
            wireguard.write_peers(pki, _network(settings), wireguard.read_peers(pki))
        write(pki / OFFER, json.dumps(offer, indent=1, sort_keys=True).encode())


def offered(pki: Path) -> dict[str, Any]:
    """Return what ``publish`` wrote: ``kind``, ``settings``, ``endpoints``.

    Raises:
        SecurityError: it is damaged.
    """
    try:
        offer = json.loads((pki / OFFER).read_text())
        return {"kind": offer["kind"], **{k: offer[k] for k in ("settings", "endpoints")}}
    except FileNotFoundError:
        return {"kind": "direct", "settings": {}, "endpoints": []}
    except (ValueError, TypeError, KeyError) as error:
        raise SecurityError(f"{pki / OFFER} is damaged", got=error, todo="Start again.") from error


def prepare(pki: Path) -> dict[str, str]:
    """Return this robot host's public keys, kind -> key, made at the first call.

    Raises:
        SecurityError: a key that is there is none, or others can read it.
    """
    return {
        "ssh": ssh_keys.public_key(pki),
        "wireguard": wireguard.make_key(pki / wireguard.KEY),
    }


def admit(pki: Path, name: str, keys: Mapping[str, str]) -> dict[str, Any]:
    """Let a robot host through; return what it must know, plain values: ``kind`` and settings.

    Again for the same name: its new key takes the place of the old one.

    Args:
        pki: the head's.
        name: of the robot host.
        keys: as ``prepare`` made them there.

    Raises:
        SecurityError: not a name, no key of the kind, or another host's.
    """
    check_name(name)
    offer = offered(pki)
    kind, settings = offer["kind"], offer["settings"]
    if kind != "direct" and kind not in keys:
        raise SecurityError(
            f"{name!r} brings no key for a tunnel of kind {kind}",
            got=", ".join(sorted(keys)) or "none",
            todo="Update user-system there.",
        )
    with _locked(pki):
        if kind == "ssh":
            path = pki / ssh_keys.AUTHORIZED
            ssh_keys.authorize(path, name, keys["ssh"], offer["endpoints"])
            told = {key: settings[key] for key in ("user", "host", "host_key")}
            return {"kind": kind, **told, "port": settings.get("port", 22)}
        if kind == "wireguard":
            return {"kind": kind, **asdict(_admit_peer(pki, settings, name, keys["wireguard"]))}
    return {"kind": kind}


def settle(pki: Path, way: Mapping[str, Any]) -> dict[str, Any]:
    """Write what the tunnel needs on a robot host; return the settings for ``open_tunnel``.

    Raises:
        ConfigError: unknown kind, or values that are none.
        SecurityError: a key that is none.
    """
    kind, rest = way.get("kind"), {key: value for key, value in way.items() if key != "kind"}
    if kind == "ssh":
        destination(rest)
        ssh_keys.public_key(pki)
        ssh_keys.pin(pki, rest.pop("host_key", ""))
        return rest
    if kind == "wireguard":
        try:
            told = wireguard.Way(**rest)
        except TypeError as error:
            raise ConfigError("not a way by WireGuard", got=error) from error
        text = wireguard.edge_file(told, wireguard.secret_key(pki / wireguard.KEY))
        write(pki / f"{told.interface}.conf", text.encode(), secret=True)
        return {"interface": told.interface}
    if kind == "direct":
        return {}
    raise ConfigError("unknown kind of tunnel", got=repr(kind), allowed=", ".join(KINDS))


def dismiss(pki: Path, name: str) -> None:
    """Let a robot host through no longer; one that was never let in is no error.

    What it has open inside of ssh ends with its certificate, not here; sshd knows nothing of it.
    """
    check_name(name)
    with _locked(pki):
        ssh_keys.deauthorize(pki / ssh_keys.AUTHORIZED, name)
        peers = wireguard.read_peers(pki)
        gone = peers.pop(name, None)
        if gone is not None:
            here = _network(offered(pki)["settings"])
            wireguard.write_peers(pki, here, peers)
            conf = pki / f"{here.interface}.conf"
            _tell(wireguard_link.drop_peer(conf, gone.key), f"take {name} off the tunnel")


def _admit_peer(pki: Path, settings: Mapping[str, Any], name: str, key: str) -> wireguard.Way:
    here, before = _network(settings), wireguard.read_peers(pki)
    peers = wireguard.with_peer(before, here, name, key)
    wireguard.write_peers(pki, here, peers)
    conf, peer = pki / f"{here.interface}.conf", peers[name]
    if name in before and before[name].key != peer.key:
        _tell(wireguard_link.drop_peer(conf, before[name].key), f"replace the key of {name}")
    _tell(wireguard_link.set_peer(conf, peer.key, peer.address), f"let {name} into the tunnel")
    return wireguard.Way(
        interface=here.interface,
        address=peer.address,
        head=str(here.head),
        head_key=wireguard.make_key(pki / wireguard.KEY),
        endpoint=f"{settings['host']}:{here.port}",
    )


def _tell(todo: str, what: str) -> None:
    if todo:
        log.warning("to %s this process lacks the right. %s", what, todo)


def _network(settings: Mapping[str, Any]) -> wireguard.Network:
    if "host" not in settings:
        raise ConfigError("a setting of the wireguard tunnel is missing", allowed="host")
    try:
        return wireguard.Network(**{k: v for k, v in settings.items() if k != "host"})
    except TypeError as error:
        raise ConfigError("no setting of a wireguard tunnel", got=error) from error


@contextmanager
def _locked(pki: Path) -> Iterator[None]:
    """Hold the folder against a second process that lets somebody in at the same time."""
    pki.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (pki / ".tunnel.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
