"""A whole run, watched from outside: no code out of bytes, no open port, no secret in the open."""

import ipaddress
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.system.test_demo import SHORT, Up
from user_system.cluster import census, runs
from user_system.hub.audit import verify

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]

DEMO = Path(__file__).parents[2] / "deploy" / "demo.yaml"
WATCH = Path(__file__).parent / "watch"
LISTENERS = {
    "hub": {"hub", "fresh"},
    "replay": {"replay"},
    "teleop": {"page"},
}
"""Process -> what it listens on, with TLS, CURVE or a login; every other one on nothing."""
BELONG_TO_RAY = ("ray", "resources-", "learner-")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, Path]]:
    """A run that learns already, and the notes about its processes."""
    folder = tmp_path_factory.mktemp("watched")
    notes = folder / "notes"
    notes.mkdir()
    patch = pytest.MonkeyPatch()
    patch.setenv("WATCH", str(notes))
    patch.setenv("PYTHONPATH", os.pathsep.join([str(WATCH), *filter(None, sys.path)]))
    demo = Up(folder, str(DEMO), settings=SHORT)
    patch.undo()
    try:
        demo.wait(lambda view: view.phase == "train" and view.version > 0, "weights")
        yield demo, notes
    finally:
        if demo.process.poll() is None:
            demo.process.kill()
            demo.process.wait()
        if (record := census.read_record(demo.run)) is not None:
            runs.down(runs.Found(demo.run, record))


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def names(demo: Up) -> dict[int, str]:
    """Return pid -> name of every process of the run, children with their parents' names."""
    record = census.read_record(demo.run)
    assert record is not None
    found = {pid: name for name, pid in record.processes.items()}
    for process in demo.left():
        try:
            line = process.cmdline()
            kinds = [Path(word).stem for word in line if word.endswith(".json")]
            if process.pid not in found and "user_system.cluster" in " ".join(line) and kinds:
                found[process.pid] = kinds[0]
        except psutil.NoSuchProcess:
            continue
    return found


# --- code out of bytes ----------------------------------------------------------------------------


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(pickle.dumps(Path("x")))
    (tmp_path / "comms").mkdir()
    (tmp_path / "comms" / "bad.py").write_text("eval('1 + 1')\n")
    bytes_ = f"pathlib.Path({str(tmp_path / 'bytes')!r}).read_bytes()"
    code = f"import pathlib, pickle; pickle.loads({bytes_})"
    environment = {**os.environ, "WATCH": str(tmp_path), "PYTHONPATH": str(WATCH)}
    for command in (["-c", code], [str(tmp_path / "comms" / "bad.py")]):
        subprocess.run([sys.executable, *command], env=environment, check=True)
    notes = [json.loads(line) for f in tmp_path.glob("*.jsonl") for line in lines(f)]
    assert {note["event"] for note in notes} >= {"pickle.find_class", "exec"}
    assert len(list(tmp_path.glob("*.watched"))) == 2


def test_no_process_of_ours_makes_code_out_of_bytes(watched: tuple[Up, Path]) -> None:
    demo, notes = watched
    known = names(demo)
    seen = {int(path.stem) for path in notes.glob("*.watched")}
    kinds = {name.partition("-")[0] for name in known.values()}
    assert {"hub", "replay", "teleop", "driver", "world", "learner"} <= kinds, known
    ours = {pid for pid, name in known.items() if not name.startswith(("ray", "resources-"))}
    assert ours <= seen, "some were not watched"
    found = []
    for path in notes.glob("*.jsonl"):
        name = known.get(int(path.stem), "?")
        for line in lines(path):
            note = json.loads(line)
            # Ray speaks pickle with its own processes, on loopback; nobody else does.
            rays = note["ray"] and (name.startswith(BELONG_TO_RAY) or name == "?")
            if not rays:
                found.append((name, note))
    assert not found, found[:5]


# --- listeners ------------------------------------------------------------------------------------


def test_every_listener_is_known_and_on_loopback(watched: tuple[Up, Path]) -> None:
    demo, _ = watched
    known = names(demo)
    links = json.loads((demo.run / "config" / "hub.json").read_text())["link"]
    ports = {name: int(links[name].rpartition(":")[2]) for name in ("hub", "fresh", "replay")}
    record = census.read_record(demo.run)
    assert record is not None
    ports["page"] = int(record.page.rpartition(":")[2])
    looked_at = 0
    for process in demo.left():
        try:
            sockets = process.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        mine = set()
        for socket in sockets:
            address = ipaddress.ip_address(socket.laddr.ip)
            address = getattr(address, "ipv4_mapped", None) or address
            listens = socket.status == psutil.CONN_LISTEN or (
                socket.type.name == "SOCK_DGRAM" and not socket.raddr
            )
            if listens:
                looked_at += 1
                assert address.is_loopback, (process.cmdline(), socket)
                mine.add(socket.laddr.port)
        name = known.get(process.pid, "")
        if name and not name.startswith(BELONG_TO_RAY):
            allowed = {ports[listener] for listener in LISTENERS.get(name, set())}
            assert mine == allowed, f"{name} listens on {mine}, and its list says {allowed}"
    assert looked_at >= 4


# --- secrets --------------------------------------------------------------------------------------


def secrets(run: Path) -> set[bytes]:
    """Return what nobody but its owner may see: tokens of people, keys of processes."""
    found = {line for key in run.rglob("*.key") for line in _body(key)}
    found |= {line for bundle in run.rglob("*.pem") for line in _body(bundle)}
    found |= {path.read_bytes().split()[1] for path in run.rglob("*.curve")}
    for path in run.rglob("accounts.json"):
        found |= {entry["secret"].encode() for entry in json.loads(path.read_text()).values()}
    return found


def _body(path: Path) -> list[bytes]:
    text = path.read_bytes()
    key = text[text.index(b"PRIVATE KEY-----") :].splitlines()[1:-1]
    return [line for line in key if len(line) > 20]


def test_no_secret_is_in_any_command_line_environment_or_log(watched: tuple[Up, Path]) -> None:
    demo, _ = watched
    wanted = secrets(demo.run)
    assert len(wanted) > 15
    for process in demo.left():
        for part in ("cmdline", "environ"):
            try:
                text = Path(f"/proc/{process.pid}/{part}").read_bytes()
            except OSError:
                continue
            assert not [s for s in wanted if s in text], (process.pid, part)
    logs = [*(demo.run / "logs").rglob("*.log"), *demo.run.glob("*.json")]
    assert len(logs) > 5
    for log in logs:
        text = log.read_bytes()
        assert not [secret for secret in wanted if secret in text], log


def test_every_file_with_a_secret_is_its_owners_alone(watched: tuple[Up, Path]) -> None:
    demo, _ = watched
    wanted = secrets(demo.run)
    holders = []
    for path in demo.run.rglob("*"):
        if path.is_file() and path.stat().st_size < 1 << 20:
            text = path.read_bytes()
            if any(secret in text for secret in wanted):
                holders.append(path)
    assert len(holders) > 10
    assert {path: oct(path.stat().st_mode & 0o077) for path in holders} == dict.fromkeys(
        holders, "0o0"
    )
    assert (demo.run / "pki").stat().st_mode & 0o077 == 0


# --- deeds ----------------------------------------------------------------------------------------


def test_what_people_did_is_in_the_audit_log(watched: tuple[Up, Path]) -> None:
    demo, _ = watched
    path = demo.run / "hub" / "audit.jsonl"
    count, _head = verify(path)
    actions = {json.loads(line)["action"] for line in lines(path)}
    assert count >= len(actions)
    assert {"attach", "login", "claim", "weights", "settings"} <= actions
