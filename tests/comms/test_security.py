"""Who may call what: every method of every service, as every role, and as nobody.

Services are found, not listed: one that is added to ``proto/`` is in all of this by itself, and
fails it as long as it has no row in ``comms.security.RULES``.
"""

import dataclasses
import importlib
import pkgutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

import comms.pb
from comms import authority as authority_module
from comms.authority import Authority, locked
from comms.credentials import (
    AllowList,
    Credentials,
    Peer,
    Role,
    Shown,
    parse,
    read,
    read_allowed,
    read_curve,
    read_secret,
    split,
)
from comms.experience_service import ExperienceService
from comms.hub_service import HubService
from comms.inference_service import InferenceService
from comms.security import RULES, WATCH_S, channel_credentials
from comms.serving import Server, serve
from user_system.core.clock import WallClock
from user_system.core.errors import MissingError
from user_system.hub.service import Hub, HubConfig


def _methods() -> dict[str, MethodDescriptor]:
    """Return every method of every service of ``proto/``, by its path on the wire."""
    found = {}
    for module in pkgutil.iter_modules(comms.pb.__path__, "comms.pb."):
        if not module.name.endswith("_pb2"):
            continue
        file = importlib.import_module(module.name).DESCRIPTOR
        for service in file.services_by_name.values():
            found |= {f"/{service.full_name}/{m.name}": m for m in service.methods}
    return found


METHODS = _methods()
PEERS = {
    Role.VIEWER: "eve",
    Role.OPERATOR: "ada",
    Role.ENGINEER: "kim",
    Role.ROBOT: "host-1",
    Role.LEARNER: "learner",
    Role.SERVICE: "teleop",
}
GENEROUS_S = 60.0
PASSED = grpc.StatusCode.INTERNAL


class Everything:
    """All services, none implemented: who passes the gate runs into an INTERNAL error."""

    def register(self, server: grpc.Server) -> None:
        for path, method in METHODS.items():
            server.add_generic_rpc_handlers([_unimplemented(path, method)])

    def start(self) -> None: ...

    def close(self) -> None: ...

    def stats(self) -> dict[str, float]:
        return {}


def _unimplemented(path: str, method: MethodDescriptor) -> grpc.GenericRpcHandler:
    def single(request: Any, context: Any) -> Any:
        raise NotImplementedError

    def streaming(request: Any, context: Any) -> Iterator[Any]:
        raise NotImplementedError
        yield

    make = getattr(grpc, f"{kind_of(method)}_rpc_method_handler")
    coders = {
        "request_deserializer": GetMessageClass(method.input_type).FromString,
        "response_serializer": GetMessageClass(method.output_type).SerializeToString,
    }
    _, service, name = path.split("/")
    handler = make(streaming if method.server_streaming else single, **coders)
    return grpc.method_handlers_generic_handler(service, {name: handler})


def kind_of(method: MethodDescriptor) -> str:
    ends = (method.client_streaming, method.server_streaming)
    return "_".join("stream" if end else "unary" for end in ends)


@pytest.fixture
def server(credentials: Callable[[str], Credentials], allow: AllowList) -> Iterator[Server]:
    with serve([Everything()], credentials=credentials("hub"), allow=allow) as server:
        yield server


def code_of(channel: grpc.Channel, path: str) -> grpc.StatusCode:
    """Call a method with an empty request, whatever its kind, and return how it ended."""
    method = METHODS[path]
    request = GetMessageClass(method.input_type)()
    coders: dict[str, Any] = {
        "request_serializer": type(request).SerializeToString,
        "response_deserializer": GetMessageClass(method.output_type).FromString,
    }
    one: Any = iter([request]) if method.client_streaming else request
    call = getattr(channel, kind_of(method))(path, **coders)
    try:
        reply = call(one, timeout=GENEROUS_S)
        if method.server_streaming:
            next(reply)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    raise AssertionError(f"{path} answered")


def test_the_walk_sees_all_services() -> None:
    protos = Path(__file__).parents[2] / "proto"
    told = sum(text.count("\n  rpc ") for text in (p.read_text() for p in protos.glob("*.proto")))
    assert len(METHODS) == told > 15


def test_methods_and_rules_are_the_same() -> None:
    assert METHODS.keys() == RULES.keys()
    assert all(roles and roles <= set(Role) for roles in RULES.values())


def test_what_was_recorded_is_drawn_by_learners_and_engineers_only() -> None:
    assert RULES["/user_system.v1.Data/Attach"] == {Role.LEARNER, Role.ENGINEER}


