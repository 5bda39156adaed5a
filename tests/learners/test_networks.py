import numpy as np
import pytest
import torch

from learners.networks import mlp, mlp_torch
from learners.networks.features import CLIP, Features, normalise
from learners.networks.flat import Flat
from user_system.core.errors import ConfigError
from user_system.core.specs import Field


@pytest.mark.parametrize("activation", mlp.ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(), (16,), (32, 24, 8)])
def test_numpy_and_torch_agree(activation: str, hidden: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    layout = mlp.Layout(7, hidden, 3, activation)
    flat = rng.normal(size=layout.size).astype(np.float32)
    x = rng.normal(size=(50, 7)).astype(np.float32)
    ours = mlp.forward(layout.split(flat), x, activation)
    theirs = mlp_torch.forward(layout, torch.from_numpy(flat), torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_an_ensemble_computes_as_its_members() -> None:
    rng = np.random.default_rng(0)
    layout = mlp.Layout(5, (16, 16), 1, "relu", ensemble=3)
    flat = rng.normal(size=layout.size).astype(np.float32)
    x = rng.normal(size=(20, 5)).astype(np.float32)
    together = mlp_torch.forward(layout, torch.from_numpy(flat), torch.from_numpy(x)).numpy()
    tensors = layout.split(flat)
    for member in range(3):
        own = {name: value[member] for name, value in tensors.items()}
        np.testing.assert_allclose(together[member], mlp.forward(own, x, "relu"), atol=1e-4)


def test_split_names_every_parameter_once() -> None:
    layout = mlp.Layout(4, (8,), 2, ensemble=2)
    tensors = layout.split(np.arange(layout.size, dtype=np.float32))
    assert {n: t.shape for n, t in tensors.items()} == layout.shapes
    together = np.concatenate([t.ravel() for t in tensors.values()])
    np.testing.assert_array_equal(together, np.arange(layout.size))


def test_initial_weights_keep_signals_alive_and_norms_neutral() -> None:
    layout = mlp.Layout(6, (64,), 2)
    tensors = layout.split(layout.initial(np.random.default_rng(0), last_gain=0.1))
    assert np.all(tensors["0.gain"] == 1)
    assert np.all(tensors["0.b"] == 0)
    assert 0.15 < tensors["0.w"].std() / np.sqrt(2 / 70) < 1.5
    assert np.abs(tensors["1.w"]).max() <= 0.1 * np.sqrt(6 / 66)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ConfigError, match="swish"):
        mlp.Layout(1, (1,), 1, "swish")


FIELDS = {
    "b": Field((2,), "float32", "m", low=-2.0, high=6.0),
    "a": Field((1,), "float64", "m/s"),
}


def test_features_stand_in_alphabetical_order_for_any_batch() -> None:
    features = Features(FIELDS)
    one = features.flatten({"a": np.array([1.0]), "b": np.array([2, 3], np.float32)})
    np.testing.assert_array_equal(one, np.array([1, 2, 3], np.float32))
    assert one.dtype == np.float32
    many = features.flatten({"a": np.ones((4, 5, 1)), "b": np.ones((4, 5, 2))})
    assert many.shape == (4, 5, 3)


def test_declared_ranges_become_minus_one_to_one() -> None:
    features = Features(FIELDS)
    x = np.array([[0.5, -2.0, 6.0], [1e9, 0, 0]], np.float32)
    np.testing.assert_allclose(normalise(x, features.declared())[0], [0.5, -1.0, 1.0])
    assert normalise(x, features.declared())[1, 0] == CLIP


def test_measured_statistics_have_a_floor() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal([5.0, 0.0, 1.0], [2.0, 1e-9, 0.5], (5000, 3)).astype(np.float32)
    statistics = Features(FIELDS).measured(x)
    np.testing.assert_allclose(statistics["mean"], [5.0, 0.0, 1.0], atol=0.1)
    np.testing.assert_allclose(statistics["std"], [2.0, 0.04, 0.5], rtol=0.05)


def test_images_need_an_encoder() -> None:
    with pytest.raises(ConfigError, match="wrist"):
        Features({"wrist": Field((8, 8, 3), "uint8")})


def test_a_vector_goes_on_from_its_state() -> None:
    def step(flat: Flat, k: int) -> None:
        flat.descend((flat.tensor * (k + 1)).square().sum())

    one = Flat(np.ones(3, np.float32), 0.1)
    for k in range(3):
        step(one, k)
    other = Flat(np.zeros(3, np.float32), 0.1)
    other.load_state_dict(one.state_dict())
    for k in range(3):
        step(one, k)
        step(other, k)
    np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert one.finite()


def test_a_vector_notices_nan() -> None:
    assert not Flat(np.array([1, np.nan], np.float32), 0.1).finite()
