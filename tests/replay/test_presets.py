"""One raw log, six published ways to learn from it: each class of steps counted by hand.

Robots are interleaved in fragments of a few steps. The classes:

==========  ====================================================================================
demo        10 demonstrated steps
won         20 steps of an episode that succeeded without help
lost        12 of one that failed without help
open        5 of one that nobody judged
helped      20 before an intervention (4 recovery, 6 correction) in an episode that succeeded
rewound     18 before a rewind that undid the last 5 (3 recovery, 5 correction), and 7 after it
failed      9 before a correction of 4, in an episode that failed all the same
eval        30 of an evaluation
==========  ====================================================================================
"""

from collections import Counter

import numpy as np
import pytest

from user_system.core.draws import Draw, Weigh
from user_system.core.errors import SpecError
from user_system.core.types import End, Purpose, Segment
from user_system.replay import presets
from user_system.replay.sampler import ReplayData
from user_system.replay.views import BUILT_IN, View

AUTO, RECOVERY, CORRECTION = Segment.AUTO, Segment.RECOVERY, Segment.CORRECTION

PLOT = {
    "demo": ("a", [(10, Segment.DEMO)], True),
    "won": ("b", [(20, AUTO)], True),
    "lost": ("a", [(12, AUTO)], False),
    "open": ("b", [(5, AUTO)], None),
    "helped": ("a", [(20, AUTO), (2, Segment.HOLD), (4, RECOVERY), (6, CORRECTION)], True),
    "rewound": (
        "b",
        [
            (18, AUTO),
            (1, Segment.HOLD),
            (2, Segment.REWIND),
            (3, RECOVERY),
            (5, CORRECTION),
            (7, AUTO),
        ],
        True,
    ),
    "failed": ("a", [(9, AUTO), (4, CORRECTION)], False),
}
"""Class -> robot, steps, success."""

HUMAN = {
    ("demo", "DEMO"): 10,
    ("helped", "RECOVERY"): 4,
    ("helped", "CORRECTION"): 6,
    ("rewound", "RECOVERY"): 3,
    ("rewound", "CORRECTION"): 5,
    ("failed", "CORRECTION"): 4,
}
HELP = {key: n for key, n in HUMAN.items() if key[1] != "DEMO"}
OWN = {
    ("won", "AUTO"): 20,
    ("lost", "AUTO"): 12,
    ("open", "AUTO"): 5,
    ("helped", "AUTO"): 20,
    ("rewound", "AUTO"): 13 + 7,
    ("failed", "AUTO"): 9,
}
FAILED = {"lost", "failed"}

TABLE = {
    "rlpd": {"online": OWN | HELP, "demos": {("demo", "DEMO"): 10}},
    "hil_serl": {"online": OWN | HELP, "prior": HUMAN},
    "hg_dagger": {"human": HUMAN},
    "rac": {"rac": HUMAN | {("won", "AUTO"): 20}},
    "armada": {"armada": {k: n for k, n in (HUMAN | OWN).items() if k[0] not in FAILED}},
    "sirius": {
        "sirius": HUMAN
        | {
            ("won", "AUTO"): 20,
            ("lost", "AUTO"): 12,
            ("open", "AUTO"): 5,
            ("helped", "AUTO"): 20 - 15,
            ("rewound", "AUTO"): 18 - 15 + 7,
        }
    },
}
"""Preset -> view -> class and segment -> steps."""


@pytest.fixture
def log(store, recorder):
    """The raw log; returns episode id -> class."""
    lives = {"a": recorder("a"), "b": recorder("b")}
    scripts = {name: [] for name in lives}
    for name, (robot, parts, success) in PLOT.items():
        scripts[robot].append((name, [s for n, s in parts for _ in range(n)], success))
    scripts["b"].append(("eval", [AUTO] * 30, True))
    names, moves = {}, {robot: play(lives[robot], script) for robot, script in scripts.items()}
    while moves:
        for robot in list(moves):
            done = next(moves[robot], None)
            if done is None:
                del moves[robot]
            else:
                fragment, name, success = done
                names[fragment.header.episode] = name
                assert store.append([fragment]) == []
                if success is not None and fragment.final:
                    store.label(fragment.header.episode, "success", "person", success, None)
    return names


def play(life, script):
    """Yield the fragments of one robot, of three steps each."""
    for name, segments, success in script:
        life.begin(Purpose.EVAL if name == "eval" else Purpose.TRAIN)
        for k, segment in enumerate(segments):
            last = k == len(segments) - 1
            if segment is Segment.REWIND and segments[k - 1] is Segment.HOLD:
                if life.pending:
                    yield life.flush(), name, success
                life.void_from = 18 - 5
            life.step(1, segment=segment, end=End.HANDBACK if last else End.NONE)
            if len(life.pending) == 3 or last:
                yield life.flush(), name, success


