"""The hub's process: registry, leases, schedule and weights over gRPC; the fresh lane beside it."""

import time
from typing import Any

from comms.audit import AuditService
from comms.authority import Authority
from comms.enrolment import EnrolmentService
from comms.fresh_hub import FreshHub
from comms.hub_service import HubService
from comms.serving import serve
from comms.weight_service import WeightService
from user_system.cluster import dial
from user_system.cluster.configs import HubHostConfig
from user_system.cluster.parse import dump
from user_system.cluster.process import Life, run
from user_system.core.clock import WallClock
from user_system.hub.enrolments import Enrolments
from user_system.hub.service import Hub, HubConfig

TICK_S = 0.1


def main(config: HubHostConfig, life: Life) -> None:
    """Serve until told to stop."""
    wallet, allow = dial.wallet(config.link), dial.allow_list(config.link)
    fresh_address = dial.listening(config.listen, config.link.fresh)
    hub = Hub(
        config.directory,
        # The floor keeps tokens rising even where the hub's directory was lost.
        HubConfig(
            run=config.run,
            token_floor=int(time.time()),
            schedule=config.schedule,
            setups=config.setups,
            owners=config.owners,
            publishers=config.publishers,
        ),
        WallClock(),
        stop=lambda message: fresh.send(message),
        announce=lambda now: fresh.announce(now.policy, now.version, now.hash, now.age_s),
    )
    fresh = FreshHub(
        wallet(),
        allow,
        fresh_address,
        owner=hub.owner,
        on_message=hub.heard,
        refused=hub.refused,
    )
    fresh.start()
    hub.open()
    authority = Authority.open(config.link.pki, config.lifetime_s)
    enrolments = Enrolments(authority, hub.audit, WallClock(), dump(config.join_facts) or {})
    hub.also(enrolments.figures, enrolments.tick)
    hub.also(lambda: {f"fresh_{name}": value for name, value in fresh.stats().items()})
    services: list[Any] = [
        HubService(hub),
        WeightService(hub.weights, hub.roll_back, hub.check_publisher),
        EnrolmentService(enrolments),
        AuditService(hub.noted),
    ]
    address = dial.listening(config.listen, config.link.hub)
    with serve(services, credentials=wallet, allow=allow, address=address, refused=hub.refused):
        life.ready()
        while not life.stop.wait(TICK_S):
            hub.tick()
    fresh.close()
    hub.close()


if __name__ == "__main__":
    run(main, HubHostConfig)
