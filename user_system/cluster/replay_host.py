"""The replay buffer's process: the only writer of its LMDB, fed by the experience service."""

import shutil
import sys

from comms.experience_service import ExperienceService
from comms.serving import serve
from user_system.cluster import dial, heartbeat
from user_system.cluster.configs import ReplayHostConfig
from user_system.cluster.process import Life, run
from user_system.core.errors import MissingError
from user_system.replay.store import Store

_SWITCH_S = 0.0002
"""How long a thread may keep the interpreter when another one wants it."""


def main(config: ReplayHostConfig, life: Life) -> None:
    """Store what arrives until told to stop."""
    # Who commits gives up the interpreter at every call into LMDB. Whoever took it meanwhile, to
    # make blocks or to serve a connection, must not keep it for the 5 ms that Python allows.
    sys.setswitchinterval(_SWITCH_S)
    wallet, allow = dial.wallet(config.link), dial.allow_list(config.link)
    address = dial.listening(config.listen, config.link.replay)
    check_space(config)
    store = Store(
        config.directory,
        codecs=config.codecs,
        # The file may be a quarter larger than what it holds.
        quota_bytes=int(config.size_bytes / 1.3),
        reserve_bytes=config.reserve_bytes,
    )
    with (
        store.open(create=True),
        serve([ExperienceService(store)], credentials=wallet, allow=allow, address=address),
        dial.tunnel(config.link) as way,
    ):
        life.ready()
        heartbeat.report(way, life, "replay", "replay", store.stats)


def check_space(config: ReplayHostConfig) -> None:
    """Check that the disk has room before accepting anything.

    Raises:
        MissingError: less than the reserve is free.
    """
    config.directory.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(config.directory.parent).free
    if free < config.reserve_bytes:
        raise MissingError(
            f"not enough space for the replay buffer at {config.directory}",
            got=f"{free / 2**30:.2f} GiB free",
            allowed=f"at least {config.reserve_bytes / 2**30:.2f} GiB",
            todo="Make space, or choose another disk with --set run_dir=PATH.",
        )


if __name__ == "__main__":
    run(main, ReplayHostConfig)
