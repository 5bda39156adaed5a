"""What the joining side says when something is wrong: with the line, the way, the head, a clock."""

import json
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from comms import authority as authority_module
from comms import joining
from comms.authority import Authority
from comms.credentials import Credentials, Peer, Role
from comms.invitations import PROTOCOL, Invitation, Invitations, Request
from comms.joining import join
from comms.keys import make_key
from user_system.core.errors import ConfigError, LinkError, SecurityError

FACTS = {"hub": "head.lab:7400"}


class FakeHead:
    """A page that takes hosts in, in a few lines, and can be told to go wrong."""

    def __init__(self, directory: Path, sans: tuple[str, ...] = ("localhost", "127.0.0.1")):
        self.authority = Authority.open(directory)
        self.invitations = Invitations(self.authority)
        self.authority.issue("hub", Role.SERVICE)
        self.authority.issue("teleop", Role.SERVICE, sans)
        self.bundle = directory / "teleop.pem"
        self.ahead_s = 0.0
        self.shown = self.authority.pem
        self.change: Callable[[dict[str, Any]], None] = lambda reply: None
        self.status = 200
        self.losses = 0
        self.asked: list[dict[str, Any]] = []

    def start(self) -> None:
        head = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None: ...

            def date_time_string(self, timestamp: float | None = None) -> str:
                return formatdate(time.time() + head.ahead_s, usegmt=True)

            def do_GET(self) -> None:
                self.answer(200, head.shown)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                head.asked.append(body)
                reply = head.reply(body)
                if head.losses:
                    head.losses -= 1
                    self.close_connection = True
                    return
                self.answer(head.status, json.dumps(reply).encode())

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.bundle)
        # A handshake that fails must not end the thread that accepts.
        self.server.socket = context.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.server.handle_error = lambda request, address: None  # type: ignore[method-assign]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        request = Request(
            bytes.fromhex(body["invitation"]),
            bytes.fromhex(body["secret"]),
            body["csr"].encode(),
            body["curve"].encode(),
        )
        signed = self.invitations.redeem(request)
        reply = {
            "protocols": [PROTOCOL],
            "certificate": signed.certificate.decode(),
            "hub_curve": self.authority.hub_curve.decode(),
            "facts": FACTS,
        }
        self.change(reply)
        return reply

    def invite(self, host: str = "localhost", port: int = 0) -> Invitation:
        port = port or self.server.server_address[1]
        return self.invitations.create("arm-1", Role.ROBOT, host, port)

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeHead]:
    head = FakeHead(tmp_path / "head")
    head.start()
    yield head
    head.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "WAIT_S", 0.01)


def nothing_there(pki: Path) -> bool:
    return not list(pki.glob("*.pem")) and not list(pki.glob("*.crt"))


# --- it works ----------------------------------------------------------------------------------


