"""The replay buffer's process: the only writer of its LMDB, fed by the experience service."""

import logging
import os
import shutil

from comms.experience_service import ExperienceService
from comms.hub_client import HubClient
from comms.pb import hub_pb2
from comms.serving import serve
from user_system.cluster import dial
from user_system.cluster.configs import ReplayHostConfig
from user_system.cluster.process import Life, run
from user_system.core.errors import LinkError, MissingError
from user_system.replay.store import Store

REPORT_S = 1.0
log = logging.getLogger(__name__)


def main(config: ReplayHostConfig, life: Life) -> None:
    """Store what arrives until told to stop."""
    me, allow = dial.credentials(config.link), dial.allow_list(config.link)
    check_space(config)
    with (
        Store(config.directory).open(create=True) as store,
        serve([ExperienceService(store)], credentials=me, allow=allow, address=config.link.replay),
        dial.tunnel(config.link) as way,
    ):
        hub = HubClient(way)
        life.ready()
        while not life.stop.wait(REPORT_S):
            report = hub_pb2.ProcessReport(
                name="replay", kind="replay", pid=os.getpid(), figures=dict(store.stats())
            )
            try:
                hub.report(report)
            except LinkError as error:  # experience is kept whether or not the hub listens
                log.info("the hub did not hear our report: %s", error)


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
