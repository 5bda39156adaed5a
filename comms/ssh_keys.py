"""Keys of the ssh tunnel, and what both ends write about each other.

The robot host makes its key and keeps it; its public half goes to the head with the request to
join. The head answers with its host key, which is the only one this host will ever believe. At the
head a key opens the ways to the services and nothing else: no shell, no command, no other port, no
socket, nothing that leads back to a robot.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from pathlib import Path

from comms.credentials import check_name, write
from comms.ssh_client import ALIAS, KEY, KNOWN_HOSTS
from user_system.core.errors import SecurityError

AUTHORIZED, SSHD_CONFIG, HOST_KEY = "authorized_keys", "sshd_config", "sshd.key"
"""Files in the head's ``pki``."""

_TYPE = b"ssh-ed25519"
_HEAD_TYPES = frozenset(
    {"ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"}
)
_MARK = "user-system:"
_LINE = re.compile(rf"{_MARK}(\S+)$")


def make_key(path: Path) -> str:
    """Return the public half of the ed25519 key at ``path``, which is made where there is none.

    Raises:
        SecurityError: what is there is no such key, or others can read it.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from comms.credentials import read_secret

    if not path.exists():
        made = Ed25519PrivateKey.generate()
        text = made.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(path, text, secret=True)
    try:
        key = serialization.load_ssh_private_key(read_secret(path), None)
    except ValueError as error:
        raise SecurityError(f"{path} is no ssh key", got=error, todo="Delete it.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SecurityError(f"{path} is a key of another kind", got=type(key).__name__)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return public.decode()


def checked_key(text: object) -> str:
    """Return a robot host's public key, written anew, so that nothing else is in the line.

    Raises:
        SecurityError: it is no ed25519 key as OpenSSH writes it.
    """
    parts = text.split() if isinstance(text, str) and len(text) < 1024 else []
    head = len(_TYPE).to_bytes(4, "big") + _TYPE + (32).to_bytes(4, "big")
    if len(parts) >= 2 and parts[0].encode() == _TYPE:
        blob = _decoded(parts[1])
        if blob.startswith(head) and len(blob) == len(head) + 32:
            return f"{parts[0]} {base64.b64encode(blob).decode()}"
    raise SecurityError(
        "not the public ssh key of a robot host",
        got=repr(text)[:100],
        allowed="'ssh-ed25519 AAAA…', as `user-system edge join` makes it",
    )


def checked_host_key(text: object) -> str:
    """Return the head's public host key, type and body, written anew.

    Raises:
        SecurityError: it is none.
    """
    parts = text.split() if isinstance(text, str) and len(text) < 8192 else []
    if len(parts) >= 2 and parts[0] in _HEAD_TYPES:
        blob, name = _decoded(parts[1]), parts[0].encode()
        if len(blob) > 40 and blob[: 4 + len(name)] == len(name).to_bytes(4, "big") + name:
            return f"{parts[0]} {base64.b64encode(blob).decode()}"
    raise SecurityError(
        "host_key is no public host key",
        got=repr(text)[:100],
        allowed="a line such as 'ssh-ed25519 AAAA…'",
        todo="It is /etc/ssh/ssh_host_ed25519_key.pub at the head.",
    )


def pin(pki: Path, host_key: str) -> None:
    """Write the one host key that this robot host believes."""
    write(pki / KNOWN_HOSTS, f"{ALIAS} {checked_host_key(host_key)}\n".encode())


def public_key(pki: Path) -> str:
    """Return the public key of this robot host, made at the first call."""
    return make_key(pki / KEY)


# --- the head's side ---------------------------------------------------------------------------


def authorized_line(name: str, key: str, endpoints: Sequence[str]) -> str:
    """Return the line of ``authorized_keys`` that lets one robot host through to ``endpoints``."""
    check_name(name)
    options = ["restrict", "port-forwarding", 'command="/bin/false"']
    options += [f'permitopen="{endpoint}"' for endpoint in endpoints]
    # There is no way to say "none"; port 1 is one that only root could listen on.
    options.append('permitlisten="127.0.0.1:1"')
    return f"{','.join(options)} {checked_key(key)} {_MARK}{name}"


def authorize(path: Path, name: str, key: str, endpoints: Sequence[str]) -> None:
    """Put the line of a robot host into ``authorized_keys``, in place of an earlier one of its.

    The caller serialises. Raises:
        SecurityError: another name has this key.
    """
    line, kept = authorized_line(name, key, endpoints), _others(path, name)
    body = checked_key(key).split()[1]
    for other in kept:
        if body in other.split():
            holder = _LINE.search(other)
            raise SecurityError(
                "this ssh key is another host's",
                got=holder[1] if holder else "a line that is not ours",
                todo="Delete ssh.key there, so that it makes one of its own, and join again.",
            )
    write(path, "".join(f"{text}\n" for text in [*kept, line]).encode(), secret=True)


def reauthorize(path: Path, endpoints: Sequence[str]) -> None:
    """Write our lines of ``authorized_keys`` anew, for the endpoints of this start."""
    lines = path.read_text().splitlines() if path.exists() else []
    for number, text in enumerate(lines):
        if found := _LINE.search(text):
            # The key is the word after the options, which hold no space.
            lines[number] = authorized_line(found[1], text.split(" ", 1)[1], endpoints)
    write(path, "".join(f"{text}\n" for text in lines).encode(), secret=True)


def deauthorize(path: Path, name: str) -> None:
    """Take the line of a robot host away; connections in use stay until they are cut."""
    if path.exists():
        write(path, "".join(f"{text}\n" for text in _others(path, name)).encode(), secret=True)


def sshd_config(pki: Path, user: str, endpoints: Sequence[str], *, listen: str, port: int) -> str:
    """Return the configuration of an sshd that does nothing but let robot hosts through.

    It runs as any user (``/usr/sbin/sshd -D -e -f FILE``) and serves that user only. The part
    from ``AllowTcpForwarding`` on also fits into a ``Match User`` block of a machine's own sshd:
    a second wall behind what ``authorized_keys`` says.
    """
    return f"""\
# Made by user-system: a way to the services of this head, for enrolled robot hosts, and no shell.
ListenAddress {listen}
Port {port}
HostKey "{pki / HOST_KEY}"
PidFile none
UsePAM no
UseDNS no
LoginGraceTime 20
MaxStartups 100:30:400
MaxAuthTries 3
LogLevel VERBOSE
AllowUsers {user}
PermitRootLogin {"prohibit-password" if user == "root" else "no"}
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthenticationMethods publickey
# The folder is its owner's alone; what lies above it is judged for keys of the authority too.
StrictModes no
AuthorizedKeysFile "{pki / AUTHORIZED}"
{rights(endpoints)}"""


def rights(endpoints: Sequence[str]) -> str:
    """Return the lines that take every right from a connection but the ways to ``endpoints``."""
    return f"""\
AllowTcpForwarding local
AllowStreamLocalForwarding no
PermitOpen {" ".join(endpoints)}
PermitListen none
AllowAgentForwarding no
X11Forwarding no
PermitTunnel no
PermitTTY no
PermitUserRC no
GatewayPorts no
MaxSessions 0
ClientAliveInterval 5
ClientAliveCountMax 3
"""


def _others(path: Path, name: str) -> list[str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [text for text in lines if not ((found := _LINE.search(text)) and found[1] == name)]


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return b""
