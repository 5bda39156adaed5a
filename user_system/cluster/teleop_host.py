"""The page's process: people's view of the run and their hands in it."""

from comms.fresh import FreshPeer
from comms.hub_client import HubClient
from user_system.cluster import dial
from user_system.cluster.configs import TeleopHostConfig
from user_system.cluster.process import Life, run
from user_system.teleop.app import TeleopConfig, make_app
from user_system.teleop.auth import Accounts
from user_system.teleop.page import Page


def main(config: TeleopHostConfig, life: Life) -> None:
    """Serve the page until told to stop."""
    with dial.tunnel(config.link) as way:
        fresh = FreshPeer(way, role="viewer", robots=("*",), previews=("*",))
        accounts = Accounts.load(config.accounts)
        app = make_app(
            TeleopConfig(run=config.run), accounts=accounts, hub=HubClient(way), fresh=fresh
        )
        page = Page(app, host=config.host, port=config.port)
        fresh.start()
        page.start()
        life.ready({"url": page.url})
        life.stop.wait()
        page.close()
        fresh.close()


if __name__ == "__main__":
    run(main, TeleopHostConfig)
