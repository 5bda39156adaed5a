"""Telling the hub how a process does, until it is to end."""

import logging
import os
from collections.abc import Callable, Mapping

from comms.hub_client import HubClient
from comms.pb import hub_pb2
from comms.tunnel import Tunnel
from user_system.cluster.process import Life
from user_system.core.errors import LinkError, SecurityError

REPORT_S = 1.0
log = logging.getLogger(__name__)


def report(
    way: Tunnel, life: Life, name: str, kind: str, figures: Callable[[], Mapping[str, float]]
) -> None:
    """Report ``figures()`` once a second; return when the process should end.

    The process does its work whether or not the hub listens, or wants to hear of it: what a site
    keeps itself is kept also where the head has thrown its host out.
    """
    hub = HubClient(way)
    while not life.stop.wait(REPORT_S):
        message = hub_pb2.ProcessReport(
            name=name, kind=kind, pid=os.getpid(), figures=dict(figures())
        )
        try:
            hub.report(message)
        except (LinkError, SecurityError) as error:
            log.info("the hub did not hear our report: %s", error)
