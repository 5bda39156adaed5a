"""The hub as hosts, people and processes meet it, with a fake host on the other side."""

import threading
import time

import pytest

from comms.credentials import Peer, Role
from comms.pb import fresh_pb2, hub_pb2, types_pb2
from user_system.core.errors import (
    ConfigError,
    LeaseError,
    LinkError,
    SecurityError,
    SpecError,
    StoreError,
)
from user_system.core.schedule import ScheduleConfig
from user_system.hub.audit import verify
from user_system.hub.service import Hub, HubConfig

HOST = Peer("edge-1", Role.ROBOT)
PAGE = Peer("teleop", Role.SERVICE)
ANN = Peer("ann", Role.OPERATOR)
VIEWER = Peer("vic", Role.VIEWER)
SCHEDULE = ScheduleConfig(run="t", demos=1, eval_episodes=2, eval_pass=2)


def spec():
    return types_pb2.RobotSpec(
        kind="sim.fake",
        observation=[types_pb2.FieldSpec(name="q", shape=[2], dtype="float32", unit="rad")],
        action=types_pb2.ActionSpec(
            names=["dx"], units=["m"], low=[-1], high=[1], delta=[True], coordinate=[0]
        ),
        limits=types_pb2.Limits(
            names=["x"], units=["m"], low=[-1], high=[1], velocity=[1], acceleration=[1], jerk=[1]
        ),
        control_hz=10,
        tick_hz=100,
        hold_after_ms=200,
        stop_after_ms=2000,
        home=[0.0],
    )


class FakeHost:
    """A host that keeps what it hears and answers as it is told."""

    def __init__(self, hub, boot="boot-1", robots=("arm-1", "arm-2"), peer=HOST):
        self.hub, self.heard, self.away = hub, [], False
        self.on_request = lambda request: hub_pb2.Answer(
            id=request.id, robot=request.robot, ok=True, mode="hold"
        )
        entries = [
            hub_pb2.RobotEntry(name=name, spec=spec(), task="pick", policy="pick")
            for name in robots
        ]
        hello = hub_pb2.HostHello(host=peer.name, boot=boot, robots=entries)
        self.link = hub.attach(peer, hello, self.send)

    def send(self, event):
        if self.away:
            raise LinkError("stream is gone")
        self.heard.append(event)
        if event.WhichOneof("event") == "request" and self.on_request is not None:
            answer = self.on_request(event.request)
            threading.Thread(
                target=self.link.receive, args=(hub_pb2.HostEvent(answer=answer),)
            ).start()

    def of(self, kind, robot="arm-1"):
        found = [getattr(e, kind) for e in self.heard if e.WhichOneof("event") == kind]
        return [message for message in found if message.robot == robot]

    def want(self, robot="arm-1"):
        self.link.receive(hub_pb2.HostEvent(want=hub_pb2.WantEpisode(robot=robot)))

    def report(self, assignment, success=True):
        report = hub_pb2.EpisodeReport(
            robot=assignment.robot,
            episode=assignment.episode,
            purpose=assignment.purpose,
            success=success,
            end=1,
            steps=5,
            segments={2: 5},
            version=assignment.version,
        )
        self.link.receive(hub_pb2.HostEvent(episode=report))


@pytest.fixture
def stops():
    return []


@pytest.fixture
def start(tmp_path, clock, stops):
    opened = []

    def make():
        hub = Hub(
            tmp_path,
            HubConfig(run="t", schedule=SCHEDULE, repeat_s=0.05),
            clock,
            stop=stops.append,
        )
        hub.open()
        opened.append(hub)
        return hub

    yield make
    for hub in opened:
        hub.close()


@pytest.fixture
def hub(start):
    return start()


def test_a_host_that_follows_another_run_is_given_nothing(hub):
    for run in ("", "t"):
        hub.attach(HOST, hub_pb2.HostHello(host=HOST.name, boot="b", run=run), lambda event: None)
    with pytest.raises(LinkError, match="follows another run"):
        hub.attach(HOST, hub_pb2.HostHello(host=HOST.name, boot="b", run="lab"), lambda event: None)


def claim(hub, operator="ann", robot="arm-1", peer=PAGE, **options):
    return hub.claim(peer, hub_pb2.ClaimRequest(robot=robot, operator=operator, **options))


def ref(lease):
    return hub_pb2.LeaseRef(robot=lease.robot, operator=lease.operator, token=lease.token)


def wish(lease, event="hold", ident="w1"):
    return hub_pb2.Request(
        id=ident, robot=lease.robot, event=event, operator=lease.operator, token=lease.token
    )


