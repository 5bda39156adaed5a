"""What keeps a robot host from its head: each look tries one thing and names cause and next step.

A look is a function from a ``Patient`` to findings; the list at the end is their order. One that
cannot be made, because what it builds on does not work, is left out.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import user_system
from comms import probing
from comms.credentials import Credentials
from comms.hub_client import HubClient
from user_system.cluster import census, dial, setup, spools, tunnel_doctor
from user_system.cluster.configs import LinkConfig
from user_system.cluster.edge_home import EdgeFile, EdgeHome
from user_system.cluster.finding import Finding
from user_system.core.clock import span
from user_system.core.errors import ConfigError, SecurityError, StoreError, UserSystemError
from user_system.core.versions import check_version

APART_S = 5.0
"""Difference of clocks that people begin to be misled by; leases and watchdogs do not mind it."""

LEAVES = timedelta(days=10)
"""Life of a certificate below which its renewal is overdue."""


@dataclass
class Patient:
    """A robot host under examination, and what earlier looks found out."""

    home: EdgeHome
    file: EdgeFile
    link: LinkConfig
    reached: bool = True
    """Whether the hub can be spoken to, as far as anybody looked."""

    @property
    def offers(self) -> bool:
        """Whether learners draw from a replay shard of this host, as far as it last ran."""
        try:
            kinds = {p.kind for p in setup.decode(self.home.setup.read_bytes()).processes}
        except (FileNotFoundError, ConfigError):
            return False  # a look of its own says so
        return "offer" in kinds


Look = Callable[[Patient], Iterator[Finding]]


def examine(directory: Path) -> list[Finding]:
    """Look at everything that a robot host depends on.

    Raises:
        ConfigError: nobody joined in this directory.
    """
    home = EdgeHome(directory.resolve())
    file = home.read()
    patient = Patient(home, file, home.link(file))
    return [finding for look in LOOKS for finding in look(patient)]


_REFUSED = "Ask for a new line of `user-system enrol create` at the head, and join with it."
_ELSEWHERE = "See the logs at the head; the error is from there."


def _bad(what: str, error: UserSystemError) -> Finding:
    found = error.what if error.got is None else f"{error.what} ({error.got})"
    refused = isinstance(error, SecurityError)
    return Finding(what, found, False, error.todo or (_REFUSED if refused else _ELSEWHERE))


def _credentials(patient: Patient) -> Iterator[Finding]:
    try:
        mine = Credentials.load(patient.link.pki, patient.link.name)
    except UserSystemError as error:
        patient.reached = False
        yield _bad("certificate", error)
        return
    left = probing.valid_until(mine) - datetime.now(UTC)
    todo = "It renews itself while the head is reached; otherwise join again with a new line."
    ok = left > LEAVES
    yield Finding("certificate", f"valid for {left.days} days", ok, "" if ok else todo)


def _endpoints(patient: Patient) -> Iterator[Finding]:
    """Name, TCP and TLS of what is dialled directly; a tunnel of another kind has its own looks."""
    if patient.link.kind != "direct":
        return
    endpoints = {"hub": patient.link.hub, "replay": patient.link.replay}
    if patient.offers:
        endpoints["reader"] = patient.link.reader
    for name, endpoint in (*endpoints.items(), ("fresh", patient.link.fresh)):
        try:
            host, _ = probing.split_endpoint(endpoint)
            addresses = ", ".join(probing.resolve(host))
            step = probing.connect(endpoint)
            if name in endpoints and patient.reached:
                step = probing.handshake(endpoint, patient.link.pki, patient.link.name)
        except UserSystemError as error:
            patient.reached = patient.reached and name != "hub"
            yield _bad(f"{name} {endpoint}", error)
        else:
            found = f"{addresses}: {step.what}, {1000 * step.seconds:.0f} ms"
            yield Finding(f"{name} {endpoint}", found, True)


def _tunnel(patient: Patient) -> Iterator[Finding]:
    """What the tunnel needs of this host, and whether its other end is there."""
    link = patient.link
    for finding in tunnel_doctor.robot_host(link.pki, link.kind, link.settings):
        patient.reached = patient.reached and finding.ok
        yield finding


def _fresh_lane(patient: Patient) -> Iterator[Finding]:
    if not patient.reached:
        return
    try:
        with dial.tunnel(patient.link) as way:
            step = probing.fresh_lane(way)
    except UserSystemError as error:
        yield _bad("fresh lane", error)
    else:
        yield Finding("fresh lane", f"{step.what}, {1000 * step.seconds:.0f} ms", True)


def _hub(patient: Patient) -> Iterator[Finding]:
    """Whether the hub speaks to us, its clock and its version."""
    if not patient.reached:
        return
    try:
        with dial.tunnel(patient.link) as way:
            clocks = probing.clocks(HubClient(way))
    except UserSystemError as error:
        patient.reached = False
        yield _bad("hub", error)
        return
    yield Finding("hub", f"answers, round trip {2000 * clocks.bound_s:.0f} ms", True)
    ok = abs(clocks.ahead_s) - clocks.bound_s < APART_S
    yield Finding(
        "clocks",
        f"the head's is {clocks.ahead_s:+.2f} s from ours, ± {clocks.bound_s:.2f} s"
        + ("" if ok else f": off by {span(clocks.ahead_s)}"),
        ok,
        "" if ok else "Set both by the network: timedatectl set-ntp true.",
    )
    try:
        check_version(clocks.protocol, clocks.version, user_system.__version__)
    except UserSystemError as error:
        yield _bad("version", error)
    else:
        found = f"head {clocks.version}, here {user_system.__version__}"
        yield Finding("version", f"{found}, protocol {clocks.protocol}", True)


def _large_messages(patient: Patient) -> Iterator[Finding]:
    if not patient.reached:
        return
    for towards in (True, False):
        what = "large messages " + ("to the head" if towards else "from the head")
        try:
            with dial.tunnel(patient.link) as way:  # one of its own: a stuck one blocks the next
                step = probing.large_messages(HubClient(way), towards)
        except UserSystemError as error:
            yield _bad(what, error)
        else:
            yield Finding(what, f"{step.what}, {1000 * step.seconds:.0f} ms", True)


def _setup(patient: Patient) -> Iterator[Finding]:
    try:
        found = setup.decode(patient.home.setup.read_bytes())
    except FileNotFoundError:
        todo = "It comes with the first start: user-system edge run."
        yield Finding("setup", "none yet", False, todo)
    except UserSystemError as error:
        yield _bad("setup", error)
    else:
        names = ", ".join(p.name for p in found.processes)
        yield Finding("setup", f"of run {found.run!r}: {names}", True)


def _spool(patient: Patient) -> Iterator[Finding]:
    place = patient.home.root / "edge" / patient.file.name
    if not place.is_dir():
        yield Finding("spool", "none yet", True)
        return
    try:
        found, _ = spools.look(place)
    except StoreError as error:
        yield _bad("spool", error)
        return
    waiting = sum(source.fragments for source in found.waiting)
    size = sum(source.bytes for source in found.waiting) / 1e6
    ok = not found.stuck
    yield Finding(
        "spool",
        f"{waiting} fragments wait, {size:.1f} MB, {len(found.stuck)} sources are stuck",
        ok,
        "" if ok else f"user-system replay spool {place}",
    )


def _life(patient: Patient) -> Iterator[Finding]:
    record = census.read_record(patient.home.root)
    if record is not None and record.launcher_alive:
        since = time.time() - record.created
        yield Finding("process", f"{record.launcher} runs since {since:.0f} s", True)
        return
    todo = f"user-system edge run {patient.home.root}, or start its unit."
    yield Finding("process", "nothing runs here", False, todo)


LOOKS: tuple[Look, ...] = (
    _credentials,
    _endpoints,
    _tunnel,
    _fresh_lane,
    _hub,
    _large_messages,
    _setup,
    _spool,
    _life,
)
