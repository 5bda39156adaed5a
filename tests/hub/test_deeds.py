"""Every deed in the table leaves its record, and nothing is recorded that is not in the table."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

from comms import deeds as noted
from comms.authority import Authority, locked
from comms.credentials import Peer, Role
from comms.pb import fresh_pb2, hub_pb2
from user_system.codec import weights as codec
from user_system.core.clock import WallClock
from user_system.core.deeds import MEANING, OF_THE_PAGE, Deed
from user_system.core.errors import DamageError, SecurityError
from user_system.core.ports import Manifest, TensorEntry
from user_system.hub import audit as audit_module
from user_system.hub.audit import Audit, records, verify
from user_system.hub.enrolments import Enrolments
from user_system.hub.service import Hub, HubConfig
from user_system.hub.weight_store import Current

ROOT = Path(__file__).parents[2]
PAGE, KIM, HOST = Peer("teleop", Role.SERVICE), Peer("kim", Role.ENGINEER), Peer("h", Role.ROBOT)


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path / "hub", HubConfig(run="run", ttl_s=1e6), WallClock())
    hub.open()
    yield hub
    hub.close()


def said(hub):
    hub.tick()
    return [json.loads(line) for line in (hub.audit._path).read_text().splitlines()]


def attach(hub):
    from comms.wire_specs import spec_to_proto
    from robots.sim import SimFranka

    spec = spec_to_proto(SimFranka(SimFranka.config_type(socket=Path("none"))).spec)
    robot = hub_pb2.RobotEntry(name="arm-1", spec=spec, task="t", policy="p")
    hub.attach(HOST, hub_pb2.HostHello(host="h", boot="b", robots=[robot]), lambda event: None)


def claim(hub, who="ann", reason=""):
    request = hub_pb2.ClaimRequest(robot="arm-1", operator=who, force_reason=reason)
    return hub.claim(KIM if reason else PAGE, request)


def ask(hub, event, lease):
    hub.wishes.ask = lambda request, timeout_s: hub_pb2.Answer(ok=True)
    request = hub_pb2.Request(robot="arm-1", event=event, operator="ann", token=lease.token)
    hub.ask(PAGE, request, 0.1)


def leased(hub):
    attach(hub)
    return claim(hub)


def forced(hub):
    leased(hub)
    claim(hub, "eng", "the robot burns")


def yielded(hub):
    lease = leased(hub)
    hub.yield_(PAGE, hub_pb2.LeaseRef(robot="arm-1", operator="ann", token=lease.token))


def by_command(deed):
    def do(hub):
        directory = hub.audit._path.parent.parent / "pki"
        authority = Authority.open(directory)
        with locked(directory):
            noted.note(directory, deed.value, "engineer", why="because")
        Enrolments(authority, hub.audit, WallClock(), {}).tick()

    return do


def by_page(deed):
    return lambda hub: hub.noted(PAGE, deed.value, "ann", {})


def rolled_back(hub):
    array = np.zeros(3, np.float32)
    rows = codec.entries({"policy": {"w": array}})
    entries = tuple(TensorEntry(*row) for row in rows)
    upload, _ = hub.weights.offer(Manifest("p", 0, codec.entries_hash(rows), entries))
    hub.weights.put(upload, rows[0].hash, 0, array.nbytes, array.tobytes())
    version = hub.weights.commit(upload)
    assert hub.roll_back(KIM, "p", version) == version + 1


def torn(hub):
    hub.audit.close()
    with hub.audit._path.open("ab") as file:
        file.write(b'{"act')
    hub.audit.open()


def renewed(hub):
    directory = hub.audit._path.parent.parent / "pki"
    Authority.open(directory, 1000.0).issue("replay", Role.SERVICE)
    Enrolments(Authority.open(directory, 10.0), hub.audit, WallClock(), {}).tick()


def refused_to_join(hub):
    from comms.invitations import Request

    authority = Authority.open(hub.audit._path.parent.parent / "pki")
    request = Request(bytes(16), bytes(32), b"no request", b"k" * 40)
    with pytest.raises(SecurityError):
        Enrolments(authority, hub.audit, WallClock(), {}).join(request, "192.0.2.1")


DO = {
    Deed.ATTACH: attach,
    Deed.CLAIM: leased,
    Deed.FORCE: forced,
    Deed.YIELD: yielded,
    Deed.RELEASE: lambda hub: ask(hub, "release", leased(hub)),
    Deed.ESTOP: lambda hub: hub.heard(PAGE, fresh_pb2.Stop(robot="arm-1", operator="ann")),
    Deed.WEIGHTS: lambda hub: hub._published(Current("p", 1, "h", 0.0)),
    Deed.ROLLBACK: rolled_back,
    Deed.REFUSED: lambda hub: hub.refused(HOST, "/user_system.v1.Hub/Claim"),
    Deed.TORN: torn,
    Deed.RENEW: renewed,
    Deed.REFUSE: refused_to_join,
    **{deed: by_command(deed) for deed in (
        Deed.SETTINGS, Deed.REPLAY_DELETE, Deed.INVITE, Deed.REVOKE, Deed.RESTORE,
    )},
    **{deed: by_page(deed) for deed in OF_THE_PAGE},
}  # fmt: skip
ELSEWHERE = {Deed.JOIN, Deed.JOIN_AGAIN}
"""Done once in ``test_joining``."""


def test_every_deed_has_a_meaning_and_is_done_here():
    assert MEANING.keys() == set(Deed) == DO.keys() | ELSEWHERE


@pytest.mark.parametrize("deed", sorted(DO))
def test_a_deed_leaves_its_record(hub, deed):
    DO[deed](hub)
    assert deed.value in {record["action"] for record in said(hub)}
    verify(hub.audit._path)


def written(path):
    """Yield the texts that stand as an action in calls that write to the log."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            at = {"note": 1, "write": 0, "_refused": 0}.get(name.rpartition(".")[2])
            logs = name.endswith(("audit.write", "deeds.note", "self._refused"))
            if logs and at is not None and len(node.args) > at:
                argument = node.args[at]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value


