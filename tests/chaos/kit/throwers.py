"""Who means no good: throws frames at the head through every door, with and without credentials."""

import asyncio
import contextlib
import json
import random
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import zmq
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from kit import mutate, seeds
from kit.heads import Whole
from kit.methods import METHODS
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from comms import data_wire, near
from comms.credentials import Role
from comms.mailbox import KINDS
from comms.pb import fresh_pb2
from comms.security import RULES, channel_credentials
from user_system.teleop.access import COOKIE, MESSAGES
from user_system.teleop.access import RULES as ROUTES

EVIL = {
    Role.ROBOT: "host-2",
    Role.LEARNER: "learner",
    Role.ENGINEER: "kim",
    Role.OPERATOR: "ada",
    Role.VIEWER: "eve",
    Role.SERVICE: "rogue",
}
SERVED = {
    "Data": ("reader",),
    "Experience": ("replay", "shard"),
    "Shards": ("reader",),
    "Inference": ("policy",),
}
"""Service -> listeners, where that is not the hub."""

LEAVER = "host-9"
"""Who leaves: whoever does so says nothing more."""

AGENT = "agent of host-1"
"""Who speaks to the shard of host-1: the only one whom it knows."""

CALL_S = 20.0
ASK_S = 1.0
"""Deadline of a call: a robot that is not there would be waited for."""


LISTENERS = ("hub", "replay", "reader", "fresh", "page", "policy", "shard")
_PEERS = ("eve", "host-2")


class Thrower:
    """Counts what it throws; ``throw(n)`` throws at least ``n`` frames more.

    Args:
        heads: at whom.
        rng: decides everything.
    """

    def __init__(self, heads: Whole, rng: random.Random):
        self.heads, self.rng = heads, rng
        self.thrown = 0
        self.answers: Counter[str] = Counter()

    def throw(self, count: int) -> None:
        """Throw so many frames."""
        until = self.thrown + count
        while self.thrown < until:
            self.once()

    def once(self) -> None:
        """Throw a few."""
        raise NotImplementedError

    def close(self) -> None:
        """Hang up."""


class Calls(Thrower):
    """gRPC: every method, raw bytes, as a caller of a role that may call it."""

    def __init__(self, heads: Whole, rng: random.Random):
        super().__init__(heads, rng)
        self._channels: dict[tuple[str, str], grpc.Channel] = {}
        self._credentials = {name: heads.credentials(name) for name in (*EVIL.values(), LEAVER)}
        self._seeds = dict(seeds.seeds())
        self._near = seeds.experience("host-1", "arm-1")
        self.away: Counter[str] = Counter()
        self.replies: Counter[str] = Counter()
        """Messages that came back, by listener."""

    def once(self) -> None:
        path = self.rng.choice(sorted(METHODS))
        # One call in twenty by somebody who may not.
        roles = sorted(RULES[path]) if self.rng.random() < 0.95 else list(Role)
        method, peer = METHODS[path], EVIL[self.rng.choice(roles)]
        listener = self.rng.choice(SERVED.get(path.split("/")[1].rpartition(".")[2], ("hub",)))
        order = self._seeds.get(path, [GetMessageClass(method.input_type)()])
        if path.endswith("/Leave") and peer == EVIL[Role.ROBOT]:
            peer = LEAVER
        if listener == "shard":
            peer, order = AGENT, self._near if method.client_streaming else order
        many = self.rng.randint(1, 12) if method.client_streaming else 1
        said = [self._frame(path, self.rng.choice(order)) for _ in range(many)]
        if method.client_streaming and path in self._seeds and self.rng.random() < 0.8:
            said[0] = order[0].SerializeToString()  # or nothing behind it is reached
        if method.client_streaming and self.rng.random() < 0.1:
            # All that is in order, and one frame among it: what belongs together is reached.
            said = [one.SerializeToString() for one in order]
            said.insert(self.rng.randint(1, len(said)), self._frame(path, self.rng.choice(order)))
        self.thrown += len(said)
        self.answers[self._call(peer, listener, path, said)] += 1

    def _frame(self, path: str, seed: Message) -> bytes:
        kind = GetMessageClass(METHODS[path].input_type)
        die = self.rng.random()
        if die < 0.35:
            return mutate.hostile(kind, self.rng).SerializeToString()
        if die < 0.7:
            return mutate.spoil(seed, self.rng).SerializeToString()
        return mutate.mangle(seed.SerializeToString(), self.rng)

    def _call(self, peer: str, listener: str, path: str, said: list[bytes]) -> str:
        method = METHODS[path]
        channel = self._channel(peer, listener)
        shard = self.rng.choice((None, "host-1", "host-2", "x" * 500)) if "Data" in path else None
        # Every method is called as if both ends had many messages: the wire is the same.
        call = channel.stream_stream(path, _raw, _raw)(
            iter(said), timeout=ASK_S, metadata=((data_wire.SHARD, shard),) if shard else ()
        )
        try:
            for number, _ in enumerate(call):
                self.replies[listener] += 1
                if number > 20 or (method.server_streaming and number > 2):
                    call.cancel()
            return "OK"
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self.away[(error.details() or "")[:70]] += 1
            return str(error.code().name)

    def _channel(self, peer: str, listener: str) -> grpc.Channel:
        if (peer, listener) not in self._channels:
            options: list[tuple[str, Any]] = [
                ("grpc.max_send_message_length", -1),
                ("grpc.use_local_subchannel_pool", 1),
            ]
            if listener == "shard":
                where, who = near.address(self.heads.shard.socket), self.heads.shard_credentials()
                options += [("grpc.ssl_target_name_override", "localhost")]
            else:
                where, who = self.heads.address(listener), self._credentials[peer]
            self._channels[peer, listener] = grpc.secure_channel(
                where, channel_credentials(who), options=options
            )
        return self._channels[peer, listener]

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()