def counted(data, names, view):
    batch = data.consume(Draw(data.count(view), mix={view: 1.0}, columns=["segment", "episode"]))
    data._consumed.load([])
    episodes = {e.number: e.id for e in data._window.rows.episodes.values()}
    classes = [names[episodes[number]] for number in batch.extras["episode"].tolist()]
    segments = [Segment(s).name for s in batch.extras["segment"].tolist()]
    return dict(Counter(zip(classes, segments, strict=True)))


@pytest.mark.parametrize("preset", TABLE)
def test_the_counting_table(store, log, preset):
    data = ReplayData(store.env)
    assert list(presets.PRESETS[preset].mix) == list(TABLE[preset])
    for view, expected in TABLE[preset].items():
        assert counted(data, log, view) == expected, view


def test_every_preset_has_its_table():
    assert TABLE.keys() == presets.PRESETS.keys()


def test_rac_drops_the_own_steps_of_helped_episodes_and_armada_keeps_them(store, log):
    data = ReplayData(store.env)
    assert counted(data, log, "rac").get(("helped", "AUTO"), 0) == 0
    assert counted(data, log, "armada")["helped", "AUTO"] == 20


def test_hil_serl_has_interventions_in_both_halves(store, log):
    data = ReplayData(store.env, seed=3)
    batch = data.draw(Draw(4000, preset="hil_serl", columns=["segment"]))
    helps = [int(RECOVERY), int(CORRECTION)]
    online, prior = batch.extras["segment"][:2000], batch.extras["segment"][2000:]
    assert (online != Segment.DEMO).all()
    assert (prior != AUTO).all()
    human, helped = sum(HUMAN.values()), sum(HELP.values())
    total = sum(OWN.values()) + helped
    # Of 2000 each, so a share is known to a few hundredths.
    assert np.isin(online, helps).mean() == pytest.approx(helped / total, abs=0.05)
    assert np.isin(prior, helps).mean() == pytest.approx(helped / human, abs=0.05)


def test_sirius_gives_interventions_half_of_the_mass(store, log):
    data = ReplayData(store.env, seed=3)
    batch = data.draw(Draw(6000, preset="sirius", columns=["segment"]))
    shares = Counter(Segment(s).name for s in batch.extras["segment"].tolist())
    total = sum(TABLE["sirius"]["sirius"].values())
    demos, helps = shares["DEMO"] / 6000, (shares["RECOVERY"] + shares["CORRECTION"]) / 6000
    assert helps == pytest.approx(0.5, abs=0.03)
    assert demos == pytest.approx(10 / total, abs=0.03)
    assert shares["AUTO"] / 6000 == pytest.approx(0.5 - 10 / total, abs=0.03)


@pytest.mark.parametrize("preset", ["hg_dagger", "rac", "armada", "sirius"])
def test_windows_of_a_preset_for_imitation_stay_with_what_it_shows(store, log, preset):
    data = ReplayData(store.env, seed=3)
    view = next(iter(presets.PRESETS[preset].mix))
    shown = data.consume(Draw(data.count(view), mix={view: 1.0}))
    batch = data.draw(Draw(500, preset=preset, unit="window", length=8))
    entered = set(batch.observation["flag"][batch.valid].tolist())
    assert entered == set(shown.observation["flag"].tolist())
    assert 500 < batch.valid.sum() < 8 * 500


def test_views_of_presets_can_be_said_in_a_manifest():
    human = ["DEMO", "RECOVERY", "CORRECTION"]
    said = {
        "rac": {
            "any": [
                {"segments": human},
                {"segments": ["AUTO"], "success": True, "intervened": False},
            ]
        },
        "armada": {"segments": [*human, "AUTO"], "success": "not_failed"},
        "sirius": {"segments": [*human, "AUTO"], "lead": 15},
    }
    for name, clauses in said.items():
        assert View.parse(name, clauses) == BUILT_IN[name]


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (Draw(1, preset="siruis"), "Did you mean 'sirius'"),
        (Draw(1, preset="rac", mix={"auto": 1.0}), "its own mix"),
        (Draw(1, preset="rac", weigh=Weigh("segment")), "its own weigh"),
        (Draw(1, preset="rac", cross_views=False), "its own cross_views"),
    ],
)
def test_a_preset_that_is_not_clear_is_refused(store, log, request_, match):
    with pytest.raises(SpecError, match=match):
        ReplayData(store.env).draw(request_)
