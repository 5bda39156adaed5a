"""Serves the application: one listening socket, one thread, nothing off loopback without TLS."""

import socket
import threading
import time
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from user_system.core.addresses import is_loopback, with_port
from user_system.core.errors import LinkError, MissingError, SecurityError
from user_system.teleop.entrance import Entrance, Server
from user_system.teleop.live import MAX_MESSAGE
from user_system.teleop.slow import Guests, guarded


class Page:
    """A web server around the page.

    Args:
        app: from ``make_app``.
        host: address to listen on.
        port: 0 means any free one.
        certificate: PEM file; needed off loopback.
        key: PEM file of its key; None: it is in the same file.
    """

    def __init__(
        self,
        app: FastAPI,
        host: str = "127.0.0.1",
        port: int = 8765,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
    ):
        if certificate is None and not is_loopback(host):
            raise SecurityError(
                "the page does not listen off loopback without TLS",
                got=host,
                todo="Give it a certificate and key, or keep it on 127.0.0.1 behind a tunnel.",
            )
        self._host, self._wanted, self._tls = host, port, certificate is not None
        self._socket: socket.socket | None = None
        self.guests = Guests()
        self.entrance = Entrance(self.guests)
        self._thread: threading.Thread | None = None
        self._server = Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,  # addresses hold tickets
                server_header=False,
                proxy_headers=False,
                http=guarded(HttpToolsProtocol, self.guests),
                ws="websockets-sansio",
                ws_max_size=MAX_MESSAGE * 4,
                ws_per_message_deflate=False,  # frames are JPEG, commands are tiny
                timeout_graceful_shutdown=2,
                ssl_certfile=str(certificate) if certificate else None,
                ssl_keyfile=str(key) if key else None,
            ),
            self.entrance,
        )

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._socket.getsockname()[1]) if self._socket else self._wanted

    @property
    def url(self) -> str:
        """The page's address."""
        return f"{'https' if self._tls else 'http'}://{with_port(self._host, self.port)}"

    def start(self, timeout_s: float = 30.0) -> None:
        """Listen and serve; returns when requests are answered.

        Raises:
            MissingError: the port is in use.
            LinkError: the server did not come up.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._host, self._wanted))
        except OSError as error:
            listener.close()
            raise MissingError(
                f"the page cannot listen on {self._host}:{self._wanted}",
                got=str(error),
                todo="Free the port, or set teleop.port to another one (0: any).",
            ) from error
        self._socket = listener
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="teleop-page", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + timeout_s
        while not self._server.started:
            time.sleep(0.02)
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise LinkError("the page did not come up", todo="See its log.")

    def renew(self) -> None:
        """Read certificate and key again; connections that exist go on with the old ones."""
        config = self._server.config
        if config.ssl_certfile is not None and config.loaded and config.ssl is not None:
            config.ssl.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop serving."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