def _raw(data: bytes) -> bytes:
    return data


class Lane(Thrower):
    """The fresh lane with keys that are enrolled: messages of all kinds and none."""

    def __init__(self, heads: Whole, rng: random.Random):
        super().__init__(heads, rng)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}

    def once(self) -> None:
        name = self.rng.choice(sorted(EVIL.values()))
        socket_ = self._socket(name)
        for _ in range(20):
            frames = self._frames(name)
            with contextlib.suppress(zmq.Again):
                socket_.send_multipart(frames, zmq.NOBLOCK)
                self.thrown += 1
        with contextlib.suppress(zmq.Again):
            for _ in range(100):
                socket_.recv_multipart(zmq.NOBLOCK)
        time.sleep(0.001)
        if self.rng.random() < 0.02:
            self._sockets.pop(name).close(linger=0)

    def _frames(self, name: str) -> list[bytes]:
        die = self.rng.random()
        if die < 0.05:
            return [self.rng.randbytes(9) for _ in range(self.rng.choice((1, 3, 40)))]
        field, kind = self.rng.choice(sorted(KINDS.items()))
        fresh = fresh_pb2.Fresh()
        message = mutate.hostile(kind, self.rng)
        if self.rng.random() < 0.5:
            for own, text in (("robot", "arm-2"), ("operator", name)):
                if own in message.DESCRIPTOR.fields_by_name:
                    setattr(message, own, text)
        getattr(fresh, field).CopyFrom(message)
        if die < 0.1:
            fresh.preview.CopyFrom(
                fresh_pb2.Preview(robot="arm-2", camera=str(die), jpeg=bytes(500_000))
            )
        data = fresh.SerializeToString()
        return [b"key", mutate.mangle(data, self.rng) if die > 0.6 else data]

    def _socket(self, name: str) -> "zmq.Socket[bytes]":
        if name not in self._sockets:
            self._sockets[name] = self.heads.tunnel(name).fresh(self._context)
        return self._sockets[name]

    def close(self) -> None:
        for one in self._sockets.values():
            one.close(linger=0)
        self._context.term()


