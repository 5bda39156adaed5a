"""Who draws from a robot host's own shard for learners: dials the head and offers what it has.

Nothing listens here. Like any reader it maps the store read-only, so that draws are no matter of
the process that acknowledges what robots recorded.
"""

from comms.data_service import DataService
from comms.shard_offer import ShardOffer
from user_system.cluster import dial, heartbeat
from user_system.cluster.configs import OfferHostConfig
from user_system.cluster.process import Life, run
from user_system.cluster.reader_host import window
from user_system.replay.store import reader


def main(config: OfferHostConfig, life: Life) -> None:
    """Draw for whoever the head lets in until told to stop."""
    with reader(config.directory).open() as env, dial.tunnel(config.link) as way:
        service = DataService(lambda opening: window(env, opening))
        offer = ShardOffer(way, config.link.name, service)
        offer.start()
        life.ready()
        try:
            heartbeat.report(way, life, f"reader-{config.link.name}", "reader", offer.stats)
        finally:
            offer.close()


if __name__ == "__main__":
    run(main, OfferHostConfig)