def test_attaching_grants_each_robot_a_token(hub):
    host = FakeHost(hub)
    for robot in ("arm-1", "arm-2"):
        (grant,) = host.of("grant", robot)
        assert (grant.holder, grant.ttl_ms) == ("", 0)
        assert grant.token >= 1


def test_a_claim_reaches_the_agent_and_yielding_gives_it_a_fresh_higher_token(hub):
    host = FakeHost(hub)
    lease = claim(hub, realtime=True)
    assert lease.boot == "boot-1"
    assert 0 < lease.ttl_ms <= 2000
    hub.renew(PAGE, ref(lease))
    hub.yield_(PAGE, ref(lease))
    grants = host.of("grant")
    assert [g.holder for g in grants] == ["", "ann", "ann", ""]
    assert [g.realtime for g in grants] == [False, True, True, False]
    tokens = [g.token for g in grants]
    assert tokens[0] < tokens[1] == tokens[2] < tokens[3]


def test_the_loser_of_a_race_is_told_who_holds(hub):
    FakeHost(hub)
    outcomes = []

    def race(name):
        try:
            outcomes.append(claim(hub, operator=name).operator)
        except LeaseError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=race, args=(name,)) for name in ("ann", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = next(o for o in outcomes if o in ("ann", "bob"))
    loser = next(o for o in outcomes if o != winner)
    assert f"held by {winner}" in loser


def test_expiry_is_told_to_the_agent(hub, clock):
    host = FakeHost(hub)
    claim(hub)
    clock.pass_s(2.5)
    hub.tick()
    assert host.of("grant")[-1].holder == ""


def test_forcing_needs_a_reason_and_a_role_and_is_audited(hub, tmp_path):
    FakeHost(hub)
    claim(hub, operator="ann")
    with pytest.raises(LeaseError, match="held by ann"):
        claim(hub, operator="bob")
    with pytest.raises(SecurityError, match="force"):
        claim(hub, operator="bob", peer=Peer("bob", Role.OPERATOR), force_reason="fire")
    lease = claim(hub, operator="bob", force_reason="fire")
    assert lease.operator == "bob"
    text = (tmp_path / "audit.jsonl").read_text()
    assert '"force"' in text
    assert '"displaced": "ann"' in text
    verify(tmp_path / "audit.jsonl")


def test_viewers_robots_and_learners_may_not_claim(hub):
    FakeHost(hub)
    for role in (Role.VIEWER, Role.ROBOT, Role.LEARNER):
        with pytest.raises(SecurityError):
            claim(hub, peer=Peer("x", role))


def test_an_offline_or_unknown_robot_cannot_be_claimed(hub):
    host = FakeHost(hub)
    with pytest.raises(LinkError, match="arm-1, arm-2"):
        claim(hub, robot="arm-9")
    host.link.closed()
    with pytest.raises(LinkError, match="offline"):
        claim(hub)


def test_a_dead_hub_forgets_no_token_and_ends_no_takeover(start):
    first = start()
    FakeHost(first)
    lease = claim(first)
    first.close()  # as after kill -9: nothing else was written in its last moment
    second = start()
    host = FakeHost(second)
    assert host.of("grant")[-1].holder == "ann"
    assert second.renew(PAGE, ref(lease)).token == lease.token
    second.yield_(PAGE, ref(lease))
    assert claim(second).token > lease.token


def test_a_wish_needs_the_lease_and_is_answered_by_the_session(hub):
    host = FakeHost(hub)
    lease = claim(hub)
    answer = hub.ask(PAGE, wish(lease), 10.0)
    assert (answer.ok, answer.mode) == (True, "hold")
    stale = wish(lease, ident="w2")
    stale.token -= 1
    with pytest.raises(LeaseError):
        hub.ask(PAGE, stale, 10.0)
    assert len(host.of("request")) == 1


def test_a_wish_is_repeated_until_answered_and_the_same_id_is_answered_once(hub):
    host = FakeHost(hub)
    lease = claim(hub)
    good = host.on_request
    seen = []

    def third_time_lucky(request):
        seen.append(request.id)
        if len(seen) < 3:
            return hub_pb2.Answer(id="other", robot=request.robot)
        return good(request)

    host.on_request = third_time_lucky
    assert hub.ask(PAGE, wish(lease), 30.0).ok
    count = len(seen)
    assert hub.ask(PAGE, wish(lease), 30.0).ok
    assert len(seen) == count


def test_a_wish_waits_for_a_host_that_dials_again(hub):
    host = FakeHost(hub)
    lease = claim(hub)
    host.away = True
    answers = []
    asker = threading.Thread(target=lambda: answers.append(hub.ask(PAGE, wish(lease), 30.0)))
    asker.start()
    time.sleep(0.1)
    host.link.closed()
    FakeHost(hub)
    asker.join(30)
    assert answers[0].ok


def test_an_unanswered_wish_says_so(hub):
    host = FakeHost(hub)
    host.on_request = None
    with pytest.raises(LinkError, match="did not answer"):
        hub.ask(PAGE, wish(claim(hub)), 0.1)


def test_estop_needs_no_lease_and_goes_out_on_both_lanes_at_once(hub, stops, tmp_path):
    host = FakeHost(hub)
    claim(hub, operator="bob")
    request = hub_pb2.Request(robot="arm-1", event="estop", operator="vic")
    assert hub.ask(VIEWER, request, 10.0).ok
    assert [(s.robot, s.operator) for s in stops] == [("arm-1", "vic")]
    assert host.of("request")[0].event == "estop"
    hub.tick()
    assert '"estop"' in (tmp_path / "audit.jsonl").read_text()
    with pytest.raises(SecurityError):
        hub.ask(VIEWER, hub_pb2.Request(robot="arm-1", event="hold", operator="vic"), 1.0)


def test_work_is_handed_out_reported_and_confirmed(hub):
    host = FakeHost(hub)
    host.want()
    (assignment,) = host.of("assignment")
    assert assignment.purpose == types_pb2.PURPOSE_EVAL
    host.report(assignment)
    host.report(assignment)  # its confirmation was lost
    noted = [e.noted.episode for e in host.heard if e.WhichOneof("event") == "noted"]
    assert noted == [assignment.episode] * 2
    assert hub.status(PAGE).figures["episodes"] == 1


def test_a_robot_that_must_wait_gets_work_when_there_is_some(hub):
    host = FakeHost(hub, robots=("arm-1", "arm-2", "arm-3"))
    for robot in ("arm-1", "arm-2", "arm-3"):
        host.want(robot)
    assert not host.of("assignment", "arm-3")  # two evaluation episodes, two robots
    host.report(host.of("assignment", "arm-1")[0])
    host.report(host.of("assignment", "arm-2")[0])
    assert host.of("assignment", "arm-3")[0].purpose == types_pb2.PURPOSE_COLLECT


def test_an_agent_that_reconnects_goes_on_and_a_new_one_starts_anew(hub):
    host = FakeHost(hub)
    host.want()
    first = host.of("assignment")[0]
    host.link.closed()
    same = FakeHost(hub, boot="boot-1")
    same.want()
    assert same.of("assignment")[0].episode == first.episode
    assert same.of("grant")[0].token == host.of("grant")[0].token
    same.link.closed()
    reborn = FakeHost(hub, boot="boot-2")
    reborn.want()
    assert reborn.of("assignment")[0].episode != first.episode
    assert reborn.of("grant")[0].token > host.of("grant")[0].token


def test_what_a_killed_agent_had_done_is_counted(hub):
    host = FakeHost(hub)
    for _ in range(2):
        host.want()
        host.report(host.of("assignment")[-1])
    host.want()
    assignment = host.of("assignment")[-1]
    assert assignment.purpose == types_pb2.PURPOSE_COLLECT
    before = hub.book.env_steps
    hub.heard(HOST, fresh_pb2.RobotState(robot="arm-1", episode=assignment.episode, step=7))
    host.link.closed()
    FakeHost(hub, boot="boot-2")
    assert hub.book.env_steps == before + 7
    FakeHost(hub, boot="boot-2")
    assert hub.book.env_steps == before + 7


def test_a_hub_that_died_goes_on_with_the_episode_under_way(start):
    first = start()
    host = FakeHost(first)
    host.want()
    assignment = host.of("assignment")[0]
    first.close()
    second = start()
    again = FakeHost(second)
    again.report(assignment)
    assert second.status(PAGE).figures["episodes"] == 1
    again.want()
    assert again.of("assignment")[0].episode != assignment.episode


def test_work_of_a_robot_that_stays_away_goes_to_others(hub, clock):
    host = FakeHost(hub, robots=("arm-1",))
    other = FakeHost(hub, robots=("arm-2",), peer=Peer("edge-2", Role.ROBOT))
    host.want("arm-1")
    first = host.of("assignment", "arm-1")[0]
    host.link.closed()
    clock.pass_s(30)
    hub.tick()
    other.want("arm-2")
    assert other.of("assignment", "arm-2")[0].seed == first.seed


def test_a_host_may_not_speak_for_another_ones_robot(hub):
    host = FakeHost(hub)
    with pytest.raises(LinkError, match="not its own"):
        host.want("arm-9")
    with pytest.raises(ConfigError, match="belongs to host"):
        FakeHost(hub, peer=Peer("edge-2", Role.ROBOT))


def test_a_report_that_is_none_is_refused(hub):
    host = FakeHost(hub)
    bad = hub_pb2.EpisodeReport(robot="arm-1", episode="x", end=77)
    with pytest.raises(SpecError, match="end 77"):
        host.link.receive(hub_pb2.HostEvent(episode=bad))


def test_an_old_stream_that_closes_late_does_not_take_the_new_one_offline(hub):
    old = FakeHost(hub)
    new = FakeHost(hub)
    old.link.closed()
    assert all(robot.online for robot in hub.status(PAGE).robots)
    new.link.closed()
    assert not any(robot.online for robot in hub.status(PAGE).robots)


def test_status_mirrors_robots_processes_and_the_run(hub, clock):
    FakeHost(hub)
    state = fresh_pb2.RobotState(robot="arm-1", mode="auto", version=3, help="stuck", rate=2.0)
    hub.heard(HOST, state)
    claim(hub)
    reply = hub.report(
        Peer("learner", Role.LEARNER),
        hub_pb2.ProcessReport(name="learner", kind="learner", figures={"updates": 9.0}),
    )
    assert reply.phase == "baseline"
    status = hub.status(VIEWER)
    robot = status.robots[0]
    assert (robot.mode, robot.holder, robot.help, robot.version) == ("auto", "ann", "stuck", 3)
    assert robot.spec.action.names == ["dx"]
    assert status.figures["updates"] == 9.0
    assert status.processes[0].name == "learner"
    clock.pass_s(120)
    assert not hub.status(VIEWER).processes


def test_a_stop_heard_on_the_fresh_lane_is_audited(hub, tmp_path):
    hub.heard(PAGE, fresh_pb2.Stop(robot="arm-1", operator="ann"))
    hub.tick()
    assert '"lane": "fresh"' in (tmp_path / "audit.jsonl").read_text()


def test_the_hub_names_the_owner_of_a_robot(hub):
    FakeHost(hub)
    assert hub.owner("arm-1") == "edge-1"
    assert hub.owner("arm-9") is None


def test_a_flood_of_stops_all_go_out_and_few_are_written_down(hub, stops, tmp_path):
    FakeHost(hub)
    for _ in range(50):
        hub.ask(VIEWER, hub_pb2.Request(robot="arm-1", event="estop", operator="vic"), 10.0)
    hub.tick()
    assert len(stops) == 50
    assert (tmp_path / "audit.jsonl").read_text().count('"estop"') == 1


def test_a_disk_that_refuses_stops_neither_expiry_of_others_nor_the_hub(hub, monkeypatch, clock):
    host = FakeHost(hub)
    claim(hub)

    def full(*args, **details):
        raise StoreError("No space left on device")

    monkeypatch.setattr(hub.audit, "write", full)
    hub.heard(PAGE, fresh_pb2.Stop(robot="arm-1", operator="ann"))
    clock.pass_s(3.0)
    hub.tick()
    assert host.of("grant")[-1].holder == ""
    monkeypatch.undo()
    hub.tick()
    assert hub.stats()["audit_records"] >= 3


@pytest.mark.parametrize(
    ("name", "kind", "heard"),
    [
        ("replay-host-1", "replay", True),
        ("reader-host-1", "reader", True),
        ("replay", "replay", False),
        ("replay-host-2", "replay", False),
        ("learner-host-1", "learner", False),
    ],
)
def test_a_robot_host_reports_processes_of_its_own_only(hub, name, kind, heard):
    report = hub_pb2.ProcessReport(name=name, kind=kind, figures={"behind_steps": 7.0})
    host = Peer("host-1", Role.ROBOT)
    if heard:
        hub.report(host, report)
    else:
        with pytest.raises(SecurityError):
            hub.report(host, report)
    assert (name in {p.name for p in hub.status(host).processes}) == heard


def test_a_learner_reports_itself_only(hub):
    """How far another one is behind decides whether robots wait for it."""
    report = hub_pb2.ProcessReport(name="learner-b", kind="learner", figures={"behind_steps": 7.0})
    with pytest.raises(SecurityError, match=r"itself only; got learner-b; allowed: learner-a"):
        hub.report(Peer("learner-a", Role.LEARNER), report)
    hub.report(Peer("learner-b", Role.LEARNER), report)
    assert [p.name for p in hub.status(VIEWER).processes] == ["learner-b"]
