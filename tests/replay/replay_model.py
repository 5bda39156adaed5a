"""The replay buffer in plain Python: lists, dictionaries and one link per step; no columns.

What may be drawn, with what successor, history, window, goal, sensor value and weight. Slow, and
short enough to be believed.
"""

import math
from collections import Counter

from user_system.core.types import End, Purpose, Segment

ACTING = {Segment.DEMO, Segment.AUTO, Segment.RECOVERY, Segment.CORRECTION, Segment.SYNTHETIC}
HUMAN = {Segment.DEMO, Segment.RECOVERY, Segment.CORRECTION}
HELP = {Segment.RECOVERY, Segment.CORRECTION}
NS = 100_000_000
"""Between two observations that any robot made."""

SHOWN = {
    "all": lambda m, s: s.segment in ACTING,
    "online": lambda m, s: s.segment in ACTING - {Segment.DEMO},
    "human": lambda m, s: s.segment in HUMAN,
    "auto": lambda m, s: s.segment is Segment.AUTO,
    "won": lambda m, s: s.segment in ACTING and m.success.get(s.episode) is True,
    "unjudged": lambda m, s: s.segment in ACTING and m.success.get(s.episode) is None,
    "clean": lambda m, s: s.segment in ACTING and not m.helped(s),
    "helped": lambda m, s: s.segment in ACTING and m.helped(s),
    "clear": lambda m, s: s.segment in ACTING and not 1 <= m.lead(s) <= 3,
    "late": lambda m, s: s.segment in ACTING and m.wall[id(s)] >= 20,
    "early": lambda m, s: s.segment in ACTING and m.wall[id(s)] < 20,
    "either": lambda m, s: (
        s.segment in HUMAN or (s.segment is Segment.AUTO and s.robot == "a" and not m.helped(s))
    ),
}
"""View -> whether it shows a step."""

CLAUSES = {
    "won": {"success": True},
    "unjudged": {"success": "unknown"},
    "clean": {"intervened": False},
    "helped": {"intervened": True},
    "clear": {"lead": 3},
    "late": {"since": 20},
    "early": {"until": 20},
    "either": {
        "any": [
            {"segments": ["DEMO", "RECOVERY", "CORRECTION"]},
            {"segments": ["AUTO"], "robots": ["a"], "intervened": False},
        ]
    },
}
"""The views of ``SHOWN`` that are not built in, as a manifest says them."""


def achieved(o):
    """What had been achieved at observation number ``o``."""
    return [o % 5 / 10, o % 2 / 10]


def distance(a, b):
    return math.dist(a, b)