@pytest.mark.parametrize("role", list(Role))
def test_every_role_on_every_method(
    role: Role, server: Server, credentials: Callable[[str], Credentials]
) -> None:
    secret = channel_credentials(credentials(PEERS[role]))
    with grpc.secure_channel(f"127.0.0.1:{server.port}", secret) as channel:
        for path in METHODS:
            expected = PASSED if role in RULES[path] else grpc.StatusCode.PERMISSION_DENIED
            assert code_of(channel, path) is expected, path
    denied = sum(role not in roles for roles in RULES.values())
    assert server.stats()["denied"] == denied


def test_a_method_without_a_rule_is_refused_to_everybody(
    credentials: Callable[[str], Credentials],
    allow: AllowList,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = "/user_system.v1.Hub/Status"
    monkeypatch.delitem(RULES, path)  # type: ignore[arg-type]
    with serve([Everything()], credentials=credentials("hub"), allow=allow) as server:
        for name in PEERS.values():
            secret = channel_credentials(credentials(name))
            with grpc.secure_channel(f"127.0.0.1:{server.port}", secret) as channel:
                assert code_of(channel, path) is grpc.StatusCode.PERMISSION_DENIED


# --- credentials that are none, on every method ---------------------------------------------------


@contextmanager
def open_channel(port: int, secret: grpc.ChannelCredentials | None) -> Iterator[grpc.Channel]:
    target = f"127.0.0.1:{port}"
    channel = grpc.secure_channel(target, secret) if secret else grpc.insecure_channel(target)
    with channel:
        yield channel


def every_method_is_refused(
    port: int, secret: grpc.ChannelCredentials | None, code: grpc.StatusCode
) -> None:
    with open_channel(port, secret) as channel:
        assert {path: code_of(channel, path) for path in METHODS} == dict.fromkeys(METHODS, code)


def test_without_tls_nothing_is_heard(server: Server) -> None:
    every_method_is_refused(server.port, None, grpc.StatusCode.UNAVAILABLE)


def test_without_a_certificate_nothing_is_heard(
    server: Server, credentials: Callable[[str], Credentials]
) -> None:
    nameless = grpc.ssl_channel_credentials(credentials("hub").authority)
    every_method_is_refused(server.port, nameless, grpc.StatusCode.UNAVAILABLE)


@pytest.mark.parametrize("role", list(Role))
def test_a_peer_of_another_run_is_not_heard(
    role: Role, server: Server, tmp_path: Path, credentials: Callable[[str], Credentials]
) -> None:
    foreign = Authority.open(tmp_path).issue(PEERS[role], role)
    # It believes our server, so that only its own certificate can be what is wrong.
    believing = dataclasses.replace(foreign, authority=credentials("hub").authority)
    secret = channel_credentials(believing)
    every_method_is_refused(server.port, secret, grpc.StatusCode.UNAVAILABLE)


def expiring(directory: Path, life_s: float) -> Credentials:
    """Return credentials of an engineer that are valid for ``life_s`` from now on."""
    authority = Authority.open(directory, life_s)
    with locked(directory):
        authority._make("old", Role.ENGINEER, ())
        authority_module._create_curve(directory, "old")
        certificate, key = split(read_secret(directory / "old.pem"))
        public, secret = read_curve(directory / "old.curve")
        entries = read_allowed(directory)
        authority._allow(entries, Peer("old", Role.ENGINEER), public, parse(certificate))
    hub = read(directory / "hub.pub").strip()
    ca = read(directory / "ca.crt")
    return Credentials(Peer("old", Role.ENGINEER), certificate, ca, public, hub, key, secret)


def test_what_has_expired_is_not_heard(tmp_path: Path) -> None:
    old = expiring(tmp_path, -5.0)
    hub = Authority.open(tmp_path).issue("hub", Role.SERVICE)
    with serve([Everything()], credentials=hub, allow=AllowList(tmp_path)) as server:
        secret = channel_credentials(old)
        every_method_is_refused(server.port, secret, grpc.StatusCode.UNAVAILABLE)


def test_what_expires_on_a_connection_is_heard_no_more(
    tmp_path: Path,
) -> None:
    hub = Authority.open(tmp_path).issue("hub", Role.SERVICE)
    old = expiring(tmp_path, 8.0)
    until = time.monotonic() + 9.0
    path = "/user_system.v1.Hub/Status"
    with (
        serve([Everything()], credentials=hub, allow=AllowList(tmp_path)) as server,
        open_channel(server.port, channel_credentials(old)) as channel,
    ):
        assert code_of(channel, path) is PASSED
        time.sleep(max(0.0, until - time.monotonic()))
        codes = {code_of(channel, path) for path in METHODS}
        assert codes == {grpc.StatusCode.PERMISSION_DENIED}


@pytest.mark.parametrize("role", list(Role))
def test_a_revoked_peer_may_call_nothing(role: Role, tmp_path: Path) -> None:
    authority = Authority.open(tmp_path)
    hub, gone = authority.issue("hub", Role.SERVICE), authority.issue("bob", role)
    authority.revoke("bob")
    with serve([Everything()], credentials=hub, allow=AllowList(tmp_path)) as server:
        with open_channel(server.port, channel_credentials(gone)) as channel:
            codes = {path: code_of(channel, path) for path in METHODS}
        refusals = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE}
        assert set(codes.values()) <= refusals


