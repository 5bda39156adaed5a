"""The hub over the wire: typed answers and errors, and an attachment that loses nothing."""

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from comms.credentials import AllowList, Credentials, Peer, Role
from comms.hub_client import HubAttachment, HubClient
from comms.hub_service import HubService
from comms.pb import hub_pb2 as pb
from comms.serving import Server, serve
from comms.tunnel import DirectTunnel, Endpoints, open_tunnel
from user_system.core.errors import (
    ConfigError,
    LeaseError,
    LinkError,
    SecurityError,
    TransitionError,
    UserSystemError,
)

GENEROUS_S = 60.0


def wait_until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + GENEROUS_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Link:
    def __init__(self, hub: "ModelHub", send: Callable[[pb.HubEvent], None]):
        self.hub, self.send = hub, send
        self.heard: list[pb.HostEvent] = []
        self.closes = 0

    def receive(self, event: pb.HostEvent) -> None:
        assert not self.closes
        self.heard.append(event)
        self.hub.on_event(self, event)

    def closed(self) -> None:
        self.closes += 1


class ModelHub:
    def __init__(self) -> None:
        self.links: list[Link] = []
        self.calls: list[tuple[str, Peer, Any]] = []
        self.error: Exception | None = None
        self.on_event: Callable[[Link, pb.HostEvent], None] = lambda link, event: None
        self.on_attach: Callable[[Link], None] = lambda link: None

    def _note(self, what: str, peer: Peer, request: Any) -> None:
        self.calls.append((what, peer, request))
        if self.error:
            raise self.error

    def attach(self, peer: Peer, hello: pb.HostHello, send: Callable[[pb.HubEvent], None]) -> Link:
        self._note("attach", peer, hello)
        assert all(link.closes for link in self.links if link.hub is self)
        self.links.append(Link(self, send))
        self.on_attach(self.links[-1])
        return self.links[-1]

    def claim(self, peer: Peer, request: pb.ClaimRequest) -> pb.Lease:
        self._note("claim", peer, request)
        return pb.Lease(robot=request.robot, operator=request.operator, token=7, ttl_ms=2000)

    def renew(self, peer: Peer, request: pb.LeaseRef) -> pb.Lease:
        self._note("renew", peer, request)
        return pb.Lease(robot=request.robot, operator=request.operator, token=request.token)

    def yield_(self, peer: Peer, request: pb.LeaseRef) -> None:
        self._note("yield", peer, request)

    def ask(self, peer: Peer, request: pb.Request, timeout_s: float) -> pb.Answer:
        self._note("ask", peer, request)
        assert 0 < timeout_s <= 10
        return pb.Answer(id=request.id, robot=request.robot, ok=True, mode="hold")

    def status(self, peer: Peer) -> pb.SystemStatus:
        self._note("status", peer, None)
        return pb.SystemStatus(run="r", figures={"env_steps": 3.0})

    def report(self, peer: Peer, report: pb.ProcessReport) -> pb.ReportReply:
        self._note("report", peer, report)
        return pb.ReportReply(phase="train", env_steps=5)


@pytest.fixture
def hub() -> ModelHub:
    return ModelHub()


@pytest.fixture
def server(
    hub: ModelHub, credentials: Callable[[str], Credentials], allow: AllowList
) -> Iterator[Server]:
    with serve([HubService(hub)], credentials=credentials("hub"), allow=allow) as server:
        yield server


@pytest.fixture
def dial(
    server: Server, credentials: Callable[[str], Credentials]
) -> Iterator[Callable[..., DirectTunnel]]:
    tunnels = []

    def dial(name: str, port: int = 0) -> DirectTunnel:
        endpoints = Endpoints(hub=f"127.0.0.1:{port or server.port}")
        tunnels.append(DirectTunnel(endpoints, credentials(name)))
        return tunnels[-1]

    yield dial
    for tunnel in tunnels:
        tunnel.close()


