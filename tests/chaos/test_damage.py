"""Bytes of a store rot: nothing wrong is ever served, nobody dies of it, the rest is saved."""

import functools
import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kit import damage, damaged, made
from kit.damage import Damage
from kit.tally import percent
from kit.zygote import Zygote

from user_system.replay.store import reader

pytestmark = [pytest.mark.chaos, pytest.mark.system, pytest.mark.timeout(1800)]

PRODUCERS, EPISODES, SIDE = 3, 24, 24
ROWS = PRODUCERS * EPISODES * (made.STEPS * made.PIECES + 1)
PATIENCE_S = 30.0


@dataclass
class Outcome:
    """What one damage did."""

    damage: Damage
    signs: list[str] = field(default_factory=list)
    """Who noticed it."""
    faults: list[str] = field(default_factory=list)
    """What must not happen."""


class Patient:
    """A sound store, and copies of it that are spoiled one after the other."""

    def __init__(self, zygote: Zygote, place: Path, rng: random.Random):
        self.zygote, self.rng = zygote, rng
        self.sound, self.copy = place / "sound" / "replay", place / "spoiled" / "replay"
        self.sound.parent.mkdir()
        zygote.call(
            "damaged:make", path=self.sound, producers=PRODUCERS, episodes=EPISODES, side=SIDE
        )
        with reader(self.sound).open() as env:
            values, books = damaged.values(env), damaged.books(env)
        data = (self.sound / "data.mdb").read_bytes()
        self.whereabouts = damage.whereabouts(data, values)
        self.books = [[damage.places(data, entry)[-1] for entry in table] for table in books]

    def spoil(self, kind: str, place: str) -> Outcome:
        shutil.rmtree(self.copy.parent, ignore_errors=True)
        shutil.copytree(self.sound.parent, self.copy.parent)
        return Outcome(damage.inject(self.copy / "data.mdb", kind, place, self.rng, self.books))

    def run(self, task: str, outcome: Outcome, **arguments: object) -> dict | None:
        """Return what a task says; None, and a fault unless it is ``verify``: it died."""
        with self.zygote.start(task, path=self.copy, **arguments) as child:
            try:
                answer = child.receive(PATIENCE_S)
                child.wait()
                return dict(answer)
            except TimeoutError:
                outcome.faults.append(f"{task} hung")
            except EOFError:
                status = child.wait()
                sign = f"{task} ended with {status}"
                # It is made to die of it in the place of others, but only by the file itself.
                fatal = task != "damaged:verify" or status > 0
                (outcome.faults if fatal else outcome.signs).append(sign)
        return None

    def examine(self, outcome: Outcome) -> None:
        """Let everybody who opens a store open this one."""
        seed = self.rng.randrange(1 << 32)
        found = self.run("damaged:verify", outcome)
        if found is not None and found["damaged"]:
            outcome.signs.append("verify")
        drawn = self.run("damaged:draw", outcome, seed=seed, side=SIDE)
        if drawn is not None:
            self._judge_draws(drawn, outcome)
        written = self.run("damaged:write", outcome, producers=PRODUCERS, side=SIDE)
        if written is not None:
            self._judge_writer(written, outcome)

    def _judge_draws(self, drawn: dict, outcome: Outcome) -> None:
        if drawn["wrong"]:
            outcome.faults.append(f"served wrong: {drawn['wrong'][:5]}")
        if drawn["refused"] or drawn["complaints"] or drawn.get("damaged"):
            outcome.signs.append("reader")
        elif drawn["rows"] != ROWS:
            outcome.signs.append("quietly fewer rows")

    def _judge_writer(self, written: dict, outcome: Outcome) -> None:
        if written["refused"]:
            outcome.signs.append("writer")
            return
        end = EPISODES * made.PIECES
        if written["expected"] != [end] * PRODUCERS:
            outcome.faults.append(f"the writer believes {written['expected']} instead of {end}")
        wanted = [
            (made.name(p), 1, end, made.digest(made.fragment(made.name(p), 1, end, SIDE)))
            for p in range(PRODUCERS)
        ]
        if written["expected"] == [end] * PRODUCERS and written["fresh"] != [
            list(row) for row in wanted
        ]:
            outcome.faults.append(f"what is written now is read back as {written['fresh']}")


def test_damage_is_found_before_it_is_served(zygote, memory, rng, size, tally):
    patient = Patient(zygote, memory, rng)
    outcomes = []
    for kind, place in damage.plan(size.damages):
        outcome = patient.spoil(kind, place)
        patient.examine(outcome)
        if "quietly fewer rows" in outcome.signs and len(set(outcome.signs)) == 1:
            outcome.faults.append("fewer rows are served and nobody says so")
        outcomes.append(outcome)
    faulty = [f"{outcome.damage}: {outcome.faults}" for outcome in outcomes if outcome.faults]
    signs = Counter(sign for outcome in outcomes for sign in set(outcome.signs))
    tally.add(
        "damaged bytes of a store",
        f"{len(outcomes)} damages",
        noticed=sum(bool(outcome.signs) for outcome in outcomes),
        harmless=sum(not outcome.signs and not outcome.faults for outcome in outcomes),
        served_wrong=sum("served wrong" in text for text in faulty),
        processes_killed=sum("ended with -" in text for text in faulty),
        by=dict(signs.most_common(3)),
    )
    assert not faulty, "\n".join(faulty)


def test_what_is_not_damaged_is_saved(zygote, memory, rng, size, tally):
    pytest.importorskip("user_system.replay.salvage")
    patient = Patient(zygote, memory, rng)
    target = memory / "saved" / "replay"
    whole = saved = 0
    faults, worst = [], 1.0
    for kind, place in damage.plan(size.damages):
        outcome = patient.spoil(kind, place)
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir()
        answer = patient.run("damaged:salvage", outcome, target=target)
        expected = {names(n) for n in patient.whereabouts.untouched(outcome.damage)}
        found: list[list] = []
        if answer is None or "error" in answer:
            faults.append(f"{outcome.damage}: {answer or outcome.faults}")
        else:
            found = zygote.call("damaged:saved", path=target)
        rows = {tuple(row[:3]) for row in found}
        wrong = [row for row in found if row[3] != digest(*row[:3])]
        if wrong or len(rows) != len(found):
            faults.append(f"{outcome.damage}: saved wrong or twice {wrong[:3]}")
        whole += len(expected)
        saved += len(expected & rows)
        worst = min(worst, len(expected & rows) / len(expected)) if expected else worst
    tally.add(
        "salvage of damaged stores",
        f"{size.damages} damages",
        undamaged_saved=percent(saved, whole),
        worst_of_all=f"{100 * worst:.1f} %",
    )
    assert not faults, "\n".join(faults)
    assert saved >= 0.99 * whole


def names(record: int) -> tuple[str, int, int]:
    """Return (producer, epoch, sequence) of a record of the sound store."""
    sequence, producer = divmod(record, PRODUCERS)
    return made.name(producer), 1, sequence


@functools.cache
def digest(producer: str, epoch: int, sequence: int) -> str:
    return made.digest(made.fragment(producer, epoch, sequence, SIDE))
