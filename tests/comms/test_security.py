"""Who may call what: every method of every service, as every role, and as nobody."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from comms import pb
from comms.authority import Authority
from comms.credentials import AllowList, Credentials, Role
from comms.security import RULES, channel_credentials
from comms.serving import Server, serve
from user_system.core.errors import MissingError

MODULES = [import_module(f"{pb.__name__}.{module.name}") for module in iter_modules(pb.__path__)]
"""Everything that was generated, so that a new service is seen by itself."""
FILES = [module for module in MODULES if hasattr(module, "DESCRIPTOR")]
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
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
        for module in MODULES:
            for name in [name for name in vars(module) if name.endswith("Servicer_to_server")]:
                servicer = getattr(module, name[len("add_") : -len("_to_server")])
                getattr(module, name)(servicer(), server)

    def start(self) -> None: ...

    def close(self) -> None: ...

    def stats(self) -> dict[str, float]:
        return {}


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
    kind = ("stream" if method.client_streaming else "unary") + "_"
    kind += "stream" if method.server_streaming else "unary"
    call = getattr(channel, kind)(path, **coders)
    try:
        reply = call(one, timeout=GENEROUS_S)
        if method.server_streaming:
            next(reply)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    raise AssertionError(f"{path} answered")


def test_there_is_a_rule_for_each_method_and_a_method_for_each_rule() -> None:
    assert METHODS.keys() == RULES.keys()
    assert len(METHODS) >= 15


@pytest.mark.parametrize("path", sorted(METHODS))
def test_every_method_has_a_rule(path: str) -> None:
    assert RULES.get(path), f"{path} has no row in comms.security.RULES"
    assert RULES[path] <= set(Role)


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


def test_without_tls_or_certificate_nothing_is_heard(
    server: Server, credentials: Callable[[str], Credentials]
) -> None:
    target = f"127.0.0.1:{server.port}"
    path = "/user_system.v1.Hub/Status"
    with grpc.insecure_channel(target) as channel:
        assert code_of(channel, path) is grpc.StatusCode.UNAVAILABLE
    nameless = grpc.ssl_channel_credentials(credentials("hub").authority)
    with grpc.secure_channel(target, nameless) as channel:
        assert code_of(channel, path) is grpc.StatusCode.UNAVAILABLE


def test_a_stranger_is_not_heard_and_not_believed(
    server: Server, tmp_path: Path, allow: AllowList, credentials: Callable[[str], Credentials]
) -> None:
    stranger = Authority.open(tmp_path).issue("hub", Role.SERVICE)
    path = "/user_system.v1.Hub/Status"
    with grpc.secure_channel(f"127.0.0.1:{server.port}", channel_credentials(stranger)) as channel:
        assert code_of(channel, path) is grpc.StatusCode.UNAVAILABLE
    with (
        serve([Everything()], credentials=stranger, allow=AllowList(tmp_path)) as impostor,
        grpc.secure_channel(
            f"127.0.0.1:{impostor.port}", channel_credentials(credentials("ada"))
        ) as channel,
    ):
        assert code_of(channel, path) is grpc.StatusCode.UNAVAILABLE


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


def test_a_revoked_name_is_refused_though_its_certificate_is_good(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path)
    hub, gone = authority.issue("hub", Role.SERVICE), authority.issue("bob", Role.OPERATOR)
    with (
        serve([Everything()], credentials=hub, allow=AllowList(tmp_path)) as server,
        grpc.secure_channel(f"127.0.0.1:{server.port}", channel_credentials(gone)) as channel,
    ):
        path = "/user_system.v1.Hub/Status"
        assert code_of(channel, path) is PASSED
        authority.revoke("bob")
        assert code_of(channel, path) is grpc.StatusCode.PERMISSION_DENIED


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
