"""Renewing while a process runs: when, what is kept when it fails, and who hears of it."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from comms.authority import Authority
from comms.credentials import Credentials, Peer, Role
from comms.keys import make_key
from comms.renewal import Reissuer, Renewer, here, is_late, life_of, renew
from comms.wallet import DiskWallet, as_wallet
from user_system.core.errors import LinkError, SecurityError

DAY = 86400.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "head")


@pytest.fixture
def wallet(authority: Authority, tmp_path: Path) -> DiskWallet:
    """Credentials of a host that lie apart from the authority."""
    authority.issue("hub", Role.SERVICE)
    authority.issue("host-1", Role.ROBOT)
    (tmp_path / "host").mkdir()
    for name in ("ca.crt", "hub.pub", "host-1.pem", "host-1.curve"):
        target = tmp_path / "host" / name
        target.write_bytes((authority.directory / name).read_bytes())
        target.chmod(0o600)
    return DiskWallet(tmp_path / "host", "host-1")


@pytest.fixture
def ask(authority: Authority, wallet: DiskWallet) -> Callable[[bytes], bytes]:
    return lambda csr: authority.renew(wallet().certificate, csr, lambda peer: None)


def test_a_wallet_gives_the_same_until_its_file_is_replaced(
    wallet: DiskWallet, ask: Callable[[bytes], bytes]
) -> None:
    first = wallet()
    assert wallet() is first
    new = renew(wallet, ask)
    assert wallet() is not first
    assert wallet() == new
    assert as_wallet(first)() is first
    assert as_wallet(wallet) is wallet


def test_a_wallet_whose_file_became_wrong_keeps_what_it_has(
    wallet: DiskWallet, caplog: pytest.LogCaptureFixture
) -> None:
    first = wallet()
    path = wallet.directory / "host-1.pem"
    path.write_bytes(b"garbage")
    assert wallet() is first
    path.unlink()
    assert wallet() is first
    assert "cannot be used" in caplog.text


def test_where_the_authority_is_the_hub_renews(authority: Authority, wallet: DiskWallet) -> None:
    assert here(authority.directory)
    assert not here(wallet.directory)


def test_it_is_due_when_a_third_of_its_life_is_left(
    wallet: DiskWallet, ask: Callable[[bytes], bytes]
) -> None:
    now = time.time()
    renewer = Renewer(wallet, ask, lambda: now)
    assert 56 * DAY < renewer.due_s() <= 60 * DAY
    since, until = life_of(wallet())
    assert until - since == pytest.approx(90 * DAY, abs=60)
    now += 60 * DAY + 1
    assert renewer.due_s() < 0


@pytest.mark.parametrize(
    ("life_s", "left_s", "late"),
    [
        (90 * DAY, 1.1 * DAY, False),
        (90 * DAY, 0.9 * DAY, True),
        (3600.0, 700.0, False),
        (3600.0, 500.0, True),
    ],
)
def test_it_is_late_a_day_before_or_at_a_sixth_of_a_short_life(
    life_s: float, left_s: float, late: bool
) -> None:
    assert is_late(0.0, life_s, life_s - left_s) is late


def test_a_renewal_that_fails_leaves_everything_as_it_is(
    authority: Authority, wallet: DiskWallet, tmp_path: Path
) -> None:
    first = wallet()
    key, _ = make_key()
    stranger = Authority.open(tmp_path / "stranger")

    def another_key(csr: bytes) -> bytes:
        return authority.sign(Peer("host-1", Role.ROBOT), key.public_key())

    def another_name(csr: bytes) -> bytes:
        return authority.sign(Peer("host-2", Role.ROBOT), key.public_key())

    def another_authority(csr: bytes) -> bytes:
        from comms.authority import requested

        return stranger.sign(Peer("host-1", Role.ROBOT), requested(csr))

    for wrong in (another_key, another_name, another_authority, lambda csr: b"garbage"):
        with pytest.raises(SecurityError):
            renew(wallet, wrong)
        assert Credentials.load(wallet.directory, "host-1") == first


def test_failures_are_tried_again_and_told_once_until_it_is_late(
    wallet: DiskWallet, ask: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now = time.time() + 61 * DAY
    away = True

    def sometimes(csr: bytes) -> bytes:
        if away:
            raise LinkError("the hub is away")
        return ask(csr)

    renewer = Renewer(wallet, sometimes, lambda: now)
    assert [1.0 <= renewer._turn() <= 600.0 for _ in range(5)] == [True] * 5
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    now = life_of(wallet())[1] - 0.5 * DAY
    renewer._turn()
    assert caplog.records[-1].levelname == "ERROR"
    assert "good for 12.0 h more, could not be renewed: the hub is away" in caplog.text
    assert renewer.stats()["renewals_failed"] == 6
    away = False
    assert renewer._turn() == 0.0
    assert renewer.stats()["renewals"] == 1


def test_processes_that_share_a_name_renew_once(authority: Authority, wallet: DiskWallet) -> None:
    short = Authority.open(authority.directory, lifetime_s=9.0)
    short.reissue("host-1", anew=True)
    (wallet.directory / "host-1.pem").write_bytes((short.directory / "host-1.pem").read_bytes())
    asked = []

    def counted(csr: bytes) -> bytes:
        asked.append(csr)
        return authority.renew(wallet().certificate, csr, lambda peer: None)

    wallets = [DiskWallet(wallet.directory, "host-1") for _ in range(4)]
    time.sleep(6.5)
    others = [Renewer(one, counted) for one in wallets]
    threads = [threading.Thread(target=renewer._turn) for renewer in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert all(one() == wallet() for one in wallets)


def test_a_thread_renews_in_time_and_ends(
    wallet: DiskWallet, ask: Callable[[bytes], bytes], authority: Authority
) -> None:
    short = Authority.open(authority.directory, lifetime_s=3.0)
    short.reissue("host-1", anew=True)
    path = wallet.directory / "host-1.pem"
    path.write_bytes((authority.directory / "host-1.pem").read_bytes())
    first = wallet()

    def quickly(csr: bytes) -> bytes:
        return short.renew(wallet().certificate, csr, lambda peer: None)

    renewer = Renewer(wallet, quickly)
    renewer.start()
    deadline = time.monotonic() + 20
    while renewer.stats()["renewals"] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    renewer.close()
    assert wallet() is not first
    assert renewer.stats()["renewals_failed"] == 0


def test_where_no_hub_is_the_process_of_the_authority_reissues(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, lifetime_s=3.0)
    authority.issue("host-1", Role.ROBOT)
    wallet = DiskWallet(tmp_path, "host-1")
    first = wallet()
    with Reissuer(authority, every_s=0.02):
        deadline = time.monotonic() + 20
        while wallet() is first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