class Wires(Thrower):
    """TCP: bytes at every port, before, in and after a handshake."""

    def __init__(self, heads: Whole, rng: random.Random):
        super().__init__(heads, rng)
        self._tls = {name: self._context(name) for name in ("host-2", "eve")}
        trust = heads.trust()
        self._browser = trust if isinstance(trust, ssl.SSLContext) else None
        self._held: list[socket.socket] = []

    def _context(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(str(self.heads.pki / "ca.crt"))
        context.load_cert_chain(str(self.heads.pki / f"{name}.pem"))
        context.set_alpn_protocols(["h2"])
        return context

    def once(self) -> None:
        listener = self.rng.choice(LISTENERS)
        try:
            with self._connect(listener) as raw:
                raw.settimeout(0.3)
                tls = self._browser if listener == "page" else self._tls[self.rng.choice(_PEERS)]
                if listener in ("fresh", "shard") or tls is None or self.rng.random() < 0.5:
                    self._say(raw, self._greeting(listener))
                    return
                raw.settimeout(CALL_S)
                with tls.wrap_socket(raw, server_hostname="localhost") as secure:
                    secure.settimeout(0.3)
                    http = self._greeting(listener) if listener == "page" else self._http2()
                    self._say(secure, http)
        except (OSError, ssl.SSLError) as error:
            self.answers[type(error).__name__] += 1

    def _connect(self, listener: str) -> socket.socket:
        if listener == "shard":
            end = socket.socket(socket.AF_UNIX)
            end.settimeout(CALL_S)
            end.connect(str(self.heads.shard.socket))
            return end
        return socket.create_connection(("127.0.0.1", self.heads.ports[listener]), CALL_S)

    def _say(self, end: socket.socket, frames: list[bytes]) -> None:
        for frame in frames:
            self.thrown += 1
            end.sendall(frame)
        if self.rng.random() < 0.2:
            end.recv(4096)

    def _greeting(self, listener: str) -> list[bytes]:
        zmtp = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE".ljust(54, b"\0")
        hello = b"\x04\xc8\x05HELLO\x01\x00" + bytes(72) + self.rng.randbytes(120)
        tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + self.rng.randbytes(505)
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        http = b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 99999999999999\r\n\r\n"
        chunk = (
            b"POST /api/login HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nfffffff\r\n"
        )
        upgrade = (
            b"GET /ws HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        )
        first = self.rng.choice((zmtp, zmtp + hello, tls, preface, http, chunk, upgrade, b""))
        if listener == "fresh" and self.rng.random() < 0.6:
            first = zmtp if self.rng.random() < 0.5 else zmtp + hello
        rest = [mutate.mangle(first, self.rng) for _ in range(self.rng.randint(0, 6))]
        return [first, *rest] if self.rng.random() < 0.7 else rest

    def _http2(self) -> list[bytes]:
        """Return HTTP/2 that nobody speaks: floods, resets, heads without end, lies."""

        def frame(kind: int, flags: int, stream: int, data: bytes = b"") -> bytes:
            return (
                struct.pack("!I", len(data))[1:]
                + bytes([kind, flags])
                + struct.pack("!I", stream)
                + data
            )

        head = b"\x83\x86\x44\x1a/user_system.v1.Hub/Status" + b"\x5f\x10application/grpc"
        head += b"\x40\x02te\x08trailers" + b"\x41\x09localhost"
        rng, stream = self.rng, 1
        frames = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)]
        for _ in range(rng.randint(1, 40)):
            kind = rng.randrange(9)
            if kind == 0:  # begun and reset at once
                frames.append(frame(1, 4, stream, head) + frame(3, 0, stream, bytes(4)))
            elif kind == 1:  # a head that goes on and on
                frames.append(frame(1, 0, stream, head) + frame(9, 0, stream, bytes(9000)) * 5)
            elif kind == 2:
                frames.append(
                    frame(4, 0, 0, struct.pack("!HI", rng.randrange(9), rng.getrandbits(32)))
                )
            elif kind == 3:
                frames.append(frame(6, 0, 0, bytes(8)) * rng.choice((1, 500)))
            elif kind == 4:
                frames.append(
                    frame(1, 4, stream, head) + frame(0, 1, stream, b"\0\xff\xff\xff\xff")
                )
            elif kind == 5:  # says that it is packed, and what follows is a bomb or none
                frames.append(
                    frame(1, 4, stream, head + b"\x40\x0dgrpc-encoding\x04gzip")
                    + frame(0, 1, stream, b"\x01" + struct.pack("!I", 60) + rng.randbytes(60))
                )
            elif kind == 6:
                frames.append(frame(8, 0, rng.choice((0, stream)), struct.pack("!I", 0x7FFFFFFF)))
            elif kind == 7:
                frames.append(rng.randbytes(rng.randint(1, 60)))
            else:
                frames.append(frame(1, 5, stream, rng.randbytes(rng.randint(1, 200))))
            stream += 2
        return frames


