"""The writer of a robot host's own replay shard: what its robots record stays here.

Its only peer is the agent beside it, over a unix socket, with credentials that are valid between
these two: the authority of the head has no part in it, and nothing of another host gets in.
"""

import sys

from comms import near
from comms.authority import Authority
from comms.credentials import AllowList, Role
from comms.experience_service import ExperienceService
from comms.renewal import Reissuer
from comms.serving import serve
from comms.wallet import DiskWallet
from user_system.cluster import dial, heartbeat, replay_host
from user_system.cluster.configs import ShardConfig, ShardHostConfig
from user_system.cluster.process import Life, run

WRITER = "replay"
"""Peer name of the writer towards the agent."""


def main(config: ShardHostConfig, life: Life) -> None:
    """Store what arrives until told to stop."""
    sys.setswitchinterval(replay_host.SWITCH_S)
    authority = introduce(config.shard)
    wallet = DiskWallet(config.shard.pki, WRITER)
    replay_host.check_space(config.directory, config.reserve_bytes)
    config.shard.socket.unlink(missing_ok=True)
    store = replay_host.make_store(config)
    address, allow = near.address(config.shard.socket), AllowList(config.shard.pki)
    with (
        store.open(create=True),
        Reissuer(authority),
        serve([ExperienceService(store)], credentials=wallet, allow=allow, address=address),
        dial.tunnel(config.link) as way,
    ):
        life.ready()
        name = f"replay-{config.shard.host}"
        heartbeat.report(way, life, name, "replay", store.stats)


def introduce(shard: ShardConfig) -> Authority:
    """Make what writer and agent know each other by; return who made it."""
    authority = Authority.open(shard.pki)
    authority.issue(shard.host, Role.ROBOT)
    authority.issue(WRITER, Role.SERVICE)
    return authority


if __name__ == "__main__":
    run(main, ShardHostConfig)