class Model:
    """Stored steps in log order, each with its recorded successor."""

    def __init__(self):
        self.stored, self.last, self.success = [], {}, {}
        self.labels = {}
        """(episode, column) -> values; versions are columns of their own."""
        self.before, self.wall, self.samples = {}, {}, {}
        self.complete = set()
        self.following, self.newest = {}, {}
        """The next step of the same episode that was stored, whatever was lost between."""

    # --- what happens ---

    def store(self, steps, fragment, samples=()):
        header = fragment.header
        numbers = fragment.observation["flag"].tolist()
        for i, step in enumerate(steps):
            self.wall[id(step)] = header.wall_ns
            if i + 1 < len(numbers):
                step.after = numbers[i + 1]
            if i + 1 < len(steps):
                self.link(step, steps[i + 1])
        before = self.last.get(header.episode)
        if before is not None and before.k + 1 == header.start and before.end is End.NONE:
            before.after = steps[0].o
            self.link(before, steps[0])
        for step in steps:
            if self.newest.get(header.episode) is not None:
                self.following[id(self.newest[header.episode])] = step
            self.newest[header.episode] = step
        self.last[header.episode] = steps[-1]
        if steps[-1].end is not End.NONE:
            self.complete.add(header.episode)
        if header.void_from is not None:
            for step in self.stored:
                if step.episode == header.episode and header.void_from <= step.k < header.start:
                    step.void = True
        self.stored += steps
        self.samples.setdefault(header.episode, []).extend(samples)
        self.relabel()

    def link(self, step, follower):
        step.follower = follower
        self.before[id(follower)] = step

    def label(self, episode, name, version, values):
        for column in (name, f"{name}@{version}"):
            self.labels[episode, column] = values
        self.relabel()

    def delete(self, episode):
        self.stored = [step for step in self.stored if step.episode != episode]
        self.last.pop(episode, None)

    def relabel(self):
        for step in self.stored:
            late = self.said(step, "reward")
            step.reward = step.recorded if math.isnan(late) else late

    # --- what is known ---

    def said(self, step, column):
        values = self.labels.get((step.episode, column), [])
        return values[step.k] if step.k < len(values) else math.nan

    def reward(self, step, column=""):
        if column == "recorded_reward":
            return step.recorded
        return self.said(step, column) if column else step.reward

    def helped(self, step):
        return step.episode in {s.episode for s in self.stored if s.segment in HELP}

    def lead(self, step):
        """Which AUTO step before the next intervention this is; 0: none of them."""
        count, following = 0, step
        if step.segment is not Segment.AUTO:
            return 0
        while following is not None and following.segment not in HELP:
            count += following.segment is Segment.AUTO
            following = self.following.get(id(following))
        return 0 if following is None else count

    def drawable(self, step, reward=""):
        return step.after is not None and not math.isnan(self.reward(step, reward))

    def view(self, name, *, void=False, reward=""):
        return [
            step
            for step in self.stored
            if self.drawable(step, reward)
            and (void or not step.void)
            and step.purpose is not Purpose.EVAL
            and SHOWN[name](self, step)
        ]

    def borders(self, a, b, *, cross):
        """Whether two neighbours of one episode do not belong together."""
        if a.void != b.void:
            return True
        return b.segment not in ACTING if cross else a.segment is not b.segment

    def walk(self, step, length, *, cross=True, reward="", shown=None):
        walk = [step]
        while len(walk) < length:
            following = walk[-1].follower
            if following is None or not self.drawable(following, reward):
                break
            if self.borders(walk[-1], following, cross=cross):
                break
            if shown is not None and id(following) not in shown:
                break
            walk.append(following)
        return walk

    def history(self, step, length, *, cross=True):
        """Return observation numbers that lead to a step, None before them."""
        found = [step]
        while len(found) < length:
            before = self.before.get(id(found[0]))
            if before is None or self.borders(found[0], before, cross=cross):
                break
            found.insert(0, before)
        numbers = [s.o for s in found]
        return [None] * (length - len(numbers)) + numbers

    def goals(self, step, *, cross=True):
        """Return every state that may be the goal of a step in hindsight."""
        return [achieved(s.after) for s in self.walk(step, 10**9, cross=cross)]

    def sensed(self, episode, o, samples, max_age_s):
        """Return (value, age) of the newest samples as of an observation; None: not valid."""
        past = [s for s in self.samples.get(episode, []) if s[0] <= o * NS]
        past.sort(key=lambda s: s[0])  # stable: of equal stamps the one that came last is newest
        ages = [(value, (o * NS - stamp) * 1e-9) for stamp, value in past[-samples:]]
        ages = [(v, age) if age <= max_age_s else None for v, age in ages]
        return [None] * (samples - len(ages)) + ages

    # --- weights ---

    def returns(self):
        """Return episode -> return, of those that are complete and wholly rewarded."""
        found = {}
        for step in self.stored:
            if step.episode in self.complete and not step.void and step.segment in ACTING:
                found.setdefault(step.episode, []).append(step.reward)
        sums = {episode: sum(rewards) for episode, rewards in found.items()}
        return {episode: value for episode, value in sums.items() if not math.isnan(value)}

    def value(self, step, by, priorities):
        if by == "priority":
            return priorities.get(step.o, math.nan)
        if by == "version":
            return step.version
        if by == "progress":
            return self.said(step, "progress")
        returns = self.returns()
        low, high = min(returns.values(), default=0), max(returns.values(), default=0)
        if step.episode not in returns:
            return math.nan
        return (returns[step.episode] - low) / (high - low) if high > low else 1.0

    def chances(self, steps, weigh, priorities):
        """Return the probability of each of ``steps``, in their order."""
        if weigh.by in ("segment", "success"):
            return self.class_chances(steps, weigh)
        values = [self.value(step, weigh.by, priorities) for step in steps]
        if weigh.by == "progress" and all(map(math.isnan, values)):
            return []
        values = [weigh.missing if math.isnan(v) else v for v in values]
        masses = [max(v, weigh.floor) ** weigh.power for v in values]
        return [mass / sum(masses) for mass in masses] if sum(masses) > 0 else []

    def class_chances(self, steps, weigh):
        verdict = {True: "true", False: "false", None: "unknown"}
        name = {"segment": lambda s: s.segment.name}.get(
            weigh.by, lambda s: verdict[self.success.get(s.episode)]
        )
        counts = Counter(name(step) for step in steps)
        if not weigh.shares:
            mass = {c: (n / len(steps)) ** (1 - weigh.power) for c, n in counts.items()}
        else:
            # As Sirius: interventions half, demonstrations theirs, the robot what is left.
            of = {c: n / len(steps) for c, n in counts.items()}
            helps = {c: n for c, n in of.items() if c in ("RECOVERY", "CORRECTION")}
            mass = {c: 0.5 * n / sum(helps.values()) for c, n in helps.items()}
            others = {c: n for c, n in of.items() if c not in helps and c != "AUTO"}
            left = 1 - (0.5 if helps else 0) - sum(others.values())
            mass |= others | {c: min(max(left, 0), n) for c, n in of.items() if c == "AUTO"}
        total = sum(mass.values())
        return [mass[name(s)] / counts[name(s)] / total for s in steps] if total > 0 else []
