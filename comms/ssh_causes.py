"""What the OpenSSH client says on its last lines, as errors for the person who must act.

The client has one exit status (255) for everything and no other way to say what went wrong than
its stderr. The patterns are of its source, unchanged over the last ten years.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from user_system.core.errors import LinkError, SecurityError, UserSystemError

_JOIN = "enrol it again: `user-system enrol create NAME` at the head, `user-system edge join` here"


@dataclass(frozen=True)
class Cause:
    """One reason why there is no way to the head."""

    name: str
    pattern: str
    """Of a line of stderr."""
    what: str
    todo: str
    lasting: bool = False
    """Whether it stays until a person does something: then it is tried rarely."""
    refusal: bool = False
    """Whether it is about who is who."""

    def error(self, line: str) -> UserSystemError:
        """Return it as an error; ``line`` is what the client said."""
        kind = SecurityError if self.refusal else LinkError
        return kind(f"ssh: {self.what}", got=f"{line.strip()[:300]!r}", todo=self.todo)


CAUSES: tuple[Cause, ...] = (
    Cause(
        "host key",
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED"
        r"|No \S+ host key is known for",
        "the head's host key is not the one that was pinned when this host joined",
        "If the head was set up anew, compare its new key with `ssh-keygen -lf` there and "
        f"{_JOIN}. If it was not, somebody is between this host and the head: change nothing.",
        lasting=True,
        refusal=True,
    ),
    Cause(
        "forwarding prohibited",
        r"open failed: administratively prohibited",
        "the head does not let this host through to its services",
        "In the head's sshd: AllowTcpForwarding local, and the endpoints in PermitOpen; in its "
        "authorized_keys the same in permitopen. See docs/network.md.",
        lasting=True,
        refusal=True,
    ),
    Cause(
        "service not there",
        r"open failed: connect failed",
        "the head's sshd is there, the service behind it is not",
        "Is the run up? `user-system status` at the head.",
    ),
    Cause(
        "own key",
        r"UNPROTECTED PRIVATE KEY FILE|Load key .*: |Identity file .* not accessible",
        "this host's own key cannot be used",
        f"It must exist and be readable by its owner only (chmod 600). Otherwise {_JOIN}.",
        lasting=True,
        refusal=True,
    ),
    Cause(
        "permission denied",
        r"Permission denied \(|Too many authentication failures",
        "the head does not know this host's key, or no longer does",
        "Is the name still enrolled (`user-system enrol list` at the head), and does its sshd "
        f"read <run>/pki/authorized_keys (docs/network.md; its log says why not)? Else {_JOIN}.",
        lasting=True,
        refusal=True,
    ),
    Cause(
        "name",
        r"Could not resolve hostname",
        "the head's name does not resolve here",
        "Check `getent hosts NAME`, DNS, and tunnel.ssh.host of the manifest.",
    ),
    Cause(
        "refused",
        r"connect to host .*: Connection refused",
        "nothing listens for ssh at the head's address and port",
        "Does sshd run there (`ss -ltn` at the head)? Is tunnel.ssh.port right?",
    ),
    Cause(
        "timed out",
        r"timed out|Timeout, server .* not responding|connect to host .*: Operation timed out",
        "the head does not answer",
        "Does a firewall between here and there drop the port? Outbound TCP to tunnel.ssh.port "
        "must be open. If small things pass and large ones hang, see MTU in docs/network.md.",
    ),
    Cause(
        "unreachable",
        r"Network is unreachable|No route to host",
        "there is no route to the head",
        "Check this host's network: `ip route get ADDRESS`.",
    ),
    Cause(
        "no common algorithm",
        r"Unable to negotiate with",
        "the head's sshd and this client have no algorithm in common",
        "Update the older of the two (`ssh -V`); the keys are ed25519.",
        lasting=True,
    ),
    Cause(
        "local socket",
        r"unix_listener|cannot bind to path|Could not request local forwarding",
        "the local end of the way cannot be made",
        "Is the folder for temporary files writable, and its path short? Set TMPDIR.",
        lasting=True,
    ),
    Cause(
        "no user",
        r"No user exists for uid|you don't exist, go away",
        "this process runs as a user that the system does not know, which ssh refuses",
        "Give that uid a line in /etc/passwd, or run as a user that has one.",
        lasting=True,
    ),
    Cause(
        "hung up",
        r"Connection (?:closed|reset) by|kex_exchange_identification|banner exchange"
        r"|Connection to .* closed|client_loop: send disconnect",
        "the connection was ended from the other side",
        "If it stays so: is it sshd that listens there, does it accept this user, and are there "
        "more hosts than its MaxStartups lets in at once? Its log says why.",
    ),
)

UNKNOWN = Cause("unknown", "", "ended", "Its log at LogLevel DEBUG says more: see docs/network.md.")

TIMED_OUT = next(cause for cause in CAUSES if cause.name == "timed out")

_COMPILED = tuple((cause, re.compile(cause.pattern)) for cause in CAUSES)


def cause_of(line: str) -> Cause | None:
    """Return what one line of stderr means; None: nothing that is known to matter."""
    return next((cause for cause, pattern in _COMPILED if pattern.search(line)), None)


def why(lines: Sequence[str]) -> tuple[Cause, str]:
    """Return why a client ended, and the line that says it: the gravest that was said."""
    found = [(cause, line) for line in lines if (cause := cause_of(line))]
    if found:
        return min(found, key=lambda pair: CAUSES.index(pair[0]))
    spoken = [line for line in lines if line.strip()]
    return UNKNOWN, spoken[-1] if spoken else ""
