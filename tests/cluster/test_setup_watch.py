"""Asking the head what to run: what it says is heard once, why it does not is known."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import user_system
from comms.pb import hub_pb2
from user_system.cluster import dial, setup_watch
from user_system.cluster.setup_watch import SetupWatch
from user_system.core.errors import ConfigError, LinkError, SecurityError, UserSystemError
from user_system.core.versions import PROTOCOL


class Head:
    """Tunnel and hub in one, in the test's hands."""

    def __init__(self) -> None:
        self.queries: list[hub_pb2.SetupQuery] = []
        self.dials = 0
        self.why = ""
        self.answer: Callable[[hub_pb2.SetupQuery], hub_pb2.SetupReply] = self.say()

    def say(self, document: bytes = b"", **more: object):
        values = {"protocol": PROTOCOL, "version": user_system.__version__, "document": document}
        return lambda query: hub_pb2.SetupReply(**{**values, **more})

    def fail(self, error: UserSystemError):
        def answer(query: hub_pb2.SetupQuery) -> hub_pb2.SetupReply:
            raise error

        return answer

    def setup(self, query: hub_pb2.SetupQuery) -> hub_pb2.SetupReply:
        self.queries.append(query)
        return self.answer(query)

    def trouble(self) -> str:
        return self.why


@pytest.fixture
def head(monkeypatch) -> Head:
    made = Head()

    @contextmanager
    def tunnel(link: object) -> Iterator[Head]:
        made.dials += 1
        yield made

    monkeypatch.setattr(dial, "tunnel", tunnel)
    monkeypatch.setattr(setup_watch, "HubClient", lambda way, timeout_s: way)
    monkeypatch.setattr(setup_watch, "ASK_S", 0.02)
    return made


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def watching() -> SetupWatch:
    return SetupWatch(lambda: None)  # type: ignore[arg-type, return-value]  # dialled by the fake


def test_a_document_is_handed_out_once(head) -> None:
    head.answer = head.say(b"one")
    with watching() as watch:
        until(lambda: head.queries)
        head.answer = head.say()
        until(lambda: len(head.queries) > 3)
        assert watch.take() in (b"one", b""), "an answer without one takes it back"
        head.answer = head.say(b"two")
        found = []
        until(lambda: found or found.extend(filter(None, [watch.take()])))
        assert found == [b"two"]


def test_the_head_hears_at_once_what_runs_and_what_is_in_the_way(head, monkeypatch) -> None:
    monkeypatch.setattr(setup_watch, "ASK_S", 60.0)
    with watching() as watch:
        until(lambda: head.queries)
        first = head.queries[0]
        assert (first.hash, first.trouble, first.protocol) == ("", "", PROTOCOL)
        assert first.version == user_system.__version__
        watch.tell(running="abc", trouble="")
        until(lambda: len(head.queries) == 2)
        watch.tell(trouble="waits")
        until(lambda: len(head.queries) == 3)
        assert [(q.hash, q.trouble) for q in head.queries[1:]] == [("abc", ""), ("abc", "waits")]
        assert {q.boot for q in head.queries} == {first.boot}


def test_another_version_is_not_listened_to_and_said_on_both_sides(head) -> None:
    head.answer = head.say(b"from the future", protocol=PROTOCOL + 1)
    with watching() as watch:
        until(lambda: isinstance(watch.error, ConfigError))
        until(lambda: head.queries[-1].trouble)
        assert "do not work together" in head.queries[-1].trouble
        assert watch.take() == b""
        head.answer = head.say(b"mended")
        until(lambda: watch.error is None)
        until(lambda: not head.queries[-1].trouble)


@pytest.mark.parametrize("error", [LinkError("away"), SecurityError("revoked")])
def test_it_dials_again_with_whatever_credentials_there_are_then(head, error) -> None:
    head.answer = head.fail(error)
    with watching() as watch:
        until(lambda: head.dials > 2)
        assert watch.error is error
        head.answer = head.say(b"one")
        until(lambda: watch.error is None)


def test_a_tunnel_that_knows_why_is_quoted(head) -> None:
    head.why = "ssh: host key verification failed"
    head.answer = head.fail(LinkError("could not ask"))
    with watching() as watch:
        until(lambda: watch.error is not None)
        assert str(watch.error) == head.why


def test_one_outage_is_one_line(head, caplog) -> None:
    caplog.set_level("INFO")
    head.answer = head.fail(LinkError("the head is away"))
    with watching():
        until(lambda: head.dials > 3)
    assert [r.message for r in caplog.records if "away" in r.message] == ["the head is away"]


def test_closing_does_not_wait_for_a_head(head) -> None:
    began = time.monotonic()
    with watching():
        until(lambda: head.queries)
    assert time.monotonic() - began < setup_watch.ANSWER_S


def test_what_nobody_foresaw_does_not_end_the_asking(head) -> None:
    calls = []

    def link():
        calls.append(1)
        if len(calls) < 3:
            raise PermissionError("edge.json")

    head.answer = head.say(b"one")
    with SetupWatch(link) as watch:  # type: ignore[arg-type]
        until(lambda: isinstance(watch.error, LinkError))
        assert "edge.json" in str(watch.error)
        until(watch.take)
