"""Leases: one holder at a time, tokens that only grow, whatever dies in between."""

import threading
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from user_system.core.clock import WallClock
from user_system.core.errors import DamageError, LeaseError, StoreError
from user_system.hub import leases as leases_module
from user_system.hub.leases import AGENT, Leases

ROBOTS = ("arm-1", "arm-2")
PEOPLE = ("ann", "bob")


class _Clock:
    def __init__(self):
        self.ns = 1_000_000_000

    def now_ns(self):
        return self.ns

    def sleep_until(self, deadline_ns):
        self.ns = deadline_ns


class Model(RuleBasedStateMachine):
    """Every sequence of claims, renewals, yields, sleeps and deaths of the hub."""

    def __init__(self):
        super().__init__()
        import tempfile
        from pathlib import Path

        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "tokens.json"
        self.clock = _Clock()
        self.greatest = dict.fromkeys(ROBOTS, 0)
        self.told = []
        self.holder = {}
        self.start()

    def start(self):
        self.leases = Leases(self.path, self.clock, ttl_s=2.0, changed=self.told.append)
        self.leases.open()

    def teardown(self):
        self.directory.cleanup()

    def expected(self, robot):
        """Return (person, token, deadline) that must still hold ``robot``, or None."""
        held = self.holder.get(robot)
        return held if held and held[2] >= self.clock.ns else None

    def new(self, holding):
        assert holding.token > self.greatest[holding.robot]
        self.greatest[holding.robot] = holding.token

    @rule(robot=st.sampled_from(ROBOTS), who=st.sampled_from(PEOPLE), force=st.booleans())
    def claim(self, robot, who, force):
        held = self.expected(robot)
        if held and held[0] != who and not force:
            with pytest.raises(LeaseError, match=f"held by {held[0]}"):
                self.leases.claim(robot, who, realtime=True)
            return
        lease, displaced = self.leases.claim(robot, who, realtime=True, force=force)
        assert displaced == (held[0] if held and held[0] != who else "")
        self.new(lease)
        self.holder[robot] = (who, lease.token, self.clock.ns + 2_000_000_000)

    @rule(robot=st.sampled_from(ROBOTS), stale=st.integers(0, 2))
    def renew(self, robot, stale):
        held = self.expected(robot)
        if not held:
            return
        who, token, _ = held
        if stale:
            with pytest.raises(LeaseError):
                self.leases.renew(robot, who, token - stale)
            return
        assert self.leases.renew(robot, who, token).token == token
        self.holder[robot] = (who, token, self.clock.ns + 2_000_000_000)

    @rule(robot=st.sampled_from(ROBOTS))
    def release(self, robot):
        held = self.holder.pop(robot, None)
        if held is None:
            return
        if held[2] < self.clock.ns:
            with pytest.raises(LeaseError):
                self.leases.release(robot, held[0], held[1])
        else:
            holding = self.leases.release(robot, held[0], held[1])
            assert holding.holder == AGENT
            self.new(holding)

    @rule(robot=st.sampled_from(ROBOTS))
    def agent_reborn(self, robot):
        fenced = self.leases.fence(robot)
        if self.expected(robot):
            assert fenced.holder == self.expected(robot)[0]
        else:
            self.new(fenced)

    @rule(seconds=st.sampled_from([0.5, 1.9, 2.5]))
    def sleep(self, seconds):
        self.clock.ns += int(seconds * 1e9)

    @precondition(lambda self: self.holder)
    @rule()
    def hub_dies(self):
        self.leases.expire()
        self.start()
        for robot in list(self.holder):
            held = self.expected(robot)
            if held:
                self.holder[robot] = (held[0], held[1], self.clock.ns + 2_000_000_000)

    @invariant()
    def one_holder_and_tokens_grow(self):
        for robot in ROBOTS:
            current = self.leases.current(robot)
            held = self.expected(robot)
            assert current.holder == (held[0] if held else AGENT)
            if held:
                assert current.token == held[1]
            assert current.token >= self.greatest[robot]
            self.greatest[robot] = current.token


Model.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestLeaseModel = Model.TestCase


