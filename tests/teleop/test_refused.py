"""The page's tables, walked: every route and message with every credential that is none.

Routes come from the application, messages from their table: a new one is in all of this by itself.
"""

import asyncio
import contextlib
import json
import socket
import time

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from user_system.core.deeds import OF_THE_PAGE, Deed
from user_system.core.errors import LinkError
from user_system.teleop import access, slow
from user_system.teleop import page as page_module
from user_system.teleop.access import COOKIE, MESSAGES, RULES
from user_system.teleop.app import TeleopConfig, make_app
from user_system.teleop.auth import Accounts, Person, Role, Sessions
from user_system.teleop.page import Page

ORIGIN = "http://127.0.0.1:8765"
PEOPLE = {"vic": Role.VIEWER, "ann": Role.OPERATOR, "bob": Role.OPERATOR, "eng": Role.ENGINEER}
SECRETS = {name: (role, f"{name}-secret") for name, role in PEOPLE.items()}
GENEROUS_S = 60.0
PRIVATE = [key for key, role in RULES.items() if role is not None and key[0] != "WEBSOCKET"]


class HandClock:
    ns = 0

    def now_ns(self):
        return self.ns

    def sleep_until(self, deadline_ns):
        self.ns = deadline_ns


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
def deeds():
    return []


@pytest.fixture
def make(world, clock, deeds):
    def note(action, who, details):
        deeds.append((action, who, details))
        return "hash"

    def make(note=note, **options):
        return make_app(
            TeleopConfig(run="demo", **options),
            accounts=Accounts(SECRETS),
            hub=world,
            fresh=world,
            clock=clock,
            note=note,
        )

    return make


def run(app, scenario):
    async def main():
        transport = httpx.ASGITransport(app, client=("192.0.2.7", 1))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=transport, base_url=ORIGIN, headers={"origin": ORIGIN}
            ) as client,
        ):
            return await scenario(client)

    return asyncio.run(main())


async def login(client, name, secret=None):
    body = {"operator": name, "token": secret or f"{name}-secret"}
    return await client.post("/api/login", json=body)


async def codes(client, routes=PRIVATE, **options):
    return {
        (method, path): (
            await client.request(method, path.replace("{name}", "arm-1"), json={}, **options)
        ).status_code
        for method, path in routes
    }


def test_most_routes_are_private():
    assert len(PRIVATE) >= 8
    assert {path for (_, path), role in RULES.items() if role is None} == {
        "/", "/static/{name}", "/api/login", "/ca.crt", "/trust", "/api/join",
    }, "whoever opens another route to everybody says so here"  # fmt: skip


@pytest.mark.parametrize("name", PEOPLE)
@pytest.mark.parametrize("how", ["expired", "ended", "of another run", "invented", "none"])
def test_every_private_route_refuses_a_session_that_is_none(make, clock, how, name):
    app = make()

    async def scenario(client):
        await login(client, name)
        cookie = client.cookies[COOKIE]
        if how == "expired":
            clock.ns += int(13 * 3600e9)
        elif how == "ended":
            await client.post("/api/logout", json={})
        elif how == "of another run":
            cookie = Sessions(clock).open(Person(name, PEOPLE[name])).id
        client.cookies.clear()
        if how != "none":
            client.cookies.set(COOKIE, "x" * 43 if how == "invented" else cookie)
        return await codes(client)

    assert run(app, scenario) == dict.fromkeys(PRIVATE, 401)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.2", ""])
def test_every_route_refuses_another_name_of_the_host(make, host):
    routes = [key for key in RULES if key[0] != "WEBSOCKET"]

    async def scenario(client):
        await login(client, "eng")
        return await codes(client, routes, headers={"host": host})

    assert run(make(), scenario) == dict.fromkeys(routes, 421)


def test_every_route_that_changes_something_refuses_another_origin(make):
    routes = [key for key in RULES if key[0] not in ("WEBSOCKET", "GET")]

    async def scenario(client):
        await login(client, "eng")
        return await codes(client, routes, headers={"origin": "http://evil.example"})

    assert run(make(), scenario) == dict.fromkeys(routes, 403)


# --- the websocket --------------------------------------------------------------------------------


async def log_in(url, name):
    http = httpx.AsyncClient(base_url=url, headers={"origin": url})
    assert (await login(http, name)).status_code == 200
    return http


async def ticket_of(http):
    return (await http.post("/api/ticket", json={})).json()["ticket"]


async def dial(url, http, ticket):
    cookie = "; ".join(f"{k}={v}" for k, v in http.cookies.items())
    headers = {"cookie": cookie} if cookie else {}
    address = f"{url.replace('http', 'ws', 1)}/ws?ticket={ticket}"
    return await connect(address, origin=url, additional_headers=headers, proxy=None)


async def refused(url, http, ticket):
    """Return whether the page lets no such websocket be."""
    try:
        async with await dial(url, http, ticket) as opened:
            await opened.recv()
    except InvalidStatus as error:
        return error.response.status_code == 403
    except ConnectionClosed as error:
        return error.rcvd is not None and error.rcvd.code in (1008, 1013)
    finally:
        await asyncio.sleep(0.05)  # its transport is aborted, and closed a moment later
    return False


