"""The replay's service without TLS, on the loopback: what mutual TLS is compared with.

    python -m user_system.cluster.bench.net_plain serve|send

It exists for this comparison alone. Nothing outside this package imports it, and it listens on
127.0.0.1 only, on a store of its own. One process serves both kinds, each with its own store, so
that they differ in nothing but TLS.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any

import grpc

from comms.credentials import AllowList, Credentials
from comms.experience_service import ExperienceService
from comms.pb import experience_pb2 as pb
from comms.pb import experience_pb2_grpc
from comms.serving import serve as serve_securely
from comms.tunnel import CHANNEL_OPTIONS, Service, Tunnel
from user_system.cluster.bench import replay_child
from user_system.cluster.bench.ingest_producer import Producer
from user_system.cluster.configs import LinkConfig
from user_system.core.errors import LinkError
from user_system.replay.store import Store

_LOOPBACK = "127.0.0.1:0"


class _Introduced:
    """A call without TLS, of a caller that is taken for the host it is started as."""

    def __init__(self, context: grpc.ServicerContext, certificate: bytes):
        self._context, self._certificate = context, certificate

    def auth_context(self) -> dict[str, list[bytes]]:
        """Return what TLS would have proved."""
        return {"x509_pem_cert": [self._certificate]}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class _Plain(experience_pb2_grpc.ExperienceServicer):
    """The same service, for a caller that proves nothing."""

    def __init__(self, service: ExperienceService, certificate: bytes):
        self._service, self._certificate = service, certificate

    def Stream(  # noqa: N802 (gRPC's name)
        self, requests: Iterator[pb.HostMessage], context: grpc.ServicerContext
    ) -> Iterator[pb.ReplayMessage]:
        """Take the experience of one host."""
        introduced: Any = _Introduced(context, self._certificate)
        yield from self._service.Stream(requests, introduced)


class Servers:
    """Both kinds."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def open(self, directory: str, host: str) -> dict[str, int]:
        """Serve; return the port of each kind."""
        place = Path(directory)
        me, allow = Credentials.load(place / "pki", "replay"), AllowList(place / "pki")
        securely = ExperienceService(self._store(place / "tls"))
        server = serve_securely([securely], credentials=me, allow=allow, address=_LOOPBACK)
        self._stack.enter_context(server)
        plain = ExperienceService(self._store(place / "plain"))
        certificate = Credentials.load(place / "pki", host).certificate
        return {"tls": server.port, "plain": self._serve_plainly(plain, certificate)}

    def close(self) -> None:
        """Serve no more."""
        self._stack.close()

    def _store(self, path: Path) -> Store:
        store = Store(path)
        self._stack.enter_context(store.open(create=True))
        return store

    def _serve_plainly(self, service: ExperienceService, certificate: bytes) -> int:
        server = grpc.server(ThreadPoolExecutor(64), options=CHANNEL_OPTIONS)
        register: Any = experience_pb2_grpc.add_ExperienceServicer_to_server
        register(_Plain(service, certificate), server)
        port: int = server.add_insecure_port(_LOOPBACK)
        service.start()
        server.start()
        self._stack.callback(service.close)
        self._stack.callback(lambda: server.stop(1.0).wait())
        return port


class _PlainTunnel:
    """The way to a server of this module."""

    def __init__(self, address: str):
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)

    def channel(self, service: Service) -> grpc.Channel:
        """Return the one channel."""
        return self._channel

    def fresh(self, context: Any) -> Any:
        """There is no hub here."""
        raise LinkError("there is no hub here")

    def trouble(self) -> str:
        """Nothing is known to be in the way."""
        return ""

    def stats(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class PlainProducer(Producer):
    """The producer of ``bench ingest``, without TLS."""

    def tunnel(self, config: LinkConfig) -> AbstractContextManager[Tunnel]:
        """Return the way to the head."""
        return closing(_PlainTunnel(config.replay))


def main() -> None:
    """Serve, or send."""
    if sys.argv[1:] == ["serve"]:
        servers = Servers()
        with closing(servers):
            replay_child.serve({"open": servers.open})
        return
    producer = PlainProducer()
    with closing(producer):
        questions = (producer.connect, producer.begin, producer.end, producer.count)
        replay_child.serve({question.__name__: question for question in questions})


if __name__ == "__main__":
    main()
