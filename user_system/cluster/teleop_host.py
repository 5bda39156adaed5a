"""The page's process: people's view of the run and their hands in it."""

from comms.audit import AuditClient
from comms.credentials import read
from comms.enrolment import EnrolmentClient
from comms.fresh import FreshPeer
from comms.hub_client import HubClient
from user_system.cluster import dial
from user_system.cluster.configs import TeleopHostConfig
from user_system.cluster.process import Life, run
from user_system.teleop.app import TeleopConfig, make_app
from user_system.teleop.auth import Accounts
from user_system.teleop.page import Page

LOOK_S = 1.0
"""How often it is looked whether the page's certificate was renewed."""


def main(config: TeleopHostConfig, life: Life) -> None:
    """Serve the page until told to stop."""
    wallet = dial.wallet(config.link)
    with dial.tunnel(config.link) as way:
        fresh = FreshPeer(way, role="viewer", robots=("*",), previews=("*",))
        accounts = Accounts.load(config.accounts)
        app = make_app(
            TeleopConfig(
                run=config.run,
                hosts=config.names,
                secure=config.tls,
                authority=read(config.link.pki / "ca.crt"),
            ),
            accounts=accounts,
            hub=HubClient(way),
            fresh=fresh,
            # An invitation's secret never travels in the open.
            enrolment=EnrolmentClient(way) if config.tls else None,
            note=AuditClient(way).note,
        )
        bundle = config.link.pki / f"{config.link.name}.pem"
        certificate = bundle if config.tls else None
        page = Page(app, host=config.host, port=config.port, certificate=certificate)
        fresh.start()
        page.start()
        life.ready({"url": page.url})
        shown = wallet()
        while not life.stop.wait(LOOK_S):
            if wallet() is not shown:
                shown = wallet()
                page.renew()
        page.close()
        fresh.close()


if __name__ == "__main__":
    run(main, TeleopHostConfig)
