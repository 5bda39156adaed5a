import math
from dataclasses import replace
from typing import ClassVar, get_args

import numpy as np
import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from learners.memory import MemoryData
from learners.networks.mlp import Layout
from learners.networks.mlp_torch import forward
from learners.rlpd import RlpdConfig, plugin
from learners.rlpd.learner import RlpdLearner
from learners.rlpd.losses import Losses, Rows
from learners.rlpd.policy import actor_layout
from learners.testing import SPEC, LearnerContract, observe, synthetic_data
from user_system.cluster.parse import load
from user_system.core.draws import Draw, PresetName
from user_system.core.errors import ConfigError, PluginError
from user_system.core.interfaces import NotReady
from user_system.core.types import Batch, End, Weights
from user_system.replay.presets import PRESETS, resolve

SMALL = RlpdConfig(hidden=(32, 32), batch=64, start_after=10)


class TestRlpd(LearnerContract):
    plugin = plugin
    config = SMALL
    policy_module = "learners.rlpd:plugin"


class TestRlpdWithEnsembleAndNstep(LearnerContract):
    plugin = plugin
    config: ClassVar = replace(
        SMALL,
        critics=5,
        nstep=3,
        activation="relu",
        normalise="range",
        backup_entropy=True,
        actor_average=0.01,
    )


def learner(config: RlpdConfig = SMALL, data: MemoryData | None = None) -> RlpdLearner:
    data = data or synthetic_data(SPEC)
    return plugin.make_learner(SPEC, config, data=data, seed=0)  # type: ignore[return-value]


def test_the_defaults_are_hil_serls() -> None:
    c = RlpdConfig()
    assert (c.gamma, c.tau, c.alpha, c.learning_rate) == (0.97, 0.005, 1e-2, 3e-4)
    assert (c.hidden, c.activation, c.critics, c.batch) == ((256, 256), "tanh", 2, 256)
    assert (c.actor_every, c.backup_entropy, c.target_entropy) == (2, False, None)
    assert c.draw(256).mix == PRESETS["hil_serl"].mix == {"online": 0.5, "prior": 0.5}


@pytest.mark.parametrize(
    "bad", [{"critic_subset": 3}, {"gamma": 1.5}, {"normalise": "x"}, {"updates_per_step": 0}]
)
def test_impossible_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        RlpdConfig(**bad)


class Asked:
    """Notes what is asked for, and is never ready."""

    def __init__(self) -> None:
        self.requests: list[Draw] = []

    def count(self, view: str = "all") -> int:
        return 10**6

    def draw(self, request: Draw) -> Batch:
        self.requests.append(request)
        raise NotReady


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("normalise", ["data", "range"])
def test_every_preset_can_be_learned_from(name: str, normalise: str) -> None:
    data = Asked()
    config = replace(SMALL, preset=name, nstep=3, normalise=normalise)
    with pytest.raises(NotReady):
        learner(config, data).update()  # type: ignore[arg-type]
    (request,) = data.requests
    wanted = resolve(request)
    assert (wanted.mix, wanted.weigh) == (PRESETS[name].mix, PRESETS[name].weigh)
    assert wanted.cross_views == PRESETS[name].cross_views
    assert request.length == (3 if normalise == "range" else 1)