def test_calls_arrive_with_who_made_them(hub: ModelHub, dial: Callable[..., DirectTunnel]) -> None:
    client = HubClient(dial("ada"), timeout_s=GENEROUS_S)
    lease = client.claim("arm-1", "ada", realtime=True)
    assert lease.token == 7
    assert client.renew(lease).token == 7
    assert client.ask("arm-1", "recover", "ada", token=7, timeout_s=GENEROUS_S).mode == "hold"
    client.yield_(lease)
    assert client.status().figures["env_steps"] == 3
    assert [call for call, _, _ in hub.calls] == ["claim", "renew", "ask", "yield", "status"]
    assert {peer for _, peer, _ in hub.calls} == {Peer("ada", Role.OPERATOR)}
    assert hub.calls[2][2].id, "a request has an id"
    reply = HubClient(dial("learner"), GENEROUS_S).report(pb.ProcessReport(name="l"))
    assert (reply.phase, reply.env_steps) == ("train", 5)
    assert client.stats() == {"calls": 5, "failed": 0}


@pytest.mark.parametrize(
    "error",
    [
        LeaseError("arm-1 is held by ada", got="bob", todo="Wait."),
        TransitionError("operator may not cause run in mode hold"),
        SecurityError("no — “ü”"),
    ],
)
def test_errors_arrive_as_what_they_were(
    error: UserSystemError, hub: ModelHub, dial: Callable[..., DirectTunnel]
) -> None:
    hub.error = error
    with pytest.raises(type(error)) as caught:
        HubClient(dial("ada"), GENEROUS_S).claim("arm-1", "ada")
    assert str(caught.value) == str(error)


def test_unforeseen_errors_tell_the_caller_nothing_secret(
    hub: ModelHub, dial: Callable[..., DirectTunnel], caplog: pytest.LogCaptureFixture
) -> None:
    hub.error = ValueError("secret")
    with pytest.raises(LinkError) as caught:
        HubClient(dial("ada"), GENEROUS_S).claim("arm-1", "ada")
    assert "secret" not in str(caught.value)
    assert "secret" in caplog.text


def test_people_act_under_their_own_name(hub: ModelHub, dial: Callable[..., DirectTunnel]) -> None:
    client = HubClient(dial("ada"), GENEROUS_S)
    with pytest.raises(SecurityError, match="own name"):
        client.claim("arm-1", "bob")
    with pytest.raises(SecurityError, match="own name"):
        client.ask("arm-1", "estop", "bob")
    assert not hub.calls
    HubClient(dial("teleop"), GENEROUS_S).claim("arm-1", "bob")
    assert hub.calls[0][1] == Peer("teleop", Role.SERVICE)


def test_a_viewer_may_stop_and_nothing_else(
    hub: ModelHub, dial: Callable[..., DirectTunnel]
) -> None:
    client = HubClient(dial("eve"), GENEROUS_S)
    assert client.ask("arm-1", "estop", "eve", timeout_s=GENEROUS_S).ok
    with pytest.raises(SecurityError, match="only stop"):
        client.ask("arm-1", "recover", "eve")
    with pytest.raises(SecurityError, match="may not call"):
        client.claim("arm-1", "eve")


def test_a_hub_that_is_not_there(dial: Callable[..., DirectTunnel], server: Server) -> None:
    server.stop()
    with pytest.raises(LinkError, match="could not claim arm-1"):
        HubClient(dial("ada"), GENEROUS_S).claim("arm-1", "ada")


def hello(host: str = "host-1") -> pb.HostHello:
    return pb.HostHello(host=host, boot="b", robots=[pb.RobotEntry(name="arm-1")])


class Host:
    """A robot host: collects what the hub sends."""

    def __init__(self, tunnel: DirectTunnel, host: str = "host-1"):
        self.events: SimpleQueue[pb.HubEvent] = SimpleQueue()
        self.links: list[bool] = []
        self.attachment = HubAttachment(
            tunnel, lambda: hello(host), self.events.put, self.links.append
        )

    def __enter__(self) -> "Host":
        self.attachment.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.attachment.close()

    def get(self) -> pb.HubEvent:
        return self.events.get(timeout=GENEROUS_S)