def open_leases(path, clock, **options):
    leases = Leases(path, clock, **options)
    leases.open()
    return leases


def test_expiry_passes_the_robot_to_its_agent_with_a_greater_token(tmp_path, clock):
    told = []
    leases = open_leases(tmp_path / "t.json", clock, changed=told.append)
    lease, _ = leases.claim("arm-1", "ann", realtime=True)
    clock.pass_s(2.1)
    (passed,) = leases.expire()
    assert passed.holder == AGENT
    assert passed.token > lease.token
    assert told == [lease, passed]
    with pytest.raises(LeaseError, match="nobody"):
        leases.renew("arm-1", "ann", lease.token)


def test_second_claim_of_the_same_person_fences_the_first(tmp_path, clock):
    leases = open_leases(tmp_path / "t.json", clock)
    first, _ = leases.claim("arm-1", "ann", realtime=True)
    second, _ = leases.claim("arm-1", "ann", realtime=True)
    assert second.token > first.token
    with pytest.raises(LeaseError):
        leases.renew("arm-1", "ann", first.token)


def test_no_token_is_handed_out_before_it_is_on_disk(tmp_path, clock, monkeypatch):
    leases = open_leases(tmp_path / "t.json", clock)
    before = leases.current("arm-1")

    def full(path, value):
        raise StoreError("No space left on device")

    monkeypatch.setattr(leases_module, "write_json", full)
    with pytest.raises(StoreError, match="space"):
        leases.claim("arm-1", "ann", realtime=True)
    monkeypatch.undo()
    assert leases.current("arm-1") == before


def test_a_full_disk_ends_no_takeover_and_prolongs_none(tmp_path, clock, monkeypatch):
    leases = open_leases(tmp_path / "t.json", clock)
    ann, _ = leases.claim("arm-1", "ann", realtime=True)
    leases.claim("arm-2", "bob", realtime=True)

    def full(path, value):
        raise StoreError("No space left on device")

    monkeypatch.setattr(leases_module, "write_json", full)
    for _ in range(3):
        clock.pass_s(1.0)
        leases.renew("arm-1", "ann", ann.token)
    with pytest.raises(StoreError):
        leases.expire()  # arm-2 needs a fresh token for its agent
    assert leases.holder("arm-2") == AGENT
    assert leases.holder("arm-1") == "ann"
    monkeypatch.undo()
    assert [h.robot for h in leases.expire()] == ["arm-2"]


def test_floor_lifts_tokens_above_those_of_a_lost_directory(tmp_path, clock):
    old = open_leases(tmp_path / "old.json", clock, floor=1000)
    token = old.claim("arm-1", "ann", realtime=True)[0].token
    new = open_leases(tmp_path / "new.json", clock, floor=2000)
    assert new.current("arm-1").token > token


def test_damaged_tokens_stop_the_hub(tmp_path, clock):
    path = tmp_path / "t.json"
    open_leases(path, clock).current("arm-1")
    path.write_text(path.read_text()[:-3])
    with pytest.raises(DamageError, match="backup"):
        open_leases(path, clock)


def test_claims_are_linearizable_under_threads(tmp_path):
    """Racing claims: each interval of holding excludes every other, tokens order all of them."""
    leases = open_leases(tmp_path / "t.json", WallClock(), ttl_s=60.0)
    guard, errors, tokens = threading.Lock(), [], []

    def person(name):
        deadline = time.monotonic() + 60
        won = 0
        while won < 15 and time.monotonic() < deadline:
            try:
                lease, _ = leases.claim("arm-1", name, realtime=False)
            except LeaseError as refusal:
                if "is held by" not in str(refusal):
                    errors.append(str(refusal))
                continue
            if not guard.acquire(blocking=False):
                errors.append(f"{name} holds beside somebody")
            else:
                tokens.append(lease.token)
                guard.release()
            leases.release("arm-1", name, lease.token)
            won += 1
        if won < 15:
            errors.append(f"{name} starved")

    threads = [threading.Thread(target=person, args=(f"p{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert tokens == sorted(set(tokens))
