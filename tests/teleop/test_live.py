"""The websocket: states out, commands in, leases that end with it."""

import asyncio
import json

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from comms.pb import fresh_pb2
from user_system.core.errors import LeaseError, LinkError, SecurityError
from user_system.teleop import video
from user_system.teleop.client import TeleopClient
from user_system.teleop.live import MAX_MESSAGE
from user_system.teleop.page import Page

ANN, BOB = ("ann", "ann-secret"), ("bob", "bob-secret")


class Tab:
    """A raw client: sends what it is told, sorts what it hears."""

    def __init__(self, http, socket):
        self.http, self.socket = http, socket
        self.heard, self.frames = [], []

    async def until(self, kind, condition=lambda message: True):
        async with asyncio.timeout(30):
            while True:
                message = await self.socket.recv()
                if isinstance(message, bytes):
                    self.frames.append(video.decode(message))
                    if kind == "frame":
                        return self.frames[-1]
                    continue
                value = json.loads(message)
                self.heard.append(value)
                if value["type"] == kind and condition(value):
                    return value

    async def send(self, **message):
        await self.socket.send(json.dumps(message))

    async def post(self, path, **body):
        return await self.http.post(path, json=body)


async def log_in(url, person):
    http = httpx.AsyncClient(base_url=url, headers={"origin": url})
    await http.post("/api/login", json={"operator": person[0], "token": person[1]})
    return http


async def dial(url, http, ticket=None, **headers):
    if ticket is None:
        ticket = (await http.post("/api/ticket", json={})).json()["ticket"]
    cookie = "; ".join(f"{k}={v}" for k, v in http.cookies.items())
    headers = {"cookie": cookie, "origin": url} | headers
    origin = headers.pop("origin")
    address = f"{url.replace('http', 'ws', 1)}/ws?ticket={ticket}"
    return await connect(address, origin=origin, additional_headers=headers, proxy=None)


def scenario(url, play, person=ANN):
    async def main():
        http = await log_in(url, person)
        try:
            async with await dial(url, http) as socket:
                tab = Tab(http, socket)
                tab.client = (await tab.until("welcome"))["client"]
                return await play(tab)
        finally:
            await http.aclose()

    return asyncio.run(main())


async def eventually(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_states_come_with_what_a_card_needs_and_follow_adds_the_observation(page, world):
    async def play(tab):
        world.show(world.state("arm-1"))
        brief = (await tab.until("states"))["states"][0]
        await tab.send(type="follow", robots=["arm-1"])
        await tab.send(type="nonsense")
        await tab.until("error")  # the follow before it was taken
        world.positions["arm-1"][:3] = (1, 2, 3)
        world.show(world.state("arm-1"))
        full = (await tab.until("states"))["states"][0]
        return brief, full

    brief, full = scenario(page.url, play)
    assert brief["mode"] == "auto"
    assert brief["purpose"] == "train"
    assert "observation" not in brief
    assert full["observation"] == {"q": [1.0, 2.0, 3.0]}
    assert full["dtypes"] == {"q": "float32"}


def test_states_are_conflated_to_ten_a_second_and_the_newest_arrives(page, world):
    async def play(tab):
        for _ in range(200):
            world.show(world.state("arm-1"))
            await asyncio.sleep(0.002)
        last = world.sequences["arm-1"]
        await tab.until("states", lambda m: m["states"][-1]["sequence"] == last)
        return sum(m["type"] == "states" for m in tab.heard), last

    messages, last = scenario(page.url, play)
    assert last == 200
    assert messages < 100


def test_commands_carry_lease_boot_and_rising_sequence(page, world):
    async def play(tab):
        await tab.post("/api/robots/arm-1/claim", client=tab.client, realtime=False)
        for value in (0.01, 0.02):
            await tab.send(type="command", robot="arm-1", action=[value, 0, 0, None])
        await tab.send(type="command", robot="arm-1", action=[1e9, 0, 0, 0], valid_ms=99999)
        await tab.send(type="command", robot="arm-1", action=[0, 0, 0, 0], seen_s=7.5, rested_ms=20)
        await eventually(lambda: len(world.commands) == 4)

    scenario(page.url, play)
    first, second, third, fourth = world.commands
    assert (first.operator, first.token, first.boot) == ("ann", 101, "boot-1")
    assert [c.sequence for c in world.commands] == [1, 2, 3, 4]
    assert (third.seen_s, fourth.seen_s, fourth.rested_ms) == (0.0, 7.5, 20.0)
    assert np.isnan(first.action[3])
    assert second.valid_ms == 200
    assert third.valid_ms == 500


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        '{"type": "command", "robot": "arm-1", "action": "x"}',
        '{"type": "command", "robot": "arm-1", "action": [NaN]}',
        '{"type": "command", "robot": "arm-1", "action": [1e308]}',
        '{"type": "command", "robot": "arm-1", "action": [true]}',
        '{"type": "command", "robot": "arm-1", "action": []}',
        '{"type": "command", "robot": "arm-1", "action": [0], "valid_ms": -1}',
        '{"type": "command", "robot": 3, "action": [0]}',
        '{"type": "command", "robot": "arm-1", "action": [0], "seen_s": -1}',
        '{"type": "command", "robot": "arm-1", "action": [0], "seen_s": NaN}',
        '{"type": "command", "robot": "arm-1", "action": [0], "rested_ms": "x"}',
        '{"type": "follow", "robots": "all"}',
        "[" * 2000,
        b"\x00\x01",
        "x" * (MAX_MESSAGE + 1),
    ],
)
def test_malformed_messages_are_named_and_command_nothing(page, world, text):
    async def play(tab):
        await tab.post("/api/robots/arm-1/claim", client=tab.client)
        await tab.socket.send(text)
        await tab.until("error")

    scenario(page.url, play)
    assert not world.commands


