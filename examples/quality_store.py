"""Make a store for ``user-system replay report``: people and a policy with known habits.

    python examples/quality_store.py /tmp/pick
    user-system replay report /tmp/pick --out report.html

A point stands for an arm that picks a cube. ann is steady; ben is hasty and shaky; cleo is steady
and always comes from the left. The policy begins clumsy and gets better; ann and ben help it, less
and less. arm-2 has a loose joint and drops observations. The report should find all of this.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from user_system.core.types import End, Fragment, FragmentHeader, Purpose, Segment
from user_system.replay.store import Store

PERIOD_NS = 100_000_000
STEP_M = 0.04
BEGIN_NS = 1_790_000_000_000_000_000


@dataclass(frozen=True)
class Habit:
    """How somebody drives: (noise m, share of the way per step, detour m, share of pauses)."""

    noise: float
    gain: float
    detour: float = 0.0
    pauses: float = 0.0


PEOPLE = {
    "ann": Habit(0.0015, 0.5),
    "ben": Habit(0.009, 0.85, pauses=0.06),
    "cleo": Habit(0.0015, 0.5, detour=0.12),
}


@dataclass
class Arm:
    """One robot's life: where it is, and what it recorded and did not hand over yet."""

    name: str
    rng: np.random.Generator
    looseness: float
    dropped: float
    sequence: int = 0
    episode: int = 0
    ns: int = 0
    wall_ns: int = BEGIN_NS
    rows: list[dict] = field(default_factory=list)

    def reset(self):
        self.episode += 1
        self.rows, self.start, self.void_from = [], 0, None
        self.tcp = np.array([0.45, 0.0, 0.3]) + self.rng.normal(0, 0.01, 3)
        self.velocity = np.zeros(3)
        self.cube = np.array([0.5, 0.0, 0.02])
        self.cube[:2] += self.rng.uniform(-0.15, 0.15, 2)
        self.width, self.gripped = 0.08, False
        self.done_detour, self.pause = False, 0

    def look(self):
        return {
            "tcp_position": self.tcp.copy(),
            "tcp_velocity": self.velocity.copy(),
            "cube_position": self.cube.copy(),
            "gripper_width": np.array([self.width]),
        }

    def want(self, habit):
        """Return the action ``[dx dy dz width]`` of somebody with a habit."""
        offset = self.cube - self.tcp
        if habit.detour and not self.done_detour:
            offset = offset + np.array([0.0, habit.detour, 0.1])
            self.done_detour = bool(np.linalg.norm(offset) < 0.03)
        elif self.gripped:
            offset = np.array([0.0, 0.0, STEP_M / habit.gain])
        elif np.linalg.norm(offset[:2]) > 0.015:
            offset = offset + np.array([0.0, 0.0, 0.06])
        close = np.linalg.norm(self.cube - self.tcp) < 0.015 or self.gripped
        move = habit.gain * offset + self.rng.normal(0, habit.noise, 3)
        if self.rng.random() < habit.pauses:
            self.pause = int(self.rng.integers(3, 7))
        if self.pause:
            self.pause -= 1
            move = np.zeros(3)
        return np.array([*np.clip(move, -STEP_M, STEP_M), 0.0 if close else 0.08])

    def do(self, action, segment, who, version=0):
        """Execute and record one step; ``who`` drove, or the policy where nobody is named."""
        self.rows.append(
            {
                "seen": self.look(),
                "executed": action,
                "segment": segment,
                "operator": who,
                "version": version,
                "ns": self.ns,
            }
        )
        before = self.tcp.copy()
        self.tcp = self.tcp + action[:3] + self.rng.normal(0, self.looseness, 3)
        self.velocity = (self.tcp - before) / (PERIOD_NS / 1e9)
        self.width += np.clip(action[3] - self.width, -0.03, 0.03)
        reached = self.gripped or bool(np.linalg.norm(self.cube - before) < 0.02)
        self.gripped = self.width < 0.03 and reached
        if self.gripped:
            self.cube = self.tcp.copy()
        jitter = self.rng.normal(0, 0.01) + (self.rng.random() < self.dropped) * 2
        self.ns += int(PERIOD_NS * (1 + jitter))
        self.wall_ns += PERIOD_NS

    def lifted(self):
        return bool(self.gripped and self.tcp[2] > 0.2)

    def flush(self, purpose, end=End.NONE):
        """Return what was recorded since the last fragment; ``end`` says why the episode ends."""
        rows, self.rows = self.rows, []
        final = end != End.NONE
        seen = [row["seen"] for row in rows] + ([self.look()] if final else [])
        stamps = [row["ns"] for row in rows] + ([self.ns] if final else [])
        people = sorted({row["operator"] for row in rows} | {""})
        success = self.lifted() if final else None
        header = FragmentHeader(
            producer=self.name,
            epoch=1,
            sequence=self.sequence,
            run="spring",
            task="pick",
            episode=f"{self.name}-{self.episode:03}",
            start=self.start,
            purpose=purpose,
            schema="point",
            robot=self.name,
            embodiment="point",
            boot="boot",
            wall_ns=self.wall_ns,
            wall_bound_ns=1_000_000,
            names=(*people, "pick"),
            success=success,
            void_from=self.void_from,
        )
        self.sequence, self.start = self.sequence + 1, self.start + len(rows)
        self.void_from = None
        size = len(rows)
        auto = np.array([row["segment"] == Segment.AUTO for row in rows])
        executed = np.array([row["executed"] for row in rows], np.float32)
        reward = np.zeros(size, np.float32)
        reward[-1] = float(success or 0)
        endings = np.zeros(size, np.uint8)
        endings[-1] = end
        return Fragment(
            header=header,
            observation={n: np.array([s[n] for s in seen], np.float32) for n in seen[0]},
            executed=executed,
            proposed=np.where(auto[:, None], executed, np.nan).astype(np.float32),
            reward=reward,
            segment=np.array([row["segment"] for row in rows], np.uint8),
            end=endings,
            robot_ns=np.array(stamps, np.int64),
            policy=np.where(auto, len(people), 0).astype(np.uint16),
            version=np.array([row["version"] for row in rows], np.int64),
            operator=np.array([people.index(row["operator"]) for row in rows], np.uint16),
            chunk=np.arange(size, dtype=np.int32),
            position=np.zeros(size, np.int32),
        )


