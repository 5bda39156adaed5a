"""The audit log: whole, ordered, and any tampering is named."""

import json

import pytest

from user_system.core.errors import DamageError, StoreError
from user_system.hub import audit as audit_module
from user_system.hub.audit import Audit, verify


@pytest.fixture
def log(tmp_path):
    audit = Audit(tmp_path / "audit.jsonl", lambda: 7)
    audit.open()
    yield audit
    audit.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def fill(log, n=4):
    for i in range(n):
        log.write("claim", "ann", robot=f"arm-{i}")


def test_records_chain_and_survive_reopening(log, path):
    fill(log)
    head = log.head
    log.close()
    again = Audit(path, lambda: 8)
    again.open()
    again.write("yield", "ann", robot="arm-1")
    again.close()
    count, last = verify(path)
    assert count == 5
    assert last != head
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("how", ["change", "remove", "swap", "insert", "rehash"])
def test_every_kind_of_tampering_is_named(log, path, victim, how):
    fill(log)
    log.close()
    lines = path.read_text().splitlines(keepends=True)
    if how == "change":
        lines[victim] = lines[victim].replace("ann", "eve")
    elif how == "remove":
        del lines[victim]
    elif how == "swap":
        lines[victim], lines[victim + 1] = lines[victim + 1], lines[victim]
    elif how == "insert":
        lines.insert(victim, lines[victim])
    else:
        record = json.loads(lines[victim])
        record["who"] = "eve"
        record["hash"] = audit_module.record_hash(record)
        lines[victim] = json.dumps(record, sort_keys=True) + "\n"
    path.write_text("".join(lines))
    with pytest.raises(DamageError, match=r"line [1-4] of "):
        verify(path)
    with pytest.raises(DamageError):
        Audit(path, lambda: 9).open()


def test_a_line_that_the_power_cut_tore_is_set_aside_and_noted(log, path):
    fill(log, 2)
    log.close()
    with open(path, "ab") as file:
        file.write(b'{"action": "cl')
    again = Audit(path, lambda: 9)
    again.open()
    again.close()
    assert verify(path)[0] == 3
    assert json.loads(path.read_text().splitlines()[-1])["action"] == "audit.torn"
    assert path.with_name("audit.jsonl.torn").read_bytes() == b'{"action": "cl'


def test_a_full_disk_is_an_error_and_leaves_the_chain_whole(log, path, monkeypatch):
    fill(log, 2)
    real = audit_module.os.write
    monkeypatch.setattr(audit_module.os, "write", lambda fd, data: real(fd, data[:9]))
    with pytest.raises(StoreError, match="cannot be written"):
        log.write("claim", "bob")
    monkeypatch.undo()
    log.write("claim", "bob")
    assert verify(path)[0] == 3
