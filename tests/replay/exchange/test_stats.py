"""Statistics against NumPy over everything at once."""

import numpy as np
import pytest

from user_system.replay.exchange import stats


@pytest.mark.parametrize("tail", [(), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "float16"])
def test_of_values(rng, tail, dtype):
    values = (rng.normal(0, 3, (50, *tail))).astype(dtype)
    found = stats.of_values(values)
    wide = values.astype(np.float64)
    assert found["count"].tolist() == [50]
    for name, of in {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std}.items():
        np.testing.assert_allclose(found[name], of(wide, axis=0).reshape(tail or (1,)))
    for name, q in stats.QUANTILES.items():
        np.testing.assert_allclose(found[name], np.quantile(wide, q, axis=0).reshape(tail or (1,)))


def test_what_is_not_known_is_left_out():
    values = np.array([1, np.nan, 3, np.inf], np.float32)
    found = stats.of_values(values)
    assert (found["count"], found["mean"], found["max"]) == ([2], [2], [3])
    assert stats.of_values(np.full(4, np.nan)) is None


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_are_counted_exactly(rng, channels):
    images = rng.integers(0, 200, (7, 9, 11, channels), np.uint8)
    parts = stats.Histogram(channels), stats.Histogram(channels)
    for i, image in enumerate(images):
        parts[i % 2].add(image)
    parts[0].merge(parts[1])
    found = parts[0].stats()
    flat = images.reshape(-1, channels) / 255.0
    assert found["count"].tolist() == [7]
    for name, of in {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std}.items():
        assert found[name].shape == (channels, 1, 1)
        np.testing.assert_allclose(found[name].ravel(), of(flat, axis=0), atol=1e-12)
    for name, q in stats.QUANTILES.items():
        wanted = np.quantile(flat, q, axis=0, method="inverted_cdf")
        np.testing.assert_allclose(found[name].ravel(), wanted, atol=1e-12)
    assert stats.Histogram(3).stats() is None


def test_totals_are_those_of_all_values(rng):
    parts = [rng.normal(i, 1 + i, (n, 4)) for i, n in enumerate((5, 80, 1))]
    total = stats.Total()
    for part in parts:
        total.add(stats.of_values(part))
    found, whole = total.stats(), np.concatenate(parts)
    assert found["count"].tolist() == [86]
    for name, of in {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std}.items():
        np.testing.assert_allclose(found[name], of(whole, axis=0))
    assert stats.Total().stats() is None