def test_events_flow_both_ways(hub: ModelHub, dial: Callable[..., DirectTunnel]) -> None:
    hub.on_attach = lambda link: link.send(pb.HubEvent(grant=pb.Grant(robot="arm-1", token=3)))

    def assign(link: Link, event: pb.HostEvent) -> None:
        if event.HasField("want"):
            assignment = pb.Assignment(robot=event.want.robot, episode="e1")
            link.send(pb.HubEvent(assignment=assignment))
        if event.HasField("episode"):
            link.send(pb.HubEvent(noted=pb.EpisodeNoted(episode=event.episode.episode)))

    hub.on_event = assign
    with Host(dial("host-1")) as host:
        assert host.get().grant.token == 3
        host.attachment.want("arm-1")
        assert host.get().assignment.episode == "e1"
        host.attachment.report(pb.EpisodeReport(robot="arm-1", episode="e1"))
        assert host.get().noted.episode == "e1"
        stats = host.attachment.stats()
        assert (stats["wants"], stats["reports"], stats["connected"]) == (0, 0, 1)
    assert host.links == [True, False]
    wait_until(lambda: hub.links[0].closes)
    assert hub.links[0].closes == 1
    with pytest.raises(LinkError, match="not attached"):
        hub.links[0].send(pb.HubEvent())


def test_what_must_arrive_is_repeated_after_a_break(
    hub: ModelHub, server: Server, cutter: Any, dial: Callable[..., DirectTunnel]
) -> None:
    cutter.target = server.port
    with Host(dial("host-1", cutter.port)) as host:
        host.attachment.want("arm-1")
        host.attachment.report(pb.EpisodeReport(robot="arm-1", episode="e0"))
        for _ in range(3):
            wait_until(lambda: hub.links and len(hub.links[-1].heard) >= 2)
            assert {e.WhichOneof("event") for e in hub.links[-1].heard} == {"want", "episode"}
            seen = len(hub.links)
            cutter.cut()
            wait_until(lambda seen=seen: len(hub.links) > seen)
        wait_until(lambda: len(hub.links[-1].heard) >= 2)
        hub.links[-1].send(pb.HubEvent(noted=pb.EpisodeNoted(episode="e0")))
        assert host.get().noted.episode == "e0"
        seen = len(hub.links)
        cutter.cut()
        wait_until(lambda: len(hub.links) > seen and hub.links[-1].heard)
        assert [e.WhichOneof("event") for e in hub.links[-1].heard] == ["want"]
    assert all(link.closes == 1 for link in hub.links[:-1])


def test_a_request_that_comes_again_is_answered_again_but_done_once(
    hub: ModelHub, server: Server, cutter: Any, dial: Callable[..., DirectTunnel]
) -> None:
    cutter.target = server.port
    request = pb.HubEvent(request=pb.Request(id="r1", robot="arm-1", event="hold"))

    def ask(link: Link) -> None:
        link.send(request)

    hub.on_attach = ask
    with Host(dial("host-1", cutter.port)) as host:
        assert host.get().request.id == "r1"
        hub.links[-1].send(request)  # not answered yet: neither done nor answered again
        host.attachment.answer(pb.Answer(id="r1", ok=True, mode="hold"))
        wait_until(lambda: hub.links[-1].heard)
        cutter.cut()  # the hub asks again on the next stream
        wait_until(lambda: len(hub.links) > 1 and hub.links[-1].heard)
        assert [e.answer.mode for e in hub.links[-1].heard] == ["hold"]
        assert host.events.empty()
        assert host.attachment.stats()["repeated"] == 2


