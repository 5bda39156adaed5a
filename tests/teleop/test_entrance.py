"""Connections that never finish their TLS handshake: few, short, and in nobody else's way."""

import contextlib
import socket
import ssl
import time

import httpx
import pytest

from comms.authority import Authority
from comms.credentials import Role
from user_system.teleop import page as page_module
from user_system.teleop.app import TeleopConfig, make_app
from user_system.teleop.auth import Accounts
from user_system.teleop.entrance import Entrance
from user_system.teleop.page import Page

GENEROUS_S = 60.0
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""How a TLS handshake begins; more is never said."""


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pki")
    Authority.open(directory).issue("teleop", Role.SERVICE)
    return directory


@pytest.fixture
def serve(world, pki, monkeypatch):
    pages = []

    def serve(handshake_s, at_once=64):
        monkeypatch.setattr(
            page_module, "Entrance", lambda guests: Entrance(guests, handshake_s, at_once)
        )
        app = make_app(
            TeleopConfig(run="demo", secure=True), accounts=Accounts({}), hub=world, fresh=world
        )
        pages.append(Page(app, port=0, certificate=pki / "teleop.pem"))
        pages[-1].start()
        return pages[-1]

    yield serve
    for page in pages:
        page.close()


@pytest.fixture
def strangers():
    with contextlib.ExitStack() as opened:

        def come(page, count, said=b"", source="127.0.0.1"):
            for _ in range(count):
                one = socket.create_connection(
                    ("127.0.0.1", page.port), GENEROUS_S, source_address=(source, 0)
                )
                opened.enter_context(one)
                with contextlib.suppress(ConnectionError):  # turned away already
                    one.sendall(said)
                yield one

        yield lambda *args, **options: list(come(*args, **options))


def served(page, pki, source="127.0.0.1"):
    context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    way = httpx.HTTPTransport(verify=context, local_address=source)
    with httpx.Client(transport=way, timeout=GENEROUS_S) as client:
        return client.get(f"{page.url}/").status_code == 200


def ended(one):
    with contextlib.suppress(ConnectionError):
        return one.recv(1) == b""
    return True


@pytest.mark.parametrize("said", [b"", HELLO], ids=["silent", "half open"])
def test_a_handshake_that_does_not_come_is_not_waited_for(serve, strangers, pki, said, until):
    page = serve(handshake_s=1.0)
    slowly = strangers(page, 8, said)
    assert served(page, pki)
    assert all(ended(one) for one in slowly), "asyncio waits a minute"
    until(lambda: page.entrance.given_up == len(slowly))


@pytest.mark.parametrize("said", [b"", HELLO], ids=["silent", "half open"])
def test_an_address_has_no_more_connections_in_a_handshake_than_after_it(
    serve, strangers, pki, said
):
    page = serve(handshake_s=GENEROUS_S, at_once=1000)
    strangers(page, 400, said)
    assert served(page, pki, "127.0.0.9"), "others are let in"
    assert len(page.entrance) == 128
    assert page.guests.turned_away >= 400 - 128


def test_handshakes_are_few_and_whoever_has_most_of_them_makes_way(serve, strangers, pki):
    page = serve(handshake_s=GENEROUS_S, at_once=8)
    (patient,) = strangers(page, 1, HELLO, "127.0.0.2")
    crowd = strangers(page, 100, HELLO, "127.0.0.3")
    assert served(page, pki, "127.0.0.9")
    assert len(page.entrance) <= 8
    assert all(ended(one) for one in crowd[:90])
    patient.settimeout(0.2)
    with pytest.raises(TimeoutError):
        patient.recv(1)


def test_a_page_that_has_no_file_left_goes_on_when_it_has(serve, strangers, pki, monkeypatch):
    page = serve(handshake_s=GENEROUS_S)
    accept, refused = socket.socket.accept, []

    def full(self):
        if len(refused) < 3:
            refused.append(time.monotonic())
            raise OSError(24, "Too many open files")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", full)
    assert served(page, pki)
    assert refused[-1] - refused[0] > 0.2, "it does not ask as fast as it can"