class RevokesMeanwhile(AllowList):
    """An allow-list on which "bob" is revoked while somebody is being looked up in it."""

    def __init__(self, directory: Path, *, looked_first: bool):
        super().__init__(directory)
        self._directory = directory
        self._looked_first = looked_first

    def admits(self, shown: Shown) -> bool:
        looked = super().admits(shown)
        if shown.peer.name == "bob" and looked:
            Authority.open(self._directory).revoke("bob")
            time.sleep(3 * WATCH_S)  # those who watch open calls notice
        return looked if self._looked_first else super().admits(shown)


@pytest.mark.parametrize("looked_first", [True, False])
def test_who_is_revoked_while_being_looked_up_is_told_so(
    tmp_path: Path, looked_first: bool
) -> None:
    authority = Authority.open(tmp_path)
    hub, bob = authority.issue("hub", Role.SERVICE), authority.issue("bob", Role.ENGINEER)
    allow = RevokesMeanwhile(tmp_path, looked_first=looked_first)
    with (
        serve([Everything()], credentials=hub, allow=allow) as server,
        open_channel(server.port, channel_credentials(bob)) as channel,
    ):
        code = code_of(channel, "/user_system.v1.Hub/Status")
        assert code is grpc.StatusCode.PERMISSION_DENIED


def test_an_impostor_is_not_believed(
    tmp_path: Path, credentials: Callable[[str], Credentials]
) -> None:
    stranger = Authority.open(tmp_path).issue("hub", Role.SERVICE)
    with (
        serve([Everything()], credentials=stranger, allow=AllowList(tmp_path)) as impostor,
        open_channel(impostor.port, channel_credentials(credentials("ada"))) as channel,
    ):
        assert code_of(channel, "/user_system.v1.Hub/Status") is grpc.StatusCode.UNAVAILABLE


# --- another robot's host -------------------------------------------------------------------------

OF_A_ROBOT = {"robot", "robots", "producer", "source", "sources"}


def names_a_robot(message: Descriptor, depth: int = 4) -> bool:
    return any(
        field.name in OF_A_ROBOT
        or (
            depth
            and field.message_type is not None
            and names_a_robot(field.message_type, depth - 1)
        )
        for field in message.fields
    )


FOREIGN = {"producer": "arm-1", "epoch": 1, "boot": "b"}
ANOTHER: dict[str, list[dict[str, Any]]] = {
    "/user_system.v1.Hub/Attach": [
        {"hello": {"host": "host-2", "boot": "b", "robots": [{"name": "arm-1"}]}}
    ],
    "/user_system.v1.Experience/Stream": [
        {"hello": {"host": "host-2", "sources": [FOREIGN]}},
        {"fragments": {"fragments": [{"source": FOREIGN}]}},
    ],
    "/user_system.v1.Inference/Attach": [{"hello": {"robot": "arm-1"}}],
}
"""Method that a robot host may call and that names robots -> what it says of another host's."""


def test_every_method_by_which_a_host_speaks_for_robots_is_tried() -> None:
    open_to_hosts = {path for path in METHODS if Role.ROBOT in RULES[path]}
    assert {p for p in open_to_hosts if names_a_robot(METHODS[p].input_type)} == ANOTHER.keys()


@pytest.mark.parametrize("path", sorted(ANOTHER))
def test_a_host_speaks_for_no_robot_of_another(
    path: str, tmp_path: Path, credentials: Callable[[str], Credentials], allow: AllowList
) -> None:
    owners = {"arm-1": "host-1", "arm-2": "host-2"}
    hub = Hub(tmp_path, HubConfig(run="run", owners=owners), WallClock())
    hub.open()
    services: list[Any] = [
        HubService(hub),
        ExperienceService(Nothing(), owners=owners),
        InferenceService(owners, pytest.fail),
    ]
    message = GetMessageClass(METHODS[path].input_type)
    said = [message(**part) for part in ANOTHER[path]]
    with (
        serve(services, credentials=credentials("hub"), allow=allow) as server,
        open_channel(server.port, channel_credentials(credentials("host-2"))) as channel,
    ):
        call = channel.stream_stream(path, message.SerializeToString, bytes)
        with pytest.raises(grpc.RpcError) as refused:
            list(call(iter(said), timeout=GENEROUS_S))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "arm-1" in refused.value.details()
    hub.close()