@pytest.fixture
def served(make):
    pages = []

    def serve(**options):
        pages.append(Page(make(**options), port=0))
        pages[-1].start()
        return pages[-1]

    yield serve
    for page in pages:
        page.close()


@pytest.mark.parametrize("how", ["used", "expired", "another's", "invented", "no cookie"])
def test_a_websocket_refuses_a_ticket_that_is_none(served, clock, how):
    page = served()

    async def scenario():
        http, other = await log_in(page.url, "ann"), await log_in(page.url, "bob")
        ticket = await ticket_of(other if how == "another's" else http)
        if how == "used":
            await (await dial(page.url, http, ticket)).close()
        elif how == "expired":
            clock.ns += int(60e9)
        elif how == "invented":
            ticket = "x" * 43
        elif how == "no cookie":
            http.cookies.clear()
        assert await refused(page.url, http, ticket)
        await http.aclose()
        await other.aclose()

    asyncio.run(scenario())


MESSAGE = {
    "alive": {},
    "ack": {"robot": "arm-1", "camera": "front"},
    "follow": {"robots": ["arm-1"]},
    "estop": {"robot": "arm-1"},
    "command": {"robot": "arm-1", "action": [0.0, 0.0, 0.0, None]},
}


@pytest.mark.parametrize("name", PEOPLE)
def test_every_message_as_every_person(served, world, name):
    page = served()
    role = PEOPLE[name]

    async def answer(socket, message):
        """Send a message and one that is none; return what was said before that one's error."""
        await socket.send(json.dumps(message))
        await socket.send(json.dumps({"type": "end"}))
        said = []
        async with asyncio.timeout(GENEROUS_S):
            while True:
                value = json.loads(await socket.recv())
                if value["type"] == "error":
                    if "no known type" in value["text"]:
                        return said
                    said.append(value["text"])

    async def scenario():
        async with (
            contextlib.aclosing(await log_in(page.url, name)) as http,
            await dial(page.url, http, await ticket_of(http)) as socket,
        ):
            return {
                kind: await answer(socket, {"type": kind, **MESSAGE[kind]}) for kind in MESSAGES
            }

    said = asyncio.run(scenario())
    for kind, errors in said.items():
        refused = any("may not send" in error for error in errors)
        assert refused is not role.includes(MESSAGES[kind]), kind
    assert not world.commands, "not even an operator commands without a lease"
    assert [stop.operator for stop in world.stops] == [name]


def test_a_message_without_a_rule_is_no_message(served, monkeypatch):
    monkeypatch.delitem(MESSAGES, "follow")
    page = served()

    async def scenario():
        async with (
            contextlib.aclosing(await log_in(page.url, "eng")) as http,
            await dial(page.url, http, await ticket_of(http)) as socket,
        ):
            await socket.send(json.dumps({"type": "follow", "robots": ["arm-1"]}))
            async with asyncio.timeout(GENEROUS_S):
                while (value := json.loads(await socket.recv()))["type"] != "error":
                    pass
            return value["text"]

    assert "no known type" in asyncio.run(scenario())


# --- what one person, or one address, may take ----------------------------------------------------


def test_a_person_with_too_many_pages_is_told_so_and_others_are_not(served):
    page = served(websockets=3)

    async def scenario():
        http, other = await log_in(page.url, "vic"), await log_in(page.url, "ann")
        kept = [await dial(page.url, http, await ticket_of(http)) for _ in range(3)]
        assert await refused(page.url, http, await ticket_of(http))
        kept.append(await dial(page.url, other, await ticket_of(other)))
        assert json.loads(await kept[-1].recv())["type"] == "welcome"
        for socket_ in kept:
            await socket_.close()
        await http.aclose()
        await other.aclose()

    asyncio.run(scenario())


def test_a_browser_that_does_not_read_is_let_go(make, served, monkeypatch):
    """Its messages pile up in no memory of ours, and its tasks end."""
    monkeypatch.setattr("user_system.teleop.live.LiveConfig.stall_s", 1.0)
    page = served()
    page_app = page._server.config.app

    async def scenario():
        http = await log_in(page.url, "ann")
        ticket, cookie = await ticket_of(http), http.cookies[COOKIE]
        await http.aclose()
        with socket.create_connection(("127.0.0.1", page.port)) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.sendall(
                f"GET /ws?ticket={ticket} HTTP/1.1\r\nhost: 127.0.0.1:{page.port}\r\n"
                f"origin: {page.url}\r\ncookie: {COOKIE}={cookie}\r\nconnection: upgrade\r\n"
                "upgrade: websocket\r\nsec-websocket-version: 13\r\n"
                "sec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n".encode()
            )
            deadline = time.monotonic() + GENEROUS_S
            while page_app.state.stats()["connections"] == 0:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
            junk = _frame(b'{"type": "nonsense", "text": "' + b"x" * 2000 + b'"}')
            raw.setblocking(False)
            while page_app.state.stats()["connections"]:
                assert time.monotonic() < deadline, "it is still there"
                try:
                    raw.send(junk)
                except BlockingIOError:
                    await asyncio.sleep(0.05)
                except OSError:
                    return

    asyncio.run(scenario())


