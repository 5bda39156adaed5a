"""Who may do what, on both lanes: mutual TLS, the role table, and CURVE with an allow-list.

There is no way to listen or to dial without these. What a role may call is a table with a row per
method; a method without a row is refused to everybody, so a forgotten row shows at once.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grpc

from comms.credentials import (
    AllowList,
    Credentials,
    Peer,
    Role,
    Shown,
    fingerprint,
    parse,
    subject,
)
from comms.doorway import Doorway
from comms.status import abort
from comms.wallet import Wallet
from user_system.core.clock import WallClock
from user_system.core.errors import LinkError, SecurityError, UserSystemError
from user_system.core.throttle import Throttle

log = logging.getLogger(__name__)

Decode = Callable[[bytes], Any]
"""A message from its bytes."""

EVERYBODY = frozenset(Role)
PEOPLE = frozenset({Role.OPERATOR, Role.ENGINEER, Role.SERVICE})
"""Roles that act for a person: the page is a service and authenticates its people itself."""

RULES: Mapping[str, frozenset[Role]] = {
    "/user_system.v1.Hub/Attach": frozenset({Role.ROBOT}),
    "/user_system.v1.Hub/Claim": PEOPLE,
    "/user_system.v1.Hub/Renew": PEOPLE,
    "/user_system.v1.Hub/Yield": PEOPLE,
    # A viewer may ask for one thing only, the stop; the service looks at what is asked.
    "/user_system.v1.Hub/Ask": PEOPLE | {Role.VIEWER},
    # Each host gets its own, by the name in its certificate.
    "/user_system.v1.Hub/Setup": frozenset({Role.ROBOT}),
    "/user_system.v1.Hub/Probe": EVERYBODY - {Role.VIEWER},
    "/user_system.v1.Hub/Status": EVERYBODY,
    # A robot host speaks of its own processes; the hub looks at their names.
    "/user_system.v1.Hub/Report": frozenset({Role.LEARNER, Role.SERVICE, Role.ROBOT}),
    # Who joins has no certificate yet: the page asks for it.
    "/user_system.v1.Enrolment/Join": frozenset({Role.SERVICE}),
    "/user_system.v1.Enrolment/Renew": EVERYBODY,
    "/user_system.v1.Enrolment/Leave": frozenset({Role.ROBOT}),
    # What people do on the page, which the hub does not see by itself.
    "/user_system.v1.Audit/Note": frozenset({Role.SERVICE}),
    "/user_system.v1.Experience/Stream": frozenset({Role.ROBOT}),
    "/user_system.v1.Experience/Label": frozenset({Role.LEARNER, Role.SERVICE, Role.ENGINEER}),
    "/user_system.v1.Experience/Stats": EVERYBODY,
    # All that was ever recorded, pictures included: for those who learn from it.
    "/user_system.v1.Data/Attach": frozenset({Role.LEARNER, Role.ENGINEER}),
    # A host with a replay shard of its own; learners that want it come through Data/Attach.
    "/user_system.v1.Shards/Offer": frozenset({Role.ROBOT}),
    # The service serves each robot to its own host only.
    "/user_system.v1.Inference/Attach": frozenset({Role.ROBOT}),
    "/user_system.v1.WeightStore/Publish": frozenset({Role.LEARNER}),
    "/user_system.v1.WeightStore/Pull": frozenset({Role.ROBOT, Role.ENGINEER, Role.SERVICE}),
    "/user_system.v1.WeightStore/List": frozenset({Role.ENGINEER}),
    "/user_system.v1.WeightStore/Rollback": frozenset({Role.ENGINEER}),
}
"""gRPC method -> roles that may call it. Everything else is refused."""

WATCH_S = 0.25
"""How often it is looked whether those who are being served are still enrolled, s."""


def server_credentials(wallet: Wallet) -> grpc.ServerCredentials:
    """Return TLS for a listener that demands a certificate of the same authority.

    A certificate that was renewed is shown from the next connection on.
    """

    def configuration(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(credentials.key, credentials.certificate)], root_certificates=credentials.authority
        )

    shown = wallet()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        if (now := wallet()) is shown:
            return None
        shown = now
        return configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        configuration(shown),
        renewed,  # type: ignore[arg-type]  # the stubs forget that None means no change
        require_client_authentication=True,
    )


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    """Return TLS for a caller that proves who it is and believes one authority only."""
    return grpc.ssl_channel_credentials(
        credentials.authority, credentials.key, credentials.certificate
    )


def identify(context: grpc.ServicerContext) -> Peer:
    """Return who is calling, from the certificate that TLS has verified.

    Raises:
        SecurityError: the certificate states no name or role of ours.
    """
    return _read(shown_pem(context)).peer


def shown_pem(context: grpc.ServicerContext) -> bytes:
    """Return the certificate that the caller has proved to hold, PEM.

    Raises:
        SecurityError: it showed none.
    """
    certificates = context.auth_context().get("x509_pem_cert")
    if not certificates:
        raise SecurityError("caller showed no certificate")
    return bytes(certificates[0])


class Gatekeeper(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in stubs only
    """Stands before every method: checks the caller, turns errors into answers.

    Who was let in stays watched while its call lives: when its certificate ceases to count,
    all its streams are ended, whatever service they belong to.

    The caller is judged before its request is read: a method of one request is served as one of a
    stream of requests, which is the same on the wire. And requests are decoded here: where gRPC is
    to do it, a call whose request cannot be decoded is kept until its connection ends.

    Args:
        allow: who is enrolled.
        rules: method -> roles; the module's table unless a test brings its own.
        doorway: what one caller may take of the server.
        refused: is told of who was refused what, at most once a second for each caller.
    """

    def __init__(
        self,
        allow: AllowList,
        rules: Mapping[str, frozenset[Role]] = RULES,
        doorway: Doorway | None = None,
        refused: Callable[[Peer, str], None] = lambda peer, method: None,
    ):
        self._allow = allow
        self._rules = rules
        self._doorway = doorway or Doorway()
        self._refused = refused
        # Who is refused can be refused thousands of times a second: the log must not fill a disk.
        self._lines = Throttle(WallClock(), 1.0, 1.0)
        self._denied = 0
        self._failed = 0
        self._cut = 0
        self._calls: dict[int, _Call] = {}
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="gatekeeper", daemon=True)

    def start(self) -> None:
        """Begin to watch calls."""
        self._watcher.start()
        self._doorway.start()

    def close(self) -> None:
        """Stop watching; idempotent."""
        self._closing.set()
        self._doorway.close()
        if self._watcher.is_alive():
            self._watcher.join()

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the handler of a method with the checks around it."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        streamed: bool = handler.request_streaming
        decode: Decode = handler.request_deserializer or bytes
        coders = (None, handler.response_serializer)
        if handler.response_streaming:
            inner: Any = (
                handler.stream_stream if handler.request_streaming else handler.unary_stream
            )
            streaming = self._streaming(method, inner, streamed, decode)
            return grpc.stream_stream_rpc_method_handler(streaming, *coders)
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
        single = self._single(method, inner, streamed, decode)
        return grpc.stream_unary_rpc_method_handler(single, *coders)

    def stats(self) -> dict[str, float]:
        """Return how many calls were refused, failed unforeseen, or were cut."""
        return {
            "denied": float(self._denied),
            "failed": float(self._failed),
            "cut": float(self._cut),
            **self._doorway.stats(),
        }

    def _check(self, method: str, shown: Shown) -> None:
        """Let the caller pass, or say who was refused what."""
        peer = shown.peer
        roles = self._rules.get(method, frozenset())
        admitted = self._allow.admits(shown)
        if peer.role in roles and admitted:
            return
        self._denied += 1
        if self._lines.take(peer.name):
            log.warning("refused %s to %s (%s)", method, peer.name, peer.role.value)
            self._refused(peer, method)
        if not admitted and self._allow.holds(peer):
            raise SecurityError(
                f"{peer.name!r} is enrolled with another certificate by now",
                todo="Was it enrolled anew elsewhere, or has its certificate run out?",
            )
        if not admitted:
            raise SecurityError(
                f"{peer.name!r} is not enrolled as {peer.role.value} (any more)",
                todo="Ask an engineer to enrol it.",
            )
        raise SecurityError(
            f"{peer.name!r} may not call {method}",
            got=f"role {peer.role.value}",
            allowed=", ".join(sorted(roles)) or "nobody",
        )

    def _watch(self) -> None:
        seen: object = None
        legible = True
        while not self._closing.wait(WATCH_S):
            try:
                version = self._allow.version()
                self._cut_uninvited(version != seen)
                seen, legible = version, True
            except Exception:  # top of a thread: a list that cannot be read refuses every new call
                if legible:
                    log.exception("cannot tell who is still enrolled")
                legible = False

    def _cut_uninvited(self, changed: bool) -> None:
        now = time.time()
        for key, call in list(self._calls.items()):
            # A certificate runs out without the list changing.
            if (changed or now >= call.shown.until) and not self._allow.keeps(call.shown):
                # Doubted before asking whether it passed: `_watched` does these the other way
                # round, so that one of the two sees the other. One that is still being checked
                # is told by the check why it may not pass, which a cut would not tell it.
                call.doubted = True
                if call.passed and self._calls.pop(key, None) is not None:
                    self._cut += 1
                    name = call.shown.peer.name
                    log.warning("call of %s cut: its certificate does not count", name)
                    call.context.cancel()  # type: ignore[no-untyped-call]

    @contextmanager
    def _watched(self, method: str, context: grpc.ServicerContext) -> Iterator[None]:
        """Check the caller, and have its call cut once it would not be let in any more."""
        call = _Call(_read(shown_pem(context)), context)
        # Before the check: a list that changes after it finds the call here.
        self._calls[id(context)] = call
        try:
            self._check(method, call.shown)
            call.passed = True
            if call.doubted:
                self._check(method, call.shown)
            with self._doorway.enter(call.shown.peer):
                yield
        finally:
            self._calls.pop(id(context), None)

    def _single(
        self,
        method: str,
        inner: Callable[[Any, grpc.ServicerContext], Any],
        streamed: bool,
        decode: Decode,
    ) -> Callable[[Iterator[Any], grpc.ServicerContext], Any]:
        def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            try:
                with self._watched(method, context):
                    request = self._request(requests, context, streamed, decode, every=True)
                    return inner(request, context)
            except UserSystemError as error:
                abort(context, error)
            except grpc.RpcError:
                # The caller went away while it was still sending.
                abort(context, LinkError("caller went away"))
            except Exception:  # top of a request: its caller hears of it, the server lives on
                self._crash(method, context)

        return call

    def _streaming(
        self,
        method: str,
        inner: Callable[[Any, grpc.ServicerContext], Iterator[Any]],
        streamed: bool,
        decode: Decode,
    ) -> Callable[[Iterator[Any], grpc.ServicerContext], Iterator[Any]]:
        def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                with self._watched(method, context):
                    request = self._request(requests, context, streamed, decode, every=False)
                    yield from inner(request, context)
            except UserSystemError as error:
                abort(context, error)
            except grpc.RpcError:
                abort(context, LinkError("caller went away"))
            except Exception:  # top of a request: its caller hears of it, the server lives on
                self._crash(method, context)

        return call

    def _request(
        self,
        requests: Iterator[bytes],
        context: grpc.ServicerContext,
        streamed: bool,
        decode: Decode,
        *,
        every: bool,
    ) -> Any:
        """Return what the method itself takes: one request, or the messages as they come."""
        if streamed:
            return self._doorway.requests(requests, context, decode, every=every)
        return self._doorway.request(requests, context, decode)

    def _crash(self, method: str, context: grpc.ServicerContext) -> None:
        self._failed += 1
        if self._lines.take(method):
            log.exception("unforeseen error in %s", method)
        context.abort(grpc.StatusCode.INTERNAL, f"unforeseen error in {method}; see the log there")


@dataclass
class _Call:
    """A call that is open, and what is known of its right to be."""

    shown: Shown
    context: grpc.ServicerContext
    passed: bool = False
    """Whether it was let in."""
    doubted: bool = False
    """Whether its caller was found not to count (any more)."""


@lru_cache(maxsize=1024)
def _read(certificate: bytes) -> Shown:
    parsed = parse(certificate)
    until = parsed.not_valid_after_utc.timestamp()
    return Shown(subject(parsed), fingerprint(parsed), until)