class Nothing:
    """An ``Ingest`` that must not be asked."""


def test_a_robot_cannot_pass_itself_off_as_the_hub(
    credentials: Callable[[str], Credentials], allow: AllowList
) -> None:
    with (
        serve([Everything()], credentials=credentials("host-2"), allow=allow) as impostor,
        grpc.secure_channel(
            f"127.0.0.1:{impostor.port}", channel_credentials(credentials("host-1"))
        ) as channel,
    ):
        code = code_of(channel, "/user_system.v1.Hub/Status")
        assert code is grpc.StatusCode.UNAVAILABLE


def test_a_port_in_use_is_said_clearly(
    server: Server, credentials: Callable[[str], Credentials], allow: AllowList
) -> None:
    with pytest.raises(MissingError, match=rf"127\.0\.0\.1:{server.port}.*in use"):
        serve(
            [Everything()],
            credentials=credentials("hub"),
            allow=allow,
            address=f"127.0.0.1:{server.port}",
        )


STREAMS = sorted(p for p, m in METHODS.items() if m.client_streaming or m.server_streaming)


class Endless:
    """All streaming methods, each of which speaks once and then goes on for good."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def register(self, server: grpc.Server) -> None:
        for path in STREAMS:
            server.add_generic_rpc_handlers([_endless(path, METHODS[path], self.taken)])

    def start(self) -> None: ...

    def close(self) -> None: ...

    def stats(self) -> dict[str, float]:
        return {}


def _endless(path: str, method: MethodDescriptor, taken: list[str]) -> grpc.GenericRpcHandler:
    answer = GetMessageClass(method.output_type)()

    def single(requests: Any, context: Any) -> Any:
        for _ in requests:
            taken.append(path)
        return answer

    def streaming(request: Any, context: Any) -> Iterator[Any]:
        over = threading.Event()
        context.add_callback(over.set)
        taken.append(path)
        yield answer
        over.wait(GENEROUS_S)

    make = getattr(grpc, f"{kind_of(method)}_rpc_method_handler")
    coders = {
        "request_deserializer": GetMessageClass(method.input_type).FromString,
        "response_serializer": GetMessageClass(method.output_type).SerializeToString,
    }
    _, service, name = path.split("/")
    handler = make(streaming if method.server_streaming else single, **coders)
    return grpc.method_handlers_generic_handler(service, {name: handler})


def hold(channel: grpc.Channel, path: str) -> Any:
    """Begin a call that goes on for good; return it once the server has taken it."""
    method = METHODS[path]
    message = GetMessageClass(method.input_type)()
    coders: dict[str, Any] = {
        "request_serializer": type(message).SerializeToString,
        "response_deserializer": GetMessageClass(method.output_type).FromString,
    }
    over = threading.Event()

    def requests() -> Iterator[Any]:
        yield message
        over.wait(GENEROUS_S)

    call = getattr(channel, kind_of(method))(path, **coders)
    if method.server_streaming:
        held = call(requests() if method.client_streaming else message, timeout=GENEROUS_S)
        next(held)
    else:
        held = call.future(requests(), timeout=GENEROUS_S)
    held.add_done_callback(lambda _: over.set())
    return held


def test_a_revocation_cuts_every_stream_of_every_service_and_nobody_elses(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path)
    hub = authority.issue("hub", Role.SERVICE)
    for role in set(Role) - {Role.SERVICE}:
        authority.issue(f"{role}-gone", role)
        authority.issue(f"{role}-stays", role)
    endless = Endless()
    with (
        serve([endless], credentials=hub, allow=AllowList(tmp_path)) as server,
        ExitStack() as stack,
    ):
        held: dict[str, list[Any]] = {"gone": [], "stays": []}
        for path in STREAMS:
            role = sorted(RULES[path] - {Role.SERVICE})[0]
            for fate, calls in held.items():
                secret = channel_credentials(Credentials.load(tmp_path, f"{role}-{fate}"))
                channel = stack.enter_context(open_channel(server.port, secret))
                calls.append(hold(channel, path))
        deadline = time.monotonic() + GENEROUS_S
        while len(endless.taken) < 2 * len(STREAMS):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for role in set(Role) - {Role.SERVICE}:
            authority.revoke(f"{role}-gone")
        began = time.monotonic()
        for path, call in zip(STREAMS, held["gone"], strict=True):
            assert call.code() is grpc.StatusCode.CANCELLED, path  # waits for the end
        assert time.monotonic() - began < 2.0
        assert not any(call.done() for call in held["stays"])
        assert server.stats()["cut"] == len(STREAMS)
        for call in held["stays"]:
            call.cancel()