def test_the_files_are_those_that_credentials_are_read_from(fake: FakeHead, tmp_path: Path) -> None:
    joined = join(fake.invite().line(), tmp_path / "pki")
    assert (joined.name, joined.role, joined.facts) == ("arm-1", Role.ROBOT, FACTS)
    mine = Credentials.load(tmp_path / "pki", "arm-1")
    assert mine.peer == Peer("arm-1", Role.ROBOT)
    assert mine.authority == fake.authority.pem
    assert mine.hub_curve == fake.authority.hub_curve
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700
    for path in (tmp_path / "pki").iterdir():
        if path.name not in ("ca.crt", "hub.pub", ".lock"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_no_key_leaves_the_host(fake: FakeHead, tmp_path: Path) -> None:
    join(fake.invite().line(), tmp_path / "pki")
    mine = Credentials.load(tmp_path / "pki", "arm-1")
    sent = json.dumps(fake.asked)
    assert mine.curve_secret.decode() not in sent
    assert "PRIVATE" not in sent
    assert mine.curve_public.decode() in json.loads(sent)[0]["curve"]


def test_lost_answers_are_asked_for_again_with_the_same_keys(
    fake: FakeHead, tmp_path: Path
) -> None:
    fake.losses = 2
    join(fake.invite().line(), tmp_path / "pki")
    assert len(fake.asked) == 3
    assert len({body["curve"] for body in fake.asked}) == 1


def test_a_join_that_was_given_up_goes_on_later(fake: FakeHead, tmp_path: Path) -> None:
    line = fake.invite().line()
    fake.losses = 3
    with pytest.raises(LinkError, match="lost"):
        join(line, tmp_path / "pki")
    assert nothing_there(tmp_path / "pki")
    assert join(line, tmp_path / "pki").name == "arm-1"
    assert join(line, tmp_path / "pki").facts == FACTS  # and once more, for its facts
    assert len({body["curve"] for body in fake.asked}) == 1


def test_a_new_invitation_means_new_keys(fake: FakeHead, tmp_path: Path) -> None:
    join(fake.invite().line(), tmp_path / "pki")
    first = Credentials.load(tmp_path / "pki", "arm-1")
    fake.invitations.revoke("arm-1")
    join(fake.invite().line(), tmp_path / "pki")
    second = Credentials.load(tmp_path / "pki", "arm-1")
    assert (first.key, first.curve_public) != (second.key, second.curve_public)
    assert first.key != second.key
    assert len(list((tmp_path / "pki").glob(".join-*"))) == 1


# --- the line and the place --------------------------------------------------------------------


@pytest.mark.parametrize("line", ["", "us1", "us2AAAA", "user-system edge join", "us1" + "A" * 80])
def test_a_malformed_line_touches_nothing(line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="enrol create"):
        join(line, tmp_path / "pki")
    assert not (tmp_path / "pki").exists()


def test_an_authoritys_directory_is_no_place_to_join_into(fake: FakeHead) -> None:
    with pytest.raises(ConfigError, match="authority's own"):
        join(fake.invite().line(), fake.authority.directory)


def test_credentials_of_another_head_are_not_mixed(fake: FakeHead, tmp_path: Path) -> None:
    join(fake.invite().line(), tmp_path / "pki")
    other = FakeHead(tmp_path / "other")
    other.start()
    try:
        with pytest.raises(ConfigError, match="another head"):
            join(other.invite().line(), tmp_path / "pki")
    finally:
        other.stop()


def test_damaged_keys_are_named(fake: FakeHead, tmp_path: Path) -> None:
    invitation = fake.invite()
    (tmp_path / "pki").mkdir()
    path = tmp_path / "pki" / f".join-{invitation.id.hex()}"
    path.write_text("{}")
    path.chmod(0o600)
    with pytest.raises(SecurityError, match=r"is damaged.*Delete it"):
        join(invitation.line(), tmp_path / "pki")


# --- the way -----------------------------------------------------------------------------------


def test_a_closed_port_is_named(fake: FakeHead, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(LinkError, match=rf"refuses connections to TCP port {port}.*run up"):
        join(fake.invite("127.0.0.1", port).line(), tmp_path / "pki")


def test_a_port_behind_a_firewall_that_drops_is_named(
    fake: FakeHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drop(address: tuple[str, int], timeout: float) -> socket.socket:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", drop)
    with pytest.raises(LinkError, match=r"silence for 3 s.*open TCP port 8765 at the head"):
        join(fake.invite("10.0.0.7", 8765).line(), tmp_path / "pki", timeout_s=3.0)


def test_a_name_that_nobody_knows(fake: FakeHead, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=r"no host is called 'nowhere.invalid'.*--at"):
        join(fake.invite("nowhere.invalid", 1).line(), tmp_path / "pki")


def test_a_port_that_takes_and_is_silent(fake: FakeHead, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(LinkError, match=r"says nothing.*MTU"):
            join(fake.invite("127.0.0.1", port).line(), tmp_path / "pki", timeout_s=0.3)


def test_a_page_without_tls(fake: FakeHead, tmp_path: Path) -> None:
    class Plain(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Plain)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        line = fake.invite("127.0.0.1", server.server_address[1]).line()
        with pytest.raises(LinkError, match=r"TLS.*teleop.tls: always"):
            join(line, tmp_path / "pki")
    finally:
        server.shutdown()
        server.server_close()


# --- the head ----------------------------------------------------------------------------------


def test_another_head_is_not_believed_and_hears_nothing(fake: FakeHead, tmp_path: Path) -> None:
    stranger = FakeHead(tmp_path / "stranger")
    stranger.start()
    try:
        line = fake.invite("localhost", stranger.server.server_address[1]).line()
        with pytest.raises(SecurityError, match=r"another key.*Nothing secret was sent"):
            join(line, tmp_path / "pki")
        assert not stranger.asked
    finally:
        stranger.stop()
    assert nothing_there(tmp_path / "pki")


def test_somebody_who_repeats_the_real_authority_hears_nothing(
    fake: FakeHead, tmp_path: Path
) -> None:
    """It can show the genuine certificate, which is public, but not sign for its own key."""
    between = FakeHead(tmp_path / "between")
    between.shown = fake.authority.pem
    between.start()
    try:
        line = fake.invite("localhost", between.server.server_address[1]).line()
        with pytest.raises(SecurityError, match=r"does not prove to be the head.*was not sent"):
            join(line, tmp_path / "pki")
        assert not between.asked
    finally:
        between.stop()


def test_an_address_that_the_head_does_not_know_of(tmp_path: Path) -> None:
    fake = FakeHead(tmp_path / "head", sans=("head.lab",))
    fake.start()
    try:
        with pytest.raises(SecurityError, match=r"does not prove.*teleop.names"):
            join(fake.invite("127.0.0.1").line(), tmp_path / "pki")
    finally:
        fake.stop()


@pytest.mark.parametrize("shown", [b"", b"<html>", b"-----BEGIN CERTIFICATE-----\nAAAA"])
def test_something_else_that_answers(fake: FakeHead, tmp_path: Path, shown: bytes) -> None:
    fake.shown = shown
    with pytest.raises(LinkError, match="not as a head of ours"):
        join(fake.invite().line(), tmp_path / "pki")


@pytest.mark.parametrize(
    ("early_s", "life_s", "ahead_s", "says"),
    [
        (-7200.0, 9000.0, 7100.0, r"not valid yet.*clock is 7[01]\d\d s behind.*timedatectl"),
        (7200.0, -3600.0, -7100.0, r"has run out.*clock is 7[01]\d\d s ahead of.*timedatectl"),
        (7200.0, -3600.0, 0.0, r"has run out, and both clocks agree.*enrol renew"),
    ],
)
def test_a_clock_that_is_off_is_named_with_by_how_much(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    early_s: float,
    life_s: float,
    ahead_s: float,
    says: str,
) -> None:
    fake = FakeHead(tmp_path / "head")
    monkeypatch.setattr(authority_module, "EARLY", timedelta(seconds=early_s))
    with suppress(SecurityError):  # one that has run out is made, and not loaded
        Authority.open(fake.authority.directory, life_s).issue(
            "teleop", Role.SERVICE, ("localhost",), anew=True
        )
    fake.ahead_s = ahead_s
    fake.start()
    try:
        with pytest.raises(SecurityError, match=says):
            join(fake.invite().line(), tmp_path / "pki")
        assert not fake.asked
    finally:
        fake.stop()


# --- its answer --------------------------------------------------------------------------------


def test_a_head_of_another_protocol_is_named(fake: FakeHead, tmp_path: Path) -> None:
    fake.change = lambda reply: reply.update(protocols=[7, 8])
    with pytest.raises(ConfigError, match=r"version 1 here.*\[7, 8\] at the head.*same"):
        join(fake.invite().line(), tmp_path / "pki")


def test_a_head_that_takes_nobody_in(fake: FakeHead, tmp_path: Path) -> None:
    fake.change = lambda reply: reply.clear()
    fake.status = 404
    with pytest.raises(LinkError, match="takes nobody in; got status 404"):
        join(fake.invite().line(), tmp_path / "pki")


def test_what_the_head_refuses_is_told_to_the_letter(fake: FakeHead, tmp_path: Path) -> None:
    text = "the invitation has expired; got 5 s ago"
    fake.change = lambda reply: reply.update(error={"kind": "SecurityError", "text": text})
    fake.status = 403
    with pytest.raises(SecurityError, match=f"the head refuses: {text}"):
        join(fake.invite().line(), tmp_path / "pki")
    assert len(fake.asked) == 1


def test_a_head_that_is_busy_is_asked_again(fake: FakeHead, tmp_path: Path) -> None:
    fake.change = lambda reply: reply.update(error={"kind": "LinkError", "text": "wait"})
    fake.status = 429
    with pytest.raises(LinkError, match="could not answer: wait"):
        join(fake.invite().line(), tmp_path / "pki")
    assert len(fake.asked) == joining.TRIES


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"certificate": "garbage"}, "not a certificate"),
        ({"hub_curve": "short"}, "malformed"),
        ({"facts": 7}, "malformed"),
        ({"certificate": None}, "incomplete"),
    ],
)
def test_answers_that_are_not_kept(
    fake: FakeHead, tmp_path: Path, wrong: dict[str, Any], says: str
) -> None:
    def change(reply: dict[str, Any]) -> None:
        for key, value in wrong.items():
            reply.pop(key) if value is None else reply.update({key: value})

    fake.change = change
    with pytest.raises(SecurityError, match=says):
        join(fake.invite().line(), tmp_path / "pki")
    assert nothing_there(tmp_path / "pki")


def test_a_certificate_for_another_key_name_or_authority_is_not_kept(
    fake: FakeHead, tmp_path: Path
) -> None:
    key, _ = make_key()
    stranger = Authority.open(tmp_path / "stranger")
    signed = {
        "another key": fake.authority.sign(Peer("arm-1", Role.ROBOT), key.public_key()),
        "did not sign": stranger.sign(Peer("arm-1", Role.ROBOT), key.public_key()),
    }
    for says, certificate in signed.items():
        fake.change = lambda reply, c=certificate: reply.update(certificate=c.decode())  # type: ignore[misc]
        with pytest.raises(SecurityError, match=says):
            join(fake.invite().line(), tmp_path / "pki")
        fake.invitations.revoke("arm-1")
    assert nothing_there(tmp_path / "pki")
