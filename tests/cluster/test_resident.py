"""A robot host follows its head where it can, and goes on where it cannot."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import user_system
from user_system.cluster import census, resident, setup
from user_system.cluster.configs import JoinFacts
from user_system.cluster.edge_home import EdgeFile, EdgeHome
from user_system.cluster.layout import RunDir
from user_system.cluster.resident import Resident
from user_system.core.errors import ConfigError, LinkError, SecurityError, UserSystemError
from user_system.core.versions import PROTOCOL

FACTS = JoinFacts("lab", "head:7400", "head:7401", "head:7402", "head:7403", page="https://head")


class Watch:
    """A head that says what a test wants."""

    def __init__(self) -> None:
        self.documents: list[bytes] = []
        self.error: UserSystemError | None = None
        self.running = ""
        self.troubles: list[str] = []

    def take(self) -> bytes:
        return self.documents.pop(0) if self.documents else b""

    def tell(self, *, running: str | None = None, trouble: str) -> None:
        self.running = self.running if running is None else running
        self.troubles.append(trouble)


class Supervisor:
    """Starts nothing; notes what it is asked for."""

    def __init__(self) -> None:
        self.alive: dict[str, list[str]] = {}
        self.deeds: list[str] = []
        self.refuse: dict[str, UserSystemError] = {}

    def start(self, specs, interrupted: Callable[[], bool]) -> None:
        for spec in specs:
            self.deeds.append(f"start {spec.name}")
            if spec.name in self.refuse:
                raise self.refuse[spec.name]
            self.alive[spec.name] = [Path(spec.argv[-1]).read_text()]

    def pid(self, name: str) -> int | None:
        return 1 if name in self.alive else None

    def finish(self, name: str) -> None:
        self.deeds.append(f"finish {name}")

    def end(self, names, hurry) -> None:
        for name in sorted(names):
            if self.alive.pop(name, None) is not None:
                self.deeds.append(f"end {name}")

    def poll(self) -> None:
        """Nobody dies here."""


class Interrupt:
    """Runs for some looks, doing something at each."""

    def __init__(self, *steps: Callable[[], None]) -> None:
        self.steps = list(steps)

    def asked(self) -> bool:
        if self.steps:
            self.steps.pop(0)()
            return False
        return True

    def hurry(self) -> bool:
        return False


class Life:
    def __init__(self, tmp_path: Path):
        self.home = EdgeHome(tmp_path / "lab-1")
        self.home.root.mkdir(exist_ok=True)
        self.place = RunDir(self.home.root, tmp_path / "short")
        self.watch, self.supervisor = Watch(), Supervisor()
        self.said: list[str] = []

    def live(self, *steps: Callable[[], None]) -> None:
        Resident(
            self.home, EdgeFile("lab-1", FACTS), self.place,
            self.supervisor, self.watch, Interrupt(*steps), self.said.append,  # type: ignore[arg-type]
        ).live()  # fmt: skip


@pytest.fixture
def life(tmp_path, monkeypatch) -> Life:
    monkeypatch.setattr(resident, "POLL_S", 0.0)
    monkeypatch.setattr(resident, "FIRST_S", 0.0)
    return Life(tmp_path)


def document(host: str = "lab-1", spool: int = 1, **more) -> bytes:
    link = {"name": host, "pki": "pki", "hub": "head:1", "replay": "head:2", "fresh": "head:3"}
    agent = {
        "link": link, "host": host, "run": "lab", "directory": f"edge/{host}",
        "spool_bytes": spool, "robots": [], "children": [],
    }  # fmt: skip
    world = {
        "socket": "sock/w-arm", "space": "cartesian", "rate": 1.0, "image_size": [8, 8],
        "cube_half": 0.02,
    }  # fmt: skip
    made = setup.HostSetup(
        protocol=PROTOCOL, version=user_system.__version__, run="lab", host=host,
        processes=(
            setup.SetupProcess("world-arm", "world", stage=1),
            setup.SetupProcess(f"edge-{host}", "edge", after=("world-arm",), stage=2),
        ),
        configs={"world-arm": world, f"edge-{host}": agent},
    )  # fmt: skip
    return setup.encode(replace(made, **more))


def nothing() -> None:
    pass


def test_what_the_head_says_is_run_and_kept(life) -> None:
    life.watch.documents = [document()]
    life.live(nothing, nothing)
    assert life.supervisor.deeds == ["start world-arm", "start edge-lab-1"]
    assert life.home.setup.read_bytes() == document()
    assert life.home.setup.stat().st_mode & 0o777 == 0o600
    config = life.home.root / "config" / "edge-lab-1.json"
    assert config.stat().st_mode & 0o777 == 0o600
    assert json.loads(config.read_text())["directory"] == str(life.home.root / "edge" / "lab-1")
    assert life.watch.running == setup.hash_of(document())
    assert life.said == ["lab-1 is live: no robots work for run 'lab'; see https://head"]


def test_without_its_head_it_runs_what_it_ran_the_last_time(life) -> None:
    life.home.setup.write_bytes(document())
    life.watch.error = LinkError("the head is away")
    life.live(nothing, nothing)
    assert life.supervisor.deeds == ["start world-arm", "start edge-lab-1"]


def test_refused_by_its_head_it_goes_on_as_well(life) -> None:
    life.home.setup.write_bytes(document())
    life.watch.error = SecurityError("'lab-1' is not enrolled")
    life.live(nothing, nothing)
    assert "start edge-lab-1" in life.supervisor.deeds


@pytest.mark.parametrize("error", [SecurityError("not enrolled"), ConfigError("other version")])
def test_refused_before_it_ever_ran_it_says_why(life, error) -> None:
    life.watch.error = error
    with pytest.raises(type(error), match=str(error)):
        life.live(nothing, nothing)


def test_it_waits_for_a_head_that_it_has_never_reached(life) -> None:
    life.watch.error = LinkError("no route to head")
    life.live(nothing, nothing, lambda: life.watch.documents.append(document()), nothing, nothing)
    assert life.said[0].startswith("waits for the head at head:7400: no route to head")
    assert len([text for text in life.said if "waits" in text]) == 1, "not once per attempt"
    assert "is live" in life.said[-1]


def test_a_saved_setup_of_another_version_is_not_run(life) -> None:
    life.home.setup.write_bytes(document(version="9.0.0"))
    life.watch.error = ConfigError("versions that do not work together")
    with pytest.raises(ConfigError, match="do not work together"):
        life.live(nothing, nothing)


def test_a_changed_setup_waits_for_robots_and_restarts_only_what_changed(life) -> None:
    life.watch.documents = [document()]

    def changed() -> None:
        life.watch.documents.append(document(spool=2))

    def at_rest() -> None:
        assert life.supervisor.deeds[-1] == "finish edge-lab-1"
        assert "waits for the end of an episode" in life.watch.troubles[-1]
        assert life.watch.running == setup.hash_of(document()), "not yet"
        del life.supervisor.alive["edge-lab-1"]

    life.live(nothing, changed, nothing, at_rest, nothing)
    assert life.supervisor.deeds[2:] == ["finish edge-lab-1", "start edge-lab-1"]
    assert '"spool_bytes": 2' in life.supervisor.alive["edge-lab-1"][0]
    assert life.watch.running == setup.hash_of(document(spool=2))
    assert life.watch.troubles[-1] == ""
    assert life.home.setup.read_bytes() == document(spool=2)


def test_of_two_changes_the_last_one_counts(life) -> None:
    life.watch.documents = [document()]
    life.live(
        nothing,
        lambda: life.watch.documents.append(document(spool=2)),
        lambda: life.watch.documents.append(document(spool=3)),
        lambda: life.supervisor.alive.pop("edge-lab-1"),
        nothing,
    )
    assert life.supervisor.deeds[2:] == ["finish edge-lab-1", "start edge-lab-1"]
    assert '"spool_bytes": 3' in life.supervisor.alive["edge-lab-1"][0]


def test_what_is_no_longer_named_ends(life) -> None:
    life.watch.documents = [document()]
    whole = setup.decode(document())
    less = replace(
        whole,
        processes=(replace(whole.processes[1], after=()),),
        configs={"edge-lab-1": whole.configs["edge-lab-1"]},
    )
    life.live(
        nothing,
        lambda: life.watch.documents.append(setup.encode(less)),
        lambda: life.supervisor.alive.pop("edge-lab-1"),
        nothing,
    )
    assert life.supervisor.deeds[2:] == ["finish edge-lab-1", "end world-arm", "start edge-lab-1"]


def test_what_its_owner_permits_is_run(life) -> None:
    plain = json.loads(document())
    plain["processes"].append({"name": "driver-arm", "kind": "driver"})
    plain["configs"]["driver-arm"] = {
        "robot": "arm", "socket": "sock/d-arm", "memory": "edge/m",
        "plugin": {"kind": "acme.arm", "config": {"port": "/dev/ttyUSB0"}},
    }  # fmt: skip
    life.watch.documents = [json.dumps(plain).encode()]
    with pytest.raises(ConfigError, match=r"'acme.arm' of driver-arm .*/dev/ttyUSB0.*'permitted'"):
        life.live(nothing)
    (life.home.root / "permitted").write_text("/dev/ttyUSB0\n")
    life.watch.documents = [json.dumps(plain).encode()]
    life.live(nothing)
    assert "start driver-arm" in life.supervisor.deeds


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (document(version="9.9.9"), "head 9.9.9"),
        (document(protocol=PROTOCOL + 1), f"protocol {PROTOCOL + 1}"),
        (document(host="lab-2"), "another host's"),
        (b"{", "not JSON"),
    ],
)
def test_what_cannot_be_followed_stops_nothing(life, bad, says) -> None:
    life.watch.documents = [document()]
    life.live(nothing, lambda: life.watch.documents.append(bad), nothing, nothing)
    assert life.supervisor.deeds == ["start world-arm", "start edge-lab-1"]
    assert says in life.watch.troubles[-1], "people at the head read it"
    assert life.home.setup.read_bytes() == document()


def test_a_setup_that_does_not_start_makes_way_for_the_one_before(life) -> None:
    life.watch.documents = [document()]

    def at_rest() -> None:
        del life.supervisor.alive["edge-lab-1"]
        life.supervisor.refuse = {"edge-lab-1": ConfigError("no such plugin here")}

    def mended() -> None:
        life.supervisor.refuse = {}

    original = life.supervisor.start

    def start(specs, interrupted) -> None:
        try:
            original(specs, interrupted)
        finally:
            mended()

    life.supervisor.start = start
    life.live(
        nothing, lambda: life.watch.documents.append(document(spool=2)), at_rest,
        lambda: life.watch.documents.append(document(spool=2)), nothing, nothing,
    )  # fmt: skip
    assert '"spool_bytes": 1' in life.supervisor.alive["edge-lab-1"][0]
    assert life.supervisor.deeds.count("finish edge-lab-1") == 1, "not tried again as it is"
    assert "no such plugin here" in life.watch.troubles[-1]
    assert life.home.setup.read_bytes() == document()


def test_a_full_disk_stops_nothing(life, monkeypatch) -> None:
    """Not when the head has something else to run, and not when only its document changed."""
    first, second = document(), document(spool=2)
    other = first.replace(b'"run":"lab"', b'"run":"lab" ')
    assert setup.decode(other) == setup.decode(first)
    full = []

    def write(path: Path, text: str) -> None:
        if full:
            raise OSError(28, "No space left on device")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    monkeypatch.setattr(resident, "write_private", write)
    life.watch.documents = [first]
    finished = lambda: life.supervisor.alive.pop("edge-lab-1")  # noqa: E731
    life.live(
        nothing, nothing, lambda: full.append(1), lambda: life.watch.documents.append(other),
        nothing, lambda: life.watch.documents.append(second), finished, nothing, nothing,
    )  # fmt: skip
    assert "No space left" in life.watch.troubles[-1]
    assert life.supervisor.alive.keys() == {"world-arm", "edge-lab-1"}
    assert '"spool_bytes": 1' in life.supervisor.alive["edge-lab-1"][0]


def test_an_answer_of_before_the_change_changes_nothing(life) -> None:
    life.watch.documents = [document()]
    life.live(nothing, lambda: life.watch.documents.append(document()), nothing)
    assert len(life.said) == 1
    assert "finish edge-lab-1" not in life.supervisor.deeds


# --- its directory -------------------------------------------------------------------------------


def test_a_directory_in_use_is_refused(tmp_path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        census.Record("m", other.pid, census.created(other.pid)).write(tmp_path)
        with pytest.raises(ConfigError, match=f"runs already; got process {other.pid}"):
            resident.clear(tmp_path)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_what_a_killed_life_left_is_ended(tmp_path) -> None:
    mark = f"{tmp_path}:killed"
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env={**os.environ, census.MARK: mark},
        start_new_session=True,
    )
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, check=True, text=True)  # fmt: skip
    census.Record(mark, int(gone.stdout), 0.0).write(tmp_path)
    resident.clear(tmp_path)
    left.wait(30.0)
    assert census.members(mark) == []
    assert census.read_record(tmp_path) is None
    resident.clear(tmp_path)


def test_nobody_joined_here(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"no directory of a robot host.*enrol create"):
        resident.run(tmp_path, print)
    (tmp_path / "edge.json").write_text("{")
    with pytest.raises(ConfigError, match=r"is damaged.*Join again"):
        resident.run(tmp_path, print)
