"""``bench net``: what the data plane reaches across a network, and what that costs.

Links are emulated between network namespaces (``user_system.cluster.lab``), with the real processes
at both ends. Each figure has a module with ``IDS`` and ``measure(options) -> Iterator[Figure]``; a
new one is one line here.
"""

import importlib
import logging
from collections.abc import Iterator

from user_system.cluster.bench.figures import Figure
from user_system.cluster.bench.options import Options
from user_system.core.errors import UserSystemError

log = logging.getLogger(__name__)

FIGURES = {
    "net.wan_lost": "net_wan",
    "net.wan_backlog_s": "net_wan",
    "net.wan_ack_p99_s": "net_wan",
    "net.episode_lan_s": "net_episode",
    "net.episode_lan_ack_s": "net_episode",
    "net.episode_wan_s": "net_episode",
    "net.episode_wan_ack_s": "net_episode",
    "net.episode_remote_s": "net_remote",
    "net.reconnect_s": "net_outage",
    "net.reconnect_10min_s": "net_outage",
    "net.drain_ack_ratio": "net_outage",
    "net.fleet_ack_p99_ms": "net_fleet",
    "net.fleet_cpu_pct": "net_fleet",
    "net.fleet_cpu_pct_each": "net_fleet",
    "net.mtls_cost": "net_mtls",
    "net.weights_line_ratio": "net_weights",
    "net.weights_resent_chunks": "net_weights",
    "net.weights_ack_ratio": "net_weights_acks",
    "net.weights_vs_best_peer": "net_weights",
    "net.swap_pause_ms": "net_weights",
}
"""Figure -> the module that measures it."""

IDS = tuple(FIGURES)


def measure(options: Options) -> Iterator[Figure]:
    """Measure what is asked for; a part that fails is said so and does not stop the others."""
    for name in dict.fromkeys(FIGURES.values()):
        ids = [figure for figure, module in FIGURES.items() if module == name]
        if options.wants(*ids):
            yield from _part(name, ids, options)


def _part(name: str, ids: list[str], options: Options) -> list[Figure]:
    """Return a part's figures; where it fails, all of its figures as missed."""
    module = importlib.import_module(f"{__package__}.{name}")
    try:
        return list(module.measure(options))
    except UserSystemError as error:
        log.exception("could not measure %s", ", ".join(ids))
        return [Figure(figure, None, ok=False, note=str(error)) for figure in ids]