def test_an_oversized_message_ends_the_connection(page, world, until):
    async def play(tab):
        await tab.post("/api/robots/arm-1/claim", client=tab.client)
        await tab.socket.send("x" * (MAX_MESSAGE * 8))
        with pytest.raises(ConnectionClosed):
            await tab.until("never")

    scenario(page.url, play)
    until(lambda: not world.leases)


def test_a_page_commands_only_what_it_holds(page, world):
    async def play(tab):
        await tab.send(type="command", robot="arm-1", action=[0, 0, 0, 0])
        error = await tab.until("error")
        other = await log_in(page.url, ANN)
        async with await dial(page.url, other) as socket:
            second = Tab(other, socket)
            client = (await second.until("welcome"))["client"]
            await second.post("/api/robots/arm-1/claim", client=client)
            await tab.send(type="command", robot="arm-1", action=[0, 0, 0, 0])
            await tab.until("error")
            # naming another session's page does not lend its lease either
            borrowed = await tab.post("/api/robots/arm-1/ask", client=client, event="hold")
        await other.aclose()
        return error["text"], borrowed.status_code

    text, borrowed = scenario(page.url, play)
    assert "does not hold arm-1" in text
    assert borrowed == 409
    assert not world.commands


def test_losing_the_lease_is_told_and_ends_commanding(page, world):
    async def play(tab):
        await tab.post("/api/robots/arm-1/claim", client=tab.client)
        world.claim("arm-1", "eng", force_reason="drill")
        await tab.send(type="alive")
        lost = await tab.until("lost")
        await tab.send(type="command", robot="arm-1", action=[0, 0, 0, 0])
        await tab.until("error")
        return lost

    lost = scenario(page.url, play)
    assert lost["robot"] == "arm-1"
    assert not world.commands
    assert world.leases["arm-1"].operator == "eng"


def test_a_hub_that_is_away_for_a_moment_costs_no_lease(page, world):
    async def play(tab):
        await tab.post("/api/robots/arm-1/claim", client=tab.client)
        world.away = True
        await tab.send(type="alive")
        await tab.until("error")
        world.away = False
        await tab.send(type="alive")
        await tab.send(type="command", robot="arm-1", action=[0, 0, 0, 0])
        await eventually(lambda: world.commands)

    scenario(page.url, play)


def test_leases_end_with_the_connection(page, world, until):
    async def play(tab):
        await tab.post("/api/robots/arm-1/claim", client=tab.client)
        await tab.post("/api/robots/arm-2/claim", client=tab.client)
        assert set(world.leases) == {"arm-1", "arm-2"}

    scenario(page.url, play)
    until(lambda: not world.leases)


def test_logging_out_in_one_tab_ends_the_takeover_of_another(page, world, until):
    async def play(tab):
        await tab.post("/api/robots/arm-1/claim", client=tab.client)
        await tab.post("/api/logout")
        with pytest.raises(ConnectionClosed):
            await tab.until("never")

    scenario(page.url, play)
    until(lambda: not world.leases)