def _frame(text):
    """Return a masked text frame; the mask is zero."""
    return bytes([0x81, 0xFE]) + len(text).to_bytes(2, "big") + bytes(4) + text


def test_logins_of_one_person_end_that_persons_oldest(clock):
    sessions = Sessions(clock)
    ann = sessions.open(Person("ann", Role.OPERATOR))
    mine = [sessions.open(Person("vic", Role.VIEWER)) for _ in range(2000)]
    assert sessions.get(ann.id) is ann
    assert sessions.get(mine[-1].id) is mine[-1]
    assert sessions.get(mine[0].id) is None
    assert sessions.stats()["sessions"] == 17
    tickets = [sessions.ticket(ann) for _ in range(2000)]
    assert len(sessions._tickets) == 16
    assert sessions.redeem(tickets[-1], ann) is ann


def test_nobody_is_locked_out_by_somebody_elses_failures(make):
    app = make(logins_per_min=3.0)

    async def scenario(client):
        wrong = [(await login(client, "ann", "wrong")).status_code for _ in range(6)]
        elsewhere = httpx.ASGITransport(app, client=("192.0.2.8", 1))
        async with httpx.AsyncClient(
            transport=elsewhere, base_url=ORIGIN, headers={"origin": ORIGIN}
        ) as other:
            return wrong, (await login(other, "ann")).status_code

    assert run(app, scenario) == ([403] * 3 + [429] * 3, 200)


def test_logins_are_noted_and_the_page_works_without_the_log(make, deeds):
    def broken(action, who, details):
        raise LinkError("the hub does not answer")

    async def scenario(client):
        await login(client, "eng", "wrong")
        answer = (await login(client, "eng")).status_code
        await client.post("/api/logout", json={})
        return answer

    assert run(make(), scenario) == 200
    where = {"from": "192.0.2.7"}
    assert deeds == [(deed, "eng", where) for deed in (Deed.LOGIN_REFUSED, Deed.LOGIN, Deed.LOGOUT)]
    assert {deed for deed, *_ in deeds} == OF_THE_PAGE
    assert run(make(note=broken), scenario) == 200, "somebody may have to stop a robot"


def test_a_body_that_does_not_come_is_not_waited_for(make, monkeypatch):
    monkeypatch.setattr(access, "BODY_S", 0.2)

    async def scenario(client):
        async def slowly():
            yield b'{"operator": "ann", '
            await asyncio.sleep(GENEROUS_S)

        async with asyncio.timeout(GENEROUS_S / 2):
            return (await client.post("/api/login", content=slowly())).status_code

    assert 400 <= run(make(), scenario) < 500


# --- connections ----------------------------------------------------------------------------------


@pytest.fixture
def impatient(make, monkeypatch):
    monkeypatch.setattr(
        page_module,
        "guarded",
        lambda base, guests: slow.guarded(base, slow.Guests(per_address=5), head_s=1.0),
    )
    page = Page(make(), port=0)
    page.start()
    yield page
    page.close()


def connections(page, count):
    return [socket.create_connection(("127.0.0.1", page.port), GENEROUS_S) for _ in range(count)]


def status_of(page):
    return httpx.get(f"{page.url}/", timeout=GENEROUS_S).status_code


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(impatient, said):
    slowly = connections(impatient, 4)
    for one in slowly:
        one.sendall(said)
    assert status_of(impatient) == 200
    for one in slowly:
        with one, contextlib.suppress(ConnectionResetError):
            assert one.recv(1000) == b""


def say_until_cut_off(one, words, pause_s=0.0, limit=1 << 28):
    """Return how many bytes were taken before the connection was cut."""
    sent, until = 0, time.monotonic() + GENEROUS_S
    while sent < limit and time.monotonic() < until:
        try:
            sent += one.send(words)
        except (BrokenPipeError, ConnectionResetError):
            return sent
        time.sleep(pause_s)
    raise AssertionError("it was never cut off")


def test_a_byte_now_and_then_is_no_head(impatient):
    (one,) = connections(impatient, 1)
    with one:
        assert say_until_cut_off(one, b"x", 0.2) < 100


def test_a_head_has_an_end(impatient):
    (one,) = connections(impatient, 1)
    with one:
        one.sendall(b"GET / HTTP/1.1\r\n")
        assert say_until_cut_off(one, b"a: " + b"b" * 1000 + b"\r\n") < 1 << 24


def test_one_address_has_so_many_connections(impatient):
    kept = connections(impatient, 5)
    for one in kept:
        one.sendall(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert b"200 OK" in one.recv(1000)
    with connections(impatient, 1)[0] as sixth:
        assert say_until_cut_off(sixth, b"x", 0.05) < 100
    kept.pop().close()
    deadline = time.monotonic() + GENEROUS_S
    while time.monotonic() < deadline:
        try:
            if status_of(impatient) == 200:
                break
        except httpx.HTTPError:
            time.sleep(0.05)
    else:
        raise AssertionError("its place is free")
    for one in kept:
        one.close()