class Requests(Thrower):
    """HTTP: every route, bodies that are none, with and without a login."""

    def __init__(self, heads: Whole, rng: random.Random):
        super().__init__(heads, rng)
        self._clients = {name: self._client(name) for name in ("", "vic", "ann", "eng")}

    def _client(self, name: str) -> httpx.Client:
        client = httpx.Client(
            base_url=self.heads.url,
            headers={"origin": self.heads.url},
            timeout=CALL_S,
            verify=self.heads.trust(),
        )
        if name:
            body = {"operator": name, "token": self.heads.secrets[name]}
            assert client.post("/api/login", json=body).status_code == 200
        return client

    def once(self) -> None:
        method, path = self.rng.choice(sorted(key for key in ROUTES if key[0] != "WEBSOCKET"))
        if path == "/api/logout":
            return
        client = self._clients[self.rng.choice(sorted(self._clients))]
        names = ("arm-1", "%00", "..%2f..", "a" * 2000, "%ff", "a?b=c", "é")
        path = path.replace("{name}", self.rng.choice(names))
        bodies: list[dict[str, Any]] = [
            {"operator": "ann", "token": "x"},
            {"client": "c", "realtime": True},
            {"client": "c", "event": self.rng.choice(("estop", "hold", "release"))},
        ]
        seed = json.dumps(self.rng.choice(bodies)).encode()
        odd = (b'"\\ud800"', b"[" * 5000, b"1e999999", b'{"client": ' * 500, b"\xff\xfe", b"null")
        die = self.rng.random()
        body = (
            seed
            if die < 0.2
            else self.rng.choice(odd)
            if die < 0.4
            else mutate.mangle(seed, self.rng)
        )
        headers = {
            "content-type": self.rng.choice(
                ("application/json", "text/plain", "multipart/form-data")
            )
        }
        if self.rng.random() < 0.1:
            headers[self.rng.choice(("cookie", "x-forwarded-for", "content-encoding"))] = (
                "a=b; =; gzip"
            )
        self.thrown += 1
        try:
            answer = client.request(method, path, content=body, headers=headers)
            self.answers[str(answer.status_code)] += 1
            assert answer.status_code != 500, (method, path, body, answer.text)
        except httpx.InvalidURL:
            self.answers["no address"] += 1
        except httpx.TransportError as error:
            self.answers[type(error).__name__] += 1

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


class Tabs(Thrower):
    """Websockets of people who are logged in."""

    def __init__(self, heads: Whole, rng: random.Random):
        super().__init__(heads, rng)
        self._trust = heads.trust()

    def once(self) -> None:
        asyncio.run(self._once(self.rng.choice(("vic", "ann", "eng"))))

    async def _once(self, name: str) -> None:
        headers, trust = {"origin": self.heads.url}, self._trust
        async with httpx.AsyncClient(
            base_url=self.heads.url, headers=headers, verify=trust, timeout=CALL_S
        ) as http:
            body = {"operator": name, "token": self.heads.secrets[name]}
            await http.post("/api/login", json=body)
            ticket = (await http.post("/api/ticket", json={})).json()["ticket"]
            cookie = f"{COOKIE}={http.cookies[COOKIE]}"
        url = f"{self.heads.url.replace('http', 'ws', 1)}/ws?ticket={ticket}"
        try:
            async with connect(
                url, origin=self.heads.url, additional_headers={"cookie": cookie},  # type: ignore[arg-type]
                proxy=None, close_timeout=1, ssl=trust if trust is not True else None,  # type: ignore[arg-type]
            ) as live:  # fmt: skip
                for _ in range(self.rng.choice((5, 50, 400))):
                    self.thrown += 1
                    await live.send(self._message())
        except (WebSocketException, OSError, TimeoutError) as error:
            self.answers[type(error).__name__] += 1

    def _message(self) -> str | bytes:
        kind = self.rng.choice((*MESSAGES, "nonsense"))
        values: tuple[Any, ...] = (
            None, 0, -1, 1 << 70, 1e308, "arm-1", "a" * 300, [], ["arm-1"] * 300, {}, True,
            [0.0, None, 1], [1 << 70], [[0.0]], ["x"],
        )  # fmt: skip
        keys = ("robot", "action", "valid_ms", "robots", "camera", "seen_s", "rested_ms")
        message = {"type": kind} | {
            k: self.rng.choice(values) for k in keys if self.rng.random() < 0.7
        }
        text = json.dumps(message)
        die = self.rng.random()
        if die < 0.6:
            return text
        if die < 0.7:
            return self.rng.choice(("[" * 4000, "NaN", '{"type": NaN}', "x" * 10_000, '"\\ud800"'))
        spoilt = mutate.mangle(text.encode(), self.rng)[:12_000]
        return spoilt if die < 0.8 else spoilt.decode("latin-1")


THROWERS: dict[str, Callable[[Whole, random.Random], Thrower]] = {
    "gRPC": Calls,
    "fresh lane": Lane,
    "TCP and TLS": Wires,
    "HTTP": Requests,
    "websocket": Tabs,
}
SHARES = {"gRPC": 0.4, "fresh lane": 0.35, "TCP and TLS": 0.05, "HTTP": 0.1, "websocket": 0.1}
"""Of all frames."""
