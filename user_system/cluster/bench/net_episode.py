"""How long an episode takes where the policy runs on the robot host, and when the head has it all.

A hundred steps at ten a second take ten seconds, whatever the link does: observation and action do
not leave the host. Begin and end of an episode are what its own records say; acknowledged is what
the spool on the robot host no longer holds, looked at every few milliseconds.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from user_system.cluster.bench.figures import Figure, Goal, judged, quantile
from user_system.cluster.bench.net_robot import HZ, Run, robot
from user_system.cluster.bench.options import Options
from user_system.cluster.bench.records import Records
from user_system.cluster.bench.replay_stage import Stage
from user_system.cluster.bench.replay_work import FULL
from user_system.core.clock import SECOND
from user_system.core.errors import LinkError, StoreError
from user_system.core.types import Fragment
from user_system.replay.queue import Queue

LINKS = {"lan": "lan", "wan": "wan"}
IDS = ("net.episode_lan_s", "net.episode_lan_ack_s", "net.episode_wan_s", "net.episode_wan_ack_s")
_WHOLE, _ACK = Goal("<=", 10.5), Goal("<=", 1.0)
_PEERS = {"lan": "closest system: 17.3 s", "wan": "closest system: 22.0 s"}
POLL_S = 0.004
_LIMIT_S = 90.0
"""Time for everything to start, and for an episode beside its steps."""

Source = tuple[str, int]


@dataclass(frozen=True)
class Load:
    """How many episodes of how many steps."""

    episodes: int = 5
    steps: int = 100


QUICK = Load(episodes=1, steps=20)


@dataclass(frozen=True)
class Episode:
    """One episode, wall seconds."""

    steps: int
    whole_s: float
    """From the beginning of the first step to the end of the last."""
    acked_s: float | None
    """From there until all of it was acknowledged; None: that was not seen."""


@dataclass
class Acks:
    """When the spool let go of what, wall ns."""

    _seen: dict[Source, list[tuple[int, int]]] = field(default_factory=dict)

    def look(self, records: Records) -> None:
        """Look how far each source is acknowledged."""
        # First how many there were: what comes after it is not acknowledged.
        spooled, waiting = records.spooled(), records.waiting()
        for source, count in spooled.items():
            below = min(waiting.get(source, ()), default=count)
            seen = self._seen.setdefault(source, [])
            if not seen or seen[-1][1] < below:
                seen.append((time.time_ns(), below))

    def of(self, source: Source, sequence: int) -> int:
        """Return when a fragment was seen to be acknowledged; 0: it was not."""
        return next((at for at, below in self._seen.get(source, ()) if below > sequence), 0)


def measure(options: Options) -> Iterator[Figure]:
    """Measure over each link."""
    load = QUICK if options.quick else Load()
    for name, link in LINKS.items():
        ids = (f"net.episode_{name}_s", f"net.episode_{name}_ack_s")
        if options.wants(*ids):
            with Stage(options.directory, FULL) as stage:
                episodes, said = run(stage.directory, link, load)
            yield from figures(ids, episodes, load, _PEERS[name], said)


def run(directory: Path, link: str, load: Load) -> tuple[list[Episode], str]:
    """Return the episodes that the robot did, and what the link was."""
    acks = Acks()
    with robot(directory, link, load.episodes, load.steps) as here:
        found = _watch(here, acks, load)
        stats = here.lab.link.stats()
        lost = stats.up.lost / max(1, stats.up.packets)
        said = (
            f"{here.lab.link.profile.round_trip_ms:g} ms round trip, {lost:.1%} lost, "
            f"TCP with {here.lab.congestion}"
        )
    return episodes(found, acks), said


def _watch(here: Run, acks: Acks, load: Load) -> list[Fragment]:
    """Look into the spool until all episodes are done; return what the head has then."""
    done, due, deadline = 0, 0.0, time.monotonic() + _LIMIT_S
    while not _there(here.spool):
        _check(here, deadline, "no spool was made")
        time.sleep(POLL_S)
    deadline += load.episodes * (load.steps / HZ + _LIMIT_S / 3)
    with Records(here.run, [here.spool]) as records:
        while done < load.episodes:
            acks.look(records)
            if time.monotonic() > due:
                _check(here, deadline, f"{done} of {load.episodes} episodes in time")
                done, due = _finals(records), time.monotonic() + 1.0
            time.sleep(POLL_S)
        time.sleep(1.0)
        acks.look(records)
        return records.fragments()


def _there(spool: Path) -> bool:
    """Whether a robot host has made its spool."""
    try:
        with Queue(spool, readonly=True).open():
            return True
    except StoreError:
        return False


def _check(here: Run, deadline: float, what: str) -> None:
    here.check()
    if time.monotonic() > deadline:
        raise LinkError(what)


def _finals(records: Records) -> int:
    return sum(entry.final for entry in records.log())


def episodes(log: Sequence[Fragment], acks: Acks) -> list[Episode]:
    """Return the episodes in a log that have their end."""
    parts: dict[str, list[Fragment]] = {}
    for fragment in log:
        parts.setdefault(fragment.header.episode, []).append(fragment)
    return [_episode(own, acks) for own in parts.values() if own[-1].final]


def _episode(parts: Sequence[Fragment], acks: Acks) -> Episode:
    first, last = parts[0].header, parts[-1].header
    # The last one holds the observation after its last step; the robot's clock is the wall's.
    stamps = parts[-1].robot_ns
    end = last.wall_ns + int(stamps[-1] - stamps[0])
    source = (last.producer, last.epoch)
    acked = acks.of(source, last.sequence)
    after = (acked - end) / SECOND if acked else None
    return Episode(sum(map(len, parts)), (end - first.wall_ns) / SECOND, after)


def figures(
    ids: tuple[str, str], done: Sequence[Episode], load: Load, peer: str, said: str
) -> list[Figure]:
    """Return what the slowest episode came to; none where one ended early."""
    whole = max((e.whole_s for e in done), default=None)
    waits = [e.acked_s for e in done if e.acked_s is not None]
    acked = max(waits, default=None) if len(waits) == len(done) else None
    if len(done) < load.episodes or any(e.steps != load.steps for e in done):
        whole = acked = None
    steps = ", ".join(str(e.steps) for e in done)
    middle = quantile([e.whole_s + (e.acked_s or 0.0) for e in done], 0.5) or 0.0
    goal = Goal("<=", _WHOLE.value * load.steps / 100)
    return [
        judged(
            ids[0],
            whole,
            goal,
            "s",
            reference=peer,
            note=f"slowest of {len(done)} episodes of {steps} steps at {HZ:g} Hz, a simulated arm "
            f"with the processes of every run; {said}; from the first step until all is "
            f"acknowledged {middle:.2f} s, median",
        ),
        judged(
            ids[1],
            acked,
            _ACK,
            "s",
            note="slowest, from the end of the last step until the robot host knows that all is "
            f"on the head's disk, looked at every {1e3 * POLL_S:g} ms",
        ),
    ]
