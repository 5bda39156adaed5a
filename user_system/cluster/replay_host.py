"""The replay buffer's process: the only writer of its LMDB, fed by the experience service."""

import shutil
import sys
from pathlib import Path

from comms.experience_service import ExperienceService
from comms.serving import serve
from user_system.cluster import dial, heartbeat
from user_system.cluster.configs import ReplayHostConfig, ShardHostConfig
from user_system.cluster.process import Life, run
from user_system.core.errors import MissingError
from user_system.replay.store import Store

SWITCH_S = 0.0002
"""How long a thread may keep the interpreter when another one wants it. Who commits gives it up at
every call into LMDB; whoever took it meanwhile, to make blocks or to serve a connection, must not
keep it for the 5 ms that Python allows."""


def main(config: ReplayHostConfig, life: Life) -> None:
    """Store what arrives until told to stop."""
    sys.setswitchinterval(SWITCH_S)
    wallet, allow = dial.wallet(config.link), dial.allow_list(config.link)
    address = dial.listening(config.listen, config.link.replay)
    check_space(config.directory, config.reserve_bytes)
    store = make_store(config)
    service = ExperienceService(store, owners=config.owners, run=config.run)
    with (
        store.open(create=True),
        serve([service], credentials=wallet, allow=allow, address=address),
        dial.tunnel(config.link) as way,
    ):
        life.ready()
        heartbeat.report(way, life, "replay", "replay", store.stats)


def make_store(config: ReplayHostConfig | ShardHostConfig) -> Store:
    """Return the store of a writer, not open yet."""
    return Store(
        config.directory,
        codecs=config.codecs,
        # The file may be a quarter larger than what it holds.
        quota_bytes=int(config.size_bytes / 1.3),
        reserve_bytes=config.reserve_bytes,
    )


def check_space(directory: Path, reserve_bytes: int) -> None:
    """Check that the disk of a store has room before accepting anything.

    Raises:
        MissingError: less than the reserve is free.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory.parent).free
    if free < reserve_bytes:
        raise MissingError(
            f"not enough space for the replay buffer at {directory}",
            got=f"{free / 2**30:.2f} GiB free",
            allowed=f"at least {reserve_bytes / 2**30:.2f} GiB",
            todo="Make space, or choose another disk with --set run_dir=PATH.",
        )


if __name__ == "__main__":
    run(main, ReplayHostConfig)
