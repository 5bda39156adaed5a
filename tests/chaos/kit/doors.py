"""A page that takes robot hosts in, with the hub that signs for it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from comms.authority import Authority
from comms.credentials import AllowList, Role
from comms.enrolment import EnrolmentClient, EnrolmentService
from comms.hub_client import HubClient
from comms.hub_service import HubService
from comms.invitations import Invitations
from comms.serving import serve
from comms.tunnel import Endpoints, open_tunnel
from comms.wallet import DiskWallet
from user_system.core.clock import WallClock
from user_system.hub.enrolments import Enrolments
from user_system.hub.service import Hub, HubConfig
from user_system.teleop.app import TeleopConfig, make_app
from user_system.teleop.auth import Accounts
from user_system.teleop.page import Page

NAMES = ("localhost", "127.0.0.1")


class Deaf:
    """A fresh lane that hears nothing."""

    def send(self, message: Any) -> None:
        raise AssertionError(message)

    def receive(self, timeout_s: float) -> Sequence[Any]:
        time.sleep(timeout_s)
        return []


@contextmanager
def page(place: Path, name: str) -> Iterator[str]:
    """Serve inside a ``with`` block; yields the line with which robot host ``name`` joins."""
    authority = Authority.open(place / "head")
    for service in ("hub", "teleop"):
        authority.issue(service, Role.SERVICE, NAMES)
    hub = Hub(place / "hub", HubConfig("t"), WallClock())
    hub.open()
    enrolments = Enrolments(authority, hub.audit, WallClock(), {"hub": "head.lab:7400"})
    me, allow = DiskWallet(authority.directory, "hub"), AllowList(authority.directory)
    services = [HubService(hub), EnrolmentService(enrolments)]
    with serve(services, credentials=me, allow=allow) as server:
        to = Endpoints(hub=f"127.0.0.1:{server.port}")
        mine = DiskWallet(authority.directory, "teleop")
        with closing(open_tunnel("direct", to, mine)) as way:
            app = make_app(
                TeleopConfig(run="t", hosts=NAMES, secure=True, authority=authority.pem),
                accounts=Accounts({}),
                hub=HubClient(way),
                fresh=Deaf(),
                enrolment=EnrolmentClient(way),
            )
            shown = Page(app, port=0, certificate=authority.directory / "teleop.pem")
            shown.start()
            try:
                invitations = Invitations(authority, by="kim")
                yield invitations.create(name, Role.ROBOT, "localhost", shown.port, 600.0).line()
            finally:
                shown.close()
    hub.close()
