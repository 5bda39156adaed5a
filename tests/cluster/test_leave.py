"""Leaving for good: nothing that opens the head stays, nothing that nobody else has goes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from user_system.cluster import leave as leaving
from user_system.cluster.configs import JoinFacts, LinkConfig
from user_system.cluster.edge_home import EdgeFile, EdgeHome
from user_system.cluster.layout import JOURNALS, QUEUE
from user_system.core.errors import ConfigError, LinkError
from user_system.edge.rings import Ring
from user_system.replay.queue import Queue

FACTS = JoinFacts("lab", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4")


@pytest.fixture
def home(tmp_path: Path) -> EdgeHome:
    """Return a robot host as it stands after some work, all of which the head has."""
    home = EdgeHome(tmp_path / "lab-1")
    for folder in ("pki", "config", "logs", f"edge/lab-1/{JOURNALS}"):
        (home.root / folder).mkdir(parents=True)
    home.write(EdgeFile("lab-1", FACTS))
    (home.pki / "lab-1.key").write_text("secret")
    (home.root / "user-system-edge-lab-1.service").write_text("[Unit]")
    home.setup.write_text("{}")
    with Queue(home.root / "edge" / "lab-1" / QUEUE, max_bytes=1 << 26, first_epoch=1).open(
        create=True
    ):
        pass
    return home


def put(home: EdgeHome, records: int, place: str = "edge/lab-1") -> Path:
    """Spool records that nobody acknowledged; return where."""
    folder = home.root / place
    with Queue(folder / QUEUE, max_bytes=1 << 26, first_epoch=1).open(create=True) as queue:
        epoch = queue.begin_epoch("arm-1")
        for number in range(records):
            queue.append("arm-1", epoch, number, b"record")
    return folder


def left(home: EdgeHome, *, discard: bool = False, ask: Callable[[LinkConfig], None] | None = None):
    said: list[str] = []
    told = leaving.leave(home.root, said.append, discard=discard, ask=ask or (lambda link: None))
    return told, "\n".join(said)


def test_nothing_is_left_where_the_head_has_everything(home: EdgeHome) -> None:
    asked: list[LinkConfig] = []
    told, said = left(home, ask=asked.append)
    assert told
    assert [(link.name, link.hub) for link in asked] == [("lab-1", FACTS.hub)]
    assert "the head has revoked lab-1" in said
    assert "lab-1 has left run 'lab'" in said
    assert not home.root.exists()
    with pytest.raises(ConfigError, match="no directory of a robot host"):
        left(home)


def test_what_the_head_has_not_got_is_kept(home: EdgeHome) -> None:
    place = put(home, 3)
    other = put(home, 2, "edge/lab-1/eval")
    told, said = left(home)
    assert told
    assert f"user-system replay adopt {place} STORE" in said
    assert str(other) in said
    assert "kept: 5 records" in said
    assert {path.name for path in home.root.iterdir()} == {"edge"}
    assert leaving.look(home).records == 5, "as it was"


def test_what_a_killed_agent_left_in_its_journal_is_kept(home: EdgeHome) -> None:
    journal = Ring(home.root / "edge" / "lab-1" / JOURNALS / "arm-1.journal", 1 << 16)
    journal.open()
    journal.put(b"record")
    journal.close()
    _, said = left(home)
    assert "kept: " in said
    assert journal.path.exists()


def test_a_store_of_its_own_is_kept(home: EdgeHome) -> None:
    store = home.root / "edge" / "lab-1" / "replay"
    store.mkdir()
    (store / "data.mdb").write_bytes(b"pages")
    _, said = left(home)
    assert f"kept: what this host stored itself, in {store}" in said
    assert (store / "data.mdb").exists()


def test_a_spool_that_cannot_be_read_is_kept(home: EdgeHome) -> None:
    place = put(home, 3)
    for path in (place / QUEUE).glob("*.json"):
        path.write_text("no")
    left(home)
    assert (place / QUEUE).is_dir()


def test_discarding_deletes_it(home: EdgeHome) -> None:
    put(home, 3)
    _, said = left(home, discard=True)
    assert "discarded: 3 records" in said
    assert not home.root.exists()


def test_it_leaves_without_its_head_and_says_what_is_left_to_do(home: EdgeHome) -> None:
    def away(link: LinkConfig) -> None:
        raise LinkError("the hub cannot be reached")

    told, said = left(home, ask=away)
    assert not told
    assert "left to do at the head: user-system enrol revoke lab-1" in said
    assert not home.pki.exists()


def test_what_was_interrupted_is_repeated(home: EdgeHome, monkeypatch) -> None:
    def fails(home: EdgeHome, found: leaving.Left, discard: bool) -> None:
        raise OSError("the power went")

    put(home, 1)
    with monkeypatch.context() as patch:
        patch.setattr(leaving, "_remove", fails)
        with pytest.raises(OSError, match="power"):
            left(home)
    told, said = left(home)
    assert told
    assert "kept: 1 records" in said


def test_the_command(home: EdgeHome, capsys) -> None:
    from typer.testing import CliRunner

    from user_system.cli import app

    done = CliRunner().invoke(app, ["edge", "leave", str(home.root)])
    assert done.exit_code == 1, "nobody listens there"
    assert "enrol revoke lab-1" in done.output
    assert not home.root.exists()