def test_what_happens_is_counted(make_page, world):
    app = make_page()
    served = Page(app, port=0)
    served.start()

    async def play(tab):
        await tab.post("/api/robots/arm-1/claim", client=tab.client)
        await tab.send(type="command", robot="arm-1", action=[0, 0, 0, 0])
        await tab.send(type="nonsense")
        await tab.until("error")
        return app.state.stats()

    figures = scenario(served.url, play)
    served.close()
    assert figures["commands"] == figures["malformed"] == figures["connections"] == 1
    assert figures["stops"] == 0


def test_a_stop_goes_out_at_once_and_is_asked_for_too(page, world, until):
    async def play(tab):
        await tab.send(type="estop", robot="arm-2")
        await eventually(lambda: world.stops and world.asked)

    scenario(page.url, play, ("vic", "vic-secret"))
    assert (world.stops[0].robot, world.stops[0].operator) == ("arm-2", "vic")
    assert world.asked[0][:3] == ("arm-2", "estop", "vic")


def test_one_frame_is_in_flight_and_the_newest_follows(page, world):
    def preview(sequence):
        return fresh_pb2.Preview(
            robot="arm-1", camera="front", sequence=sequence, jpeg=bytes([sequence])
        )

    async def play(tab):
        world.show(preview(1))
        first = await tab.until("frame")
        for sequence in range(2, 9):
            world.show(preview(sequence))
            await asyncio.sleep(0.01)
        await tab.until("status")
        await tab.until("status")
        unacknowledged = len(tab.frames)
        await tab.send(type="ack", robot="arm-1", camera="front")
        second = await tab.until("frame")
        return first, unacknowledged, second

    first, unacknowledged, second = scenario(page.url, play)
    assert first[0]["sequence"] == 1
    assert unacknowledged == 1
    assert second == ({**second[0], "sequence": 8}, bytes([8]))


def test_a_flood_is_dropped_and_then_ends_the_connection(page, world):
    async def play(tab):
        for _ in range(20_000):
            await tab.send(type="alive")
        await tab.until("never")

    with pytest.raises(ConnectionClosed):
        scenario(page.url, play)


def test_the_handshake_needs_origin_cookie_and_a_fresh_ticket(page):
    async def main():
        ann, bob = await log_in(page.url, ANN), await log_in(page.url, BOB)
        ticket = (await ann.post("/api/ticket", json={})).json()["ticket"]
        spent = (await ann.post("/api/ticket", json={})).json()["ticket"]
        async with await dial(page.url, ann, spent):
            pass
        refused = [
            dial(page.url, ann, spent),
            dial(page.url, ann, "invented"),
            dial(page.url, bob, ticket),
            dial(page.url, ann, None, origin="http://evil.example"),
            dial(page.url, ann, None, cookie=""),
        ]
        outcomes = []
        for attempt in refused:
            try:
                await (await attempt).recv()
                outcomes.append("let in")
            except (InvalidStatus, ConnectionClosed) as error:
                outcomes.append(type(error).__name__)
        await ann.aclose()
        await bob.aclose()
        return outcomes

    assert "let in" not in asyncio.run(main())


def test_the_client_for_scripts_speaks_the_same_protocol(page, world):
    async def main():
        async with TeleopClient.dial(page.url, *ANN) as client:
            seen = []
            client.on_state = seen.append
            reading = asyncio.create_task(client.run())
            await client.ready()
            await client.follow(["arm-1"])
            await client.claim("arm-1", realtime=False)
            granted = await client.ask("arm-1", "hold")
            refused = await client.ask("arm-1", "release")
            await client.command("arm-1", np.array([0.5, np.nan, np.inf, 0.0], np.float32))
            await eventually(lambda: world.commands)
            world.show(world.state("arm-1"))
            await eventually(lambda: any(s.observation for s in seen))
            with pytest.raises(LinkError):
                await client.claim("arm-9", realtime=False)
            await client.yield_("arm-1")
            with pytest.raises(LeaseError):
                await client.ask("arm-1", "hold")
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            return granted, refused, seen[-1]

    granted, refused, seen = asyncio.run(main())
    assert granted == (True, "")
    assert refused[0] is False
    assert "release" in refused[1]
    assert seen.observation["q"].dtype == np.float32
    assert np.isnan(world.commands[0].action[1])
    assert np.isfinite(world.commands[0].action[2])


def test_the_client_is_told_when_its_secret_is_wrong_or_nobody_listens(page):
    async def main(url):
        async with TeleopClient.dial(url, "ann", "wrong"):
            pass

    with pytest.raises(SecurityError, match="token is wrong"):
        asyncio.run(main(page.url))
    with pytest.raises(LinkError):
        asyncio.run(main("http://127.0.0.1:9"))