def demonstrate(arm, who, steps=60):
    """Return the fragments of one demonstration."""
    arm.reset()
    for _ in range(steps):
        arm.do(arm.want(PEOPLE[who]), Segment.DEMO, who)
        if arm.lifted():
            break
    return [arm.flush(Purpose.COLLECT, End.TERMINATED if arm.lifted() else End.TIMEOUT)]


def train(arm, skill, helper, version, purpose=Purpose.TRAIN, steps=60):
    """Return the fragments of one episode of the policy; a helper steps in when it does not get on.

    Args:
        arm: which drives.
        skill: of the policy, 0..1.
        helper: somebody, or "" for nobody.
        version: of the policy.
        purpose: of the episode.
        steps: at most.
    """
    arm.reset()
    done = []
    policy = Habit(0.02 * (1 - skill) + 0.002, 0.15 + 0.35 * skill)
    aim = arm.rng.normal(0, 0.04 * (1 - skill) ** 2, 3)
    for step in range(steps):
        if helper and step == 25 and not arm.gripped:
            return [*done, *intervene(arm, helper, purpose)]
        action = arm.want(policy)
        action[:3] = np.clip(action[:3] + policy.gain * aim, -STEP_M, STEP_M)
        arm.do(action, Segment.AUTO, "", version)
        if arm.lifted():
            break
    return [*done, arm.flush(purpose, End.TERMINATED if arm.lifted() else End.TIMEOUT)]


def intervene(arm, who, purpose):
    """Return the fragments of a takeover: hold, rewind, recovery, correction to the end."""
    first = arm.flush(purpose)
    still = np.array([0.0, 0.0, 0.0, 0.08])
    for _ in range(int(arm.rng.integers(2, 8))):
        arm.do(still, Segment.HOLD, "")
    rewind = arm.rng.random() < 0.5
    for _ in range(6 if rewind else 1):
        arm.do(np.array([0.0, 0.0, STEP_M, 0.08]), Segment.REWIND, "")
    second = arm.flush(purpose)
    if rewind:
        arm.void_from = arm.start - len(second) - 12
    for _ in range(5):
        arm.do(arm.want(PEOPLE[who]), Segment.RECOVERY, who)
    for _ in range(40):
        arm.do(arm.want(PEOPLE[who]), Segment.CORRECTION, who)
        if arm.lifted():
            break
    return [first, second, arm.flush(purpose, End.TERMINATED if arm.lifted() else End.TIMEOUT)]


def make(path, demos=14, episodes=120, seed=1):
    """Write the store to ``path``.

    Args:
        path: a directory that is not there.
        demos: of each person.
        episodes: of the policy.
        seed: of everything that is random.
    """
    rng = np.random.default_rng(seed)
    arms = [Arm("arm-1", rng, 0.0008, 0.0), Arm("arm-2", rng, 0.004, 0.03)]
    arms[1] = replace(arms[1], wall_ns=BEGIN_NS + 7_000_000_000)
    with Store(path).open(create=True) as store:
        for i in range(demos):
            for j, who in enumerate(PEOPLE):
                put(store, demonstrate(arms[(i + j) % 2], who))
        put(store, odd_one(arms[0]))
        for i in range(episodes):
            skill = min(0.97, 0.15 + i / episodes)
            helper = ("ann", "ben")[int(rng.random() < 0.4)] if rng.random() < 1.1 - skill else ""
            put(store, train(arms[i % 2], skill, helper, version=i + 1))
            if i % 10 == 9:
                put(store, train(arms[0], skill, "", i + 1, Purpose.EVAL))


def put(store, fragments):
    """Store fragments; none may be refused."""
    refused = store.append(fragments)
    assert not refused, refused


def odd_one(arm):
    """Return a demonstration that went wrong: the stick was held the other way round."""
    arm.reset()
    for _ in range(30):
        action = arm.want(PEOPLE["ann"])
        arm.do(np.array([*-action[:2], action[2], action[3]]), Segment.DEMO, "ann")
    return [arm.flush(Purpose.COLLECT, End.ABORT)]


if __name__ == "__main__":
    make(Path(sys.argv[1]))