def test_a_host_that_dials_twice_is_attached_once(
    hub: ModelHub, dial: Callable[..., DirectTunnel]
) -> None:
    """The model asserts in ``attach`` that all older links are closed."""
    with Host(dial("host-1")):
        wait_until(lambda: hub.links)
        for _ in range(5):
            with Host(dial("host-1")):
                seen = len(hub.links)
                wait_until(lambda seen=seen: len(hub.links) > seen)
    wait_until(lambda: all(link.closes == 1 for link in hub.links))


def test_a_new_hello_on_demand_loses_nothing(
    hub: ModelHub, dial: Callable[..., DirectTunnel]
) -> None:
    robots = ["arm-1"]
    attachment = HubAttachment(
        dial("host-1"),
        lambda: pb.HostHello(host="host-1", robots=[pb.RobotEntry(name=r) for r in robots]),
        lambda event: None,
    )
    attachment.start()
    attachment.want("arm-1")
    wait_until(lambda: hub.links and hub.links[-1].heard)
    robots.append("arm-2")
    attachment.redial()
    wait_until(lambda: len(hub.links) > 1 and hub.links[-1].heard)
    hellos = [request for what, _, request in hub.calls if what == "attach"]
    assert [[robot.name for robot in hello.robots] for hello in hellos][-1] == robots
    assert hub.links[-1].heard[0].want.robot == "arm-1"
    attachment.close()


def test_hosts_are_told_apart(
    hub: ModelHub, dial: Callable[..., DirectTunnel], caplog: pytest.LogCaptureFixture
) -> None:
    with Host(dial("host-1"), host="host-2") as host:
        wait_until(lambda: host.attachment.stats()["sessions"] >= 2)
        assert host.links == []
    assert not hub.links
    assert "another name" in caplog.text


def test_the_hub_goes_and_comes_back(
    hub: ModelHub,
    server: Server,
    cutter: Any,
    dial: Callable[..., DirectTunnel],
    credentials: Callable[[str], Credentials],
    allow: AllowList,
) -> None:
    cutter.target = server.port
    with Host(dial("host-1", cutter.port)) as host:
        wait_until(lambda: host.attachment.connected)
        server.stop()
        wait_until(lambda: not host.attachment.connected)
        with serve([HubService(hub)], credentials=credentials("hub"), allow=allow) as again:
            cutter.target = again.port
            wait_until(lambda: host.attachment.connected)
    assert host.links[:3] == [True, False, True]


@pytest.mark.slow
def test_a_link_that_is_up_but_dead_is_noticed(
    hub: ModelHub, server: Server, cutter: Any, dial: Callable[..., DirectTunnel]
) -> None:
    """No byte moves and no connection breaks: keepalive notices on both sides."""
    cutter.target = server.port
    with Host(dial("host-1", cutter.port)) as host:
        wait_until(lambda: host.attachment.connected)
        cutter.moving.clear()
        wait_until(lambda: not host.attachment.connected)
        wait_until(lambda: hub.links[0].closes)
        cutter.cut()
        cutter.moving.set()
        wait_until(lambda: host.attachment.connected)


def test_a_host_that_does_not_read_is_let_go(hub: ModelHub) -> None:
    from comms.hub_service import _HostStream

    stream = _HostStream("host-1")
    for _ in range(1024):
        stream.send(pb.HubEvent())
    with pytest.raises(LinkError, match="not attached"):
        stream.send(pb.HubEvent())


def test_many_threads_may_call_at_once(dial: Callable[..., DirectTunnel]) -> None:
    client = HubClient(dial("ada"), GENEROUS_S)
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda: results.append(client.claim("arm-1", "ada").token))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [7] * 16


def test_tunnels_come_in_kinds(credentials: Callable[[str], Credentials]) -> None:
    assert isinstance(open_tunnel("direct", Endpoints(), credentials("ada")), DirectTunnel)
    with pytest.raises(ConfigError, match=r"'carrier pigeon'.*direct"):
        open_tunnel("carrier pigeon", Endpoints(), credentials("ada"))
    with pytest.raises(ConfigError, match="host:port"):
        Endpoints(hub="nowhere")
