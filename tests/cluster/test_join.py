"""Joining: one directory, one name, keys that are never lost halfway."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from comms.credentials import Role
from comms.invitations import Invitation
from comms.joining import Joined
from user_system.cluster import census, join, systemd
from user_system.cluster.configs import JoinFacts
from user_system.cluster.edge_home import EdgeFile, EdgeHome, default_root
from user_system.cluster.parse import dump
from user_system.core.errors import ConfigError, LinkError, SecurityError

FACTS = JoinFacts(
    "lab", "head:7400", "head:7401", "head:7402", "head:7403", page="https://head:8765"
)


EXPIRES = int(time.time()) + 600


def line(name: str = "lab-1", number: int = 1) -> str:
    ident = number.to_bytes(8, "big")
    made = Invitation("head", 8765, ident, bytes(16), EXPIRES, name, bytes(16))
    return made.line()


class Head:
    """Takes in whoever asks, and notes where their keys lay meanwhile."""

    def __init__(self, name: str = "lab-1", **facts: str):
        self.name, self.facts = name, dump(FACTS) | facts
        self.error: Exception | None = None
        self.seen: list[Path] = []

    def __call__(self, line: str, pki: Path) -> Joined:
        self.seen.append(pki)
        pki.mkdir(mode=0o700, parents=True, exist_ok=True)
        (pki / ".keys").touch()
        if self.error:
            raise self.error
        (pki / f"{self.name}.pem").write_text(line)
        return Joined(self.name, Role.ROBOT, self.facts)


@pytest.fixture(autouse=True)
def no_systemd(monkeypatch):
    monkeypatch.setattr(systemd, "runs_here", lambda: False)


def test_all_of_a_host_is_in_one_private_directory(tmp_path) -> None:
    made = join.make(line(), tmp_path / "deep" / "lab-1", Head())
    home = EdgeHome(tmp_path / "deep" / "lab-1")
    assert made.home == home
    assert home.read() == EdgeFile("lab-1", FACTS)
    assert home.link(home.read()).hub == "head:7400"
    assert home.link(home.read()).pki == home.pki
    assert {path.name for path in home.root.iterdir()} == {
        "edge.json", "pki", "user-system-edge-lab-1.service",
    }  # fmt: skip
    assert home.root.stat().st_mode & 0o777 == 0o700
    assert home.file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in home.root.parent.iterdir()] == ["lab-1"], "nothing is left over"
    assert made.start_line == f"user-system edge run {home.root}"


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("", "not an invitation"),
        ("hello", "not an invitation"),
        ("us9abc", "not an invitation"),
        (line()[:-3], "cut or mistyped"),
        (line().replace("A", "B", 1), "cut or mistyped"),
    ],
)
def test_a_line_that_is_none_is_refused_before_anything_is_made(tmp_path, bad, says) -> None:
    head = Head()
    with pytest.raises(ConfigError, match=says):
        join.make(bad, tmp_path / "lab-1", head)
    assert head.seen == []
    assert list(tmp_path.iterdir()) == []


def test_joining_again_replaces_credentials_and_keeps_what_was_recorded(tmp_path) -> None:
    root = tmp_path / "lab-1"
    join.make(line(number=1), root, Head())
    (root / "edge" / "lab-1" / "spool").mkdir(parents=True)
    (root / "edge" / "lab-1" / "spool" / "data.mdb").write_text("steps")
    (root / "setup.json").write_text("{}")
    join.make(line(number=2), root, Head(hub="elsewhere:7400"))
    assert (root / "pki" / "lab-1.pem").read_text() == line(number=2)
    assert EdgeHome(root).read().facts.hub == "elsewhere:7400"
    assert (root / "edge" / "lab-1" / "spool" / "data.mdb").read_text() == "steps"
    assert [path.name for path in tmp_path.iterdir()] == ["lab-1"]


@pytest.mark.parametrize("error", [LinkError("no answer"), SecurityError("expired")])
def test_what_was_interrupted_goes_on_with_the_same_keys(tmp_path, error) -> None:
    head = Head()
    head.error = error
    with pytest.raises(type(error)):
        join.make(line(), tmp_path / "lab-1", head)
    assert not (tmp_path / "lab-1").exists(), "nothing is half made"
    assert (head.seen[0] / ".keys").exists(), "the answer may have been lost on its way"
    head.error = None
    join.make(line(), tmp_path / "lab-1", head)
    assert head.seen[0] == head.seen[1]
    assert [path.name for path in tmp_path.iterdir()] == ["lab-1"]


def test_another_line_has_other_keys(tmp_path) -> None:
    head = Head()
    head.error = LinkError("no answer")
    for number in (1, 2):
        with pytest.raises(LinkError):
            join.make(line(number=number), tmp_path / "lab-1", head)
    assert head.seen[0] != head.seen[1]
    assert line()[5:20] not in str(head.seen[0]), "a path shows nothing of the line"


def test_a_directory_is_one_hosts(tmp_path) -> None:
    join.make(line(), tmp_path / "host", Head())
    head = Head("lab-2")
    with pytest.raises(ConfigError, match="another robot host; got lab-1; allowed: lab-2"):
        join.make(line("lab-2"), tmp_path / "host", head)
    assert head.seen == [], "the line was not used up for it"


def test_what_is_somebody_elses_stays_untouched(tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("")
    with pytest.raises(ConfigError, match="holds something else"):
        join.make(line(), tmp_path / "mine", Head())


def test_a_host_that_runs_is_not_changed_under_its_feet(tmp_path) -> None:
    join.make(line(), tmp_path / "lab-1", Head())
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        census.Record("m", other.pid, census.created(other.pid)).write(tmp_path / "lab-1")
        with pytest.raises(ConfigError, match=f"runs; got process {other.pid}.*system down"):
            join.make(line(number=2), tmp_path / "lab-1", Head())
    finally:
        other.kill()
        other.wait()


def test_where_nothing_can_be_written_another_place_is_asked_for(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write to .*another place with --dir"):
        join.make(line(), tmp_path / "file" / "lab-1", Head())


def test_facts_of_another_kind_of_head_are_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"what the head told.*unknown key"):
        join.make(line(), tmp_path / "lab-1", Head(warp="9"))


def test_the_usual_place(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_root("lab-1") == Path("/var/lib/user-system/lab-1")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert default_root("lab-1") == tmp_path / ".local" / "share" / "user-system" / "lab-1"
