"""Who may do what, on both lanes: mutual TLS, the role table, and CURVE with an allow-list.

There is no way to listen or to dial without these. What a role may call is a table with a row per
method; a method without a row is refused to everybody, so a forgotten row shows at once.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import grpc

from comms.credentials import AllowList, Credentials, Peer, Role, parse, subject
from comms.status import abort
from user_system.core.errors import LinkError, SecurityError, UserSystemError

log = logging.getLogger(__name__)

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
    "/user_system.v1.Hub/Status": EVERYBODY,
    "/user_system.v1.Hub/Report": frozenset({Role.LEARNER, Role.SERVICE}),
    "/user_system.v1.Experience/Stream": frozenset({Role.ROBOT}),
    "/user_system.v1.Experience/Label": frozenset({Role.LEARNER, Role.SERVICE, Role.ENGINEER}),
    "/user_system.v1.Experience/Stats": EVERYBODY,
    # All that was ever recorded, pictures included: for those who learn from it.
    "/user_system.v1.Data/Attach": frozenset({Role.LEARNER, Role.ENGINEER}),
    "/user_system.v1.WeightStore/Offer": frozenset({Role.LEARNER}),
    "/user_system.v1.WeightStore/Put": frozenset({Role.LEARNER}),
    "/user_system.v1.WeightStore/Get": EVERYBODY - {Role.VIEWER},
    "/user_system.v1.WeightStore/Fetch": EVERYBODY - {Role.VIEWER},
}
"""gRPC method -> roles that may call it. Everything else is refused."""


def server_credentials(credentials: Credentials) -> grpc.ServerCredentials:
    """Return TLS for a listener that demands a certificate of the same authority."""
    return grpc.ssl_server_credentials(
        [(credentials.key, credentials.certificate)],
        root_certificates=credentials.authority,
        require_client_auth=True,
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
    certificates = context.auth_context().get("x509_pem_cert")
    if not certificates:
        raise SecurityError("caller showed no certificate")
    return _identify(bytes(certificates[0]))


class Gatekeeper(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in stubs only
    """Stands before every method: checks the caller, turns errors into answers.

    Args:
        allow: who is enrolled.
        rules: method -> roles; the module's table unless a test brings its own.
    """

    def __init__(self, allow: AllowList, rules: Mapping[str, frozenset[Role]] = RULES):
        self._allow = allow
        self._rules = rules
        self._denied = 0
        self._failed = 0

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
        coders = (handler.request_deserializer, handler.response_serializer)
        if handler.response_streaming:
            inner: Any = (
                handler.stream_stream if handler.request_streaming else handler.unary_stream
            )
            streaming = self._streaming(method, inner)
            if handler.request_streaming:
                return grpc.stream_stream_rpc_method_handler(streaming, *coders)
            return grpc.unary_stream_rpc_method_handler(streaming, *coders)
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
        single = self._single(method, inner)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(single, *coders)
        return grpc.unary_unary_rpc_method_handler(single, *coders)

    def stats(self) -> dict[str, float]:
        """Return how many calls were refused, and how many failed unforeseen."""
        return {"denied": float(self._denied), "failed": float(self._failed)}

    def _check(self, method: str, context: grpc.ServicerContext) -> None:
        """Let the caller pass, or say who was refused what."""
        peer = identify(context)
        roles = self._rules.get(method, frozenset())
        if peer.role in roles and self._allow.holds(peer):
            return
        self._denied += 1
        log.warning("refused %s to %s (%s)", method, peer.name, peer.role.value)
        if not self._allow.holds(peer):
            raise SecurityError(
                f"{peer.name!r} is not enrolled as {peer.role.value} (any more)",
                todo="Ask an engineer to enrol it.",
            )
        raise SecurityError(
            f"{peer.name!r} may not call {method}",
            got=f"role {peer.role.value}",
            allowed=", ".join(sorted(roles)) or "nobody",
        )

    def _single(
        self, method: str, inner: Callable[[Any, grpc.ServicerContext], Any]
    ) -> Callable[[Any, grpc.ServicerContext], Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                self._check(method, context)
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
        self, method: str, inner: Callable[[Any, grpc.ServicerContext], Iterator[Any]]
    ) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                self._check(method, context)
                yield from inner(request, context)
            except UserSystemError as error:
                abort(context, error)
            except grpc.RpcError:
                abort(context, LinkError("caller went away"))
            except Exception:  # top of a request: its caller hears of it, the server lives on
                self._crash(method, context)

        return call

    def _crash(self, method: str, context: grpc.ServicerContext) -> None:
        self._failed += 1
        log.exception("unforeseen error in %s", method)
        context.abort(grpc.StatusCode.INTERNAL, f"unforeseen error in {method}; see the log there")


@lru_cache(maxsize=1024)
def _identify(certificate: bytes) -> Peer:
    return subject(parse(certificate))
