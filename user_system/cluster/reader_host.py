"""The replay reader's process: draws for learners of other hosts, beside the writer and not in it.

It reads the store by mmap as any learner of this host would. An index of everything stored, and the
time that draws take, are so no matter of the process that acknowledges what robots recorded.
Learners that want what a robot host keeps itself are passed on to it.
"""

from comms.data_service import DataService
from comms.data_wire import Opening
from comms.serving import serve
from comms.shard_relay import ShardRelay
from user_system.cluster import dial, heartbeat
from user_system.cluster.configs import ReaderHostConfig
from user_system.cluster.process import Life, run
from user_system.replay.env import Env
from user_system.replay.sampler import FOLLOW_S
from user_system.replay.served import ServedData
from user_system.replay.store import reader
from user_system.replay.views import parse_views


def main(config: ReaderHostConfig, life: Life) -> None:
    """Draw for whoever may until told to stop."""
    wallet, allow = dial.wallet(config.link), dial.allow_list(config.link)
    address = dial.listening(config.listen, config.link.reader)
    with reader(config.directory).open() as env:
        relay = ShardRelay()
        service = DataService(lambda opening: window(env, opening), relay=relay)
        with (
            serve([service, relay], credentials=wallet, allow=allow, address=address) as server,
            dial.tunnel(config.link) as way,
        ):
            life.ready()
            heartbeat.report(way, life, config.link.name, "reader", server.stats)


def window(env: Env, opening: Opening) -> ServedData:
    """Return the window that a learner asks for.

    Raises:
        ConfigError: a view of its own is none, or would hide a built-in one.
    """
    served = ServedData(
        env,
        seed=opening.seed,
        schema=opening.schema,
        follow=opening.follow,
        views=parse_views(opening.views),
    )
    served.follow_s = FOLLOW_S
    return served


if __name__ == "__main__":
    run(main, ReaderHostConfig)