def test_a_mix_of_ones_own_is_drawn() -> None:
    data = Asked()
    with pytest.raises(NotReady):
        learner(replace(SMALL, mix={"mine": 1.0}, normalise="range"), data).update()  # type: ignore[arg-type]
    assert data.requests[0].mix == {"mine": 1.0}
    assert RlpdConfig(mix={"mine": 1.0}).views == ("mine",)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"preset": "sirus"}, "unknown preset; got sirus; allowed: rlpd, hil_serl, hg_dagger"),
        ({"preset": "rac", "mix": {"human": 1.0}}, "got preset 'rac' and a mix of human"),
    ],
)
def test_a_preset_is_one_of_the_published_and_stands_alone(bad: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RlpdConfig(**bad)


def test_all_presets_have_a_name_that_configurations_know() -> None:
    assert get_args(PresetName) == tuple(PRESETS)


def test_a_manifest_chooses_a_preset() -> None:
    assert load(RlpdConfig, {"preset": "sirius"}).preset == "sirius"
    with pytest.raises(ConfigError, match=r"not one of the choices; got 'sirus'.*Did you mean 'si"):
        load(RlpdConfig, {"preset": "sirus"})


def losses(config: RlpdConfig = SMALL) -> Losses:
    critic = Layout(11, config.hidden, 1, config.activation, config.critics)
    return Losses(actor_layout(SPEC, config), critic, config, -2.0)


def rows(n: int = 8, **changes: torch.Tensor) -> Rows:
    g = torch.Generator().manual_seed(0)
    base = Rows(
        x=torch.randn(n, 7, generator=g),
        action=torch.rand(n, 4, generator=g) * 2 - 1,
        reward=torch.rand(n, generator=g),
        discount=torch.full((n,), 0.97),
        following=torch.randn(n, 7, generator=g),
        weight=torch.full((n,), 1 / n),
    )
    return replace(base, **changes)


def parameters(layout: Layout) -> torch.Tensor:
    return torch.from_numpy(layout.initial(np.random.default_rng(1)))


def test_log_probability_is_that_of_a_squashed_gaussian() -> None:
    loss = losses()
    # In double: the oracle inverts tanh, which single precision cannot do near one.
    actor, x = parameters(loss.actor).double(), rows().x.double()
    action, log_probability = loss.sample(actor, x, torch.randn(8, 4).double())
    mean, log_std = forward(loss.actor, actor, x).chunk(2, -1)
    oracle = TransformedDistribution(
        Normal(mean, log_std.exp().clamp(1e-5, 5.0)), [TanhTransform()]
    )
    torch.testing.assert_close(
        log_probability, oracle.log_prob(action).sum(-1), rtol=1e-5, atol=1e-5
    )


def test_nothing_is_bootstrapped_where_the_discount_is_zero() -> None:
    loss = losses()
    discount = torch.full((8,), 0.97)
    discount[::2] = 0
    batch = rows(discount=discount)
    critic = parameters(loss.critic)
    target = loss.target(
        batch, critic, parameters(loss.actor), torch.tensor(0.1), torch.zeros(8, 4), torch.arange(2)
    )
    torch.testing.assert_close(target[::2], batch.reward[::2])
    assert not torch.allclose(target[1::2], batch.reward[1::2])


def test_targets_take_the_minimum_of_the_subset_and_actors_the_mean() -> None:
    config = replace(SMALL, critics=4, critic_subset=2)
    loss = losses(config)
    batch, critic, actor = rows(), parameters(loss.critic), parameters(loss.actor)
    noise, alpha = torch.randn(8, 4), torch.tensor(0.0)
    subset = torch.tensor([1, 3])
    action, _ = loss.sample(actor, batch.following, noise)
    values = loss.values(critic, batch.following, action)
    expected = batch.reward + batch.discount * torch.minimum(values[1], values[3])
    torch.testing.assert_close(loss.target(batch, critic, actor, alpha, noise, subset), expected)
    action, _ = loss.sample(actor, batch.x, noise)
    mean = -loss.values(critic, batch.x, action).mean()
    torch.testing.assert_close(loss.actor_loss(batch, actor, critic, alpha, noise)[0], mean)


def test_invalid_rows_teach_nothing() -> None:
    loss = losses()
    critic, target = parameters(loss.critic), torch.randn(8)
    weight = torch.tensor([0.25] * 4 + [0.0] * 4)
    one = loss.critic_loss(rows(weight=weight), critic, target)
    changed = target.clone()
    changed[4:] += 100
    torch.testing.assert_close(one, loss.critic_loss(rows(weight=weight), critic, changed))


@pytest.mark.parametrize(("entropy", "falls"), [(5.0, True), (-5.0, False)])
def test_temperature_moves_towards_the_entropy_wanted(entropy: float, falls: bool) -> None:
    raw = torch.zeros(1, requires_grad=True)
    (slope,) = torch.autograd.grad(losses().alpha_loss(raw, torch.tensor(entropy)), [raw])
    assert (slope.item() > 0) is falls


def test_updates_keep_to_the_ratio() -> None:
    data = synthetic_data(SPEC, steps=120)
    online = data.count("online")
    one = learner(replace(SMALL, updates_per_step=0.5), data)
    reports = [one.update() for _ in range(online // 4)]  # two critic updates each
    assert sum(report.updates for report in reports) == online // 2
    assert [report.wants_steps for report in reports[-2:]] == [0, 4]
    with pytest.raises(NotReady):
        one.update()


def test_an_update_is_reported_though_the_reader_went_away_meanwhile() -> None:
    data = synthetic_data(SPEC, steps=120)
    count, asked = data.count, [0]

    def once(view: str = "all") -> int:
        asked[0] += 1
        if asked[0] > 1:
            raise NotReady("the reader is away")
        return count(view)

    data.count = once  # type: ignore[method-assign]
    one = learner(SMALL, data)
    assert one.update().updates == SMALL.actor_every
    with pytest.raises(NotReady, match="away"):
        one.update()


def test_nothing_is_learned_before_there_is_enough() -> None:
    data = synthetic_data(SPEC, steps=120)
    with pytest.raises(NotReady):
        learner(replace(SMALL, start_after=data.count("online") + 1), data).update()


def test_it_asks_to_publish_every_so_many_updates() -> None:
    one = learner(replace(SMALL, publish_every=6))
    asked = [one.update().publish for _ in range(6)]
    assert asked == [False, False, True, False, False, True]


def test_what_is_not_finite_is_never_handed_out() -> None:
    data = synthetic_data(SPEC)
    one = learner(SMALL, data)
    one.update()
    data._columns.reward[:] = np.inf
    with pytest.raises(PluginError, match="diverged"):
        one.update()


def test_the_published_actor_is_the_average_of_those_before() -> None:
    newest, average = learner(), learner(replace(SMALL, actor_average=0.25))
    expected = average.weights()[0]["policy"]["0.w"]
    for _ in range(4):
        newest.update()
        average.update()
        expected = expected + 0.25 * (newest.weights()[0]["policy"]["0.w"] - expected)
    np.testing.assert_allclose(average.weights()[0]["policy"]["0.w"], expected, atol=1e-6)
    assert not np.allclose(expected, newest.weights()[0]["policy"]["0.w"], atol=1e-6)


def test_the_policy_acts_as_the_learner_thinks() -> None:
    one, policy = learner(), plugin.make_policy(SPEC, SMALL)
    for _ in range(5):
        one.update()
    modules, statistics = one.weights()
    policy.load(Weights("p", 1, "", modules, statistics))
    rng = np.random.default_rng(0)
    seen, noise = observe(SPEC, rng), rng.standard_normal(4).astype(np.float32)
    x = one._see({k: v[None] for k, v in seen.items()})
    with torch.no_grad():
        action, _ = one._losses.sample(one._actor.tensor, x, torch.from_numpy(noise)[None])
    centre, half = SPEC.action.scale
    expected = centre + half * action[0].numpy()
    got = policy.act(seen, mode="explore", noise=noise).actions[0]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_statistics_are_fixed_at_the_first_update() -> None:
    one = learner()
    one.update()
    first = one.weights()[1]
    one.update()
    np.testing.assert_equal(one.weights()[1], first)
    assert not math.isclose(float(first["std"][0]), 1.0)


def test_terminated_rows_come_with_no_discount() -> None:
    from user_system.core.interfaces import Draw

    batch = synthetic_data(SPEC).draw(Draw(n=600, gamma=0.9))
    terminated = batch.end == End.TERMINATED
    assert terminated.any()
    assert np.all(batch.discount[terminated] == 0)
    assert np.all(batch.discount[~terminated] == np.float32(0.9))