def test_what_the_code_writes_is_in_the_table():
    sources = [*(ROOT / "user_system").rglob("*.py"), *(ROOT / "comms").glob("*.py")]
    found = {action for path in sources for action in written(path)}
    assert {"join", "invite", "renew"} <= found, "the search finds what is there"
    assert found <= {deed.value for deed in Deed}


def test_the_page_notes_what_is_its_own_and_nothing_else(hub):
    for deed in set(Deed) - OF_THE_PAGE:
        with pytest.raises(SecurityError):
            hub.noted(PAGE, deed.value, "ann", {})
    assert said(hub) == []


def test_a_flood_of_refusals_or_stops_is_a_few_records(hub):
    for _ in range(10_000):
        hub.refused(HOST, "/user_system.v1.Hub/Claim")
        hub.heard(PAGE, fresh_pb2.Stop(robot="arm-1", operator="ann"))
    assert len(said(hub)) <= 14


# --- tampering ------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, lambda: 7)
    audit.open()
    for who in ("ann", "bob", "é"):
        audit.write(Deed.CLAIM, who, robot="arm-1", token=3)
    audit.close()
    return path


def test_no_byte_can_be_changed_removed_or_doubled(log):
    good = log.read_bytes()
    ends = {at + 1 for at, byte in enumerate(good) if byte == 10}
    for at in range(len(good)):
        for other in (good[at] ^ 1, good[at] ^ 0x20, 0x0A):
            if other != good[at]:
                spoil(log, good[:at] + bytes([other]) + good[at + 1 :])
        spoil(log, good[:at] + good[at + 1 :])
        spoil(log, good[:at] + good[at : at + 1] + good[at:])
        if at not in ends | {0}:
            spoil(log, good[:at])
    log.write_bytes(good)
    assert verify(log)[0] == 3


def spoil(path, data):
    path.write_bytes(data)
    with pytest.raises(DamageError):
        verify(path)


def test_a_cut_at_the_end_of_a_line_shows_by_the_head(log, tmp_path):
    """A chain alone cannot show it; whoever has written the head down can."""
    from user_system.cluster import auditing

    run = tmp_path / "run"
    (run / "hub").mkdir(parents=True)
    whole = log.read_bytes()
    place = run / "hub" / "audit.jsonl"
    place.write_bytes(whole)
    heads = [record["hash"] for record in records(place)]
    assert all(auditing.check(run, head).count == 3 for head in heads)
    place.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    assert auditing.check(run, heads[1]).head == heads[1]
    with pytest.raises(DamageError, match="cut off"):
        auditing.check(run, heads[2])


def test_the_same_meaning_in_other_bytes_is_not_the_same(log):
    lines = log.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"\\u00e9", "é".encode())
    assert json.loads(lines[2])["who"] == "é"
    spoil(log, b"".join(lines))


def test_two_cannot_write(log):
    first, second = Audit(log, lambda: 8), Audit(log, lambda: 9)
    first.open()
    with pytest.raises(Exception, match="another process"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_a_line_without_end_is_not_read_into_memory(log, monkeypatch):
    monkeypatch.setattr(audit_module, "MAX_LINE", 1000)
    with log.open("ab") as file:
        file.write(b"x" * 100_000)
    with pytest.raises(DamageError):
        verify(log)
