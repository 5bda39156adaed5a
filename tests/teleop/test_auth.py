"""Accounts, sessions, tickets, throttle."""

import pytest

from user_system.core.errors import ConfigError, SecurityError
from user_system.teleop.auth import Accounts, Person, Role, Sessions, make_accounts


class HandClock:
    def __init__(self):
        self.ns = 0

    def now_ns(self):
        return self.ns

    def sleep_until(self, deadline_ns):
        self.ns = deadline_ns

    def pass_s(self, seconds):
        self.ns += int(seconds * 1e9)


ANN = Person("ann", Role.OPERATOR)


def test_accounts_are_made_once_and_kept_private(tmp_path):
    path = tmp_path / "operators.json"
    first = make_accounts(path, {"ann": "operator"})
    second = make_accounts(path, {"ann": "engineer", "bob": "viewer"})
    assert second["ann"] == first["ann"]
    assert len(second["bob"]) >= 24
    assert path.stat().st_mode & 0o777 == 0o600
    accounts = Accounts.load(path)
    assert accounts.login("ann", second["ann"]) == Person("ann", Role.ENGINEER)
    with pytest.raises(SecurityError):
        accounts.login("ann", second["bob"])


def test_a_readable_or_broken_accounts_file_is_refused(tmp_path):
    path = tmp_path / "operators.json"
    make_accounts(path, {"ann": "operator"})
    path.chmod(0o640)
    with pytest.raises(SecurityError, match="chmod 600"):
        Accounts.load(path)
    path.chmod(0o600)
    path.write_text('{"ann": 3}')
    with pytest.raises(SecurityError, match="no accounts file"):
        Accounts.load(path)
    with pytest.raises(SecurityError, match="no accounts file"):
        Accounts.load(tmp_path / "missing.json")


@pytest.mark.parametrize("roles", [{"": "viewer"}, {"a:b": "viewer"}, {"ann": "god"}])
def test_odd_names_and_roles_are_refused(tmp_path, roles):
    with pytest.raises(ConfigError):
        make_accounts(tmp_path / "a.json", roles)


def test_a_ticket_is_good_once_soon_and_for_its_own_session():
    clock = HandClock()
    sessions = Sessions(clock)
    session, other = sessions.open(ANN), sessions.open(Person("bob", Role.OPERATOR))
    ticket = sessions.ticket(session)
    assert sessions.redeem(ticket, session) is session
    for spent in (ticket, "invented", ""):
        with pytest.raises(SecurityError):
            sessions.redeem(spent, session)
    with pytest.raises(SecurityError):
        sessions.redeem(sessions.ticket(session), other)
    late = sessions.ticket(session)
    clock.pass_s(11)
    with pytest.raises(SecurityError):
        sessions.redeem(late, session)
    with pytest.raises(SecurityError):
        sessions.redeem(sessions.ticket(session), None)


def test_sessions_end_by_themselves():
    clock = HandClock()
    sessions = Sessions(clock, session_s=100)
    session = sessions.open(ANN)
    assert sessions.get(session.id) is session
    clock.pass_s(101)
    assert sessions.get(session.id) is None
