"""Sparseness, complexity and effective complexity: values by hand, laws, uniform maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_similarity as ref

from jaxfmi.metrics import complexity, effective_complexity, sparseness

M = np.random.default_rng(1).standard_normal((7, 9))
METRICS = [sparseness, complexity, effective_complexity]
ALL = pytest.mark.parametrize("metric", METRICS)


def close(got, expected, atol=1e-5):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@ALL
@pytest.mark.parametrize("m", [M, np.round(M), M > 0, M**5])
@jax.enable_x64(True)
def test_twins(metric, m):
    close(metric(1.0 * m), getattr(ref, metric.__name__)(m), 1e-12)


def test_sparseness_is_the_gini_index():
    """The mean difference of two values, in units of twice their mean."""
    v = np.abs(M).ravel()
    close(sparseness(M), np.abs(v[:, None] - v).mean() / (2 * v.mean()))
    close(sparseness([[1.0, -3.0]]), 1 / 4)


def test_complexity_is_the_entropy():
    p = np.abs(M) / np.abs(M).sum()
    close(complexity(M), -(p * np.log(p)).sum())
    close(complexity([[1.0, -3.0, 0.0]]), -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))


def test_effective_complexity_counts():
    m = [[1e-6, -0.5, 2.0], [0.0, 2e-4, -3e-5]]
    assert effective_complexity(m) == 4
    assert effective_complexity(m, eps=0.3) == 1  # 0.5 is a quarter of the maximum
    assert effective_complexity(m, eps=0.3, normalize=False) == 2


@pytest.mark.parametrize("value", [0.1, -7.0, 1e-30])
def test_uniform_maps(value):
    m = np.full((7, 9), value, np.float32)
    close(sparseness(m), 0)
    close(complexity(m), np.log(63))
    assert effective_complexity(m) == 63


def test_a_map_of_zeros_shares_nothing():
    zeros = np.zeros((7, 9), np.float32)
    assert np.isnan(sparseness(zeros))
    assert np.isnan(complexity(zeros))
    assert effective_complexity(zeros) == 0


def test_one_pixel():
    m = np.zeros((7, 9)) - 4 * (np.arange(63).reshape(7, 9) == 20)
    close(sparseness(m), 1 - 1 / 63)
    close(complexity(m), 0)
    assert effective_complexity(m) == 1


@ALL
def test_neither_place_nor_sign_nor_factor_counts(metric):
    shuffled = np.random.default_rng(2).permutation(M.ravel()).reshape(9, 7)
    close(metric(shuffled), metric(M))
    close(metric(-M), metric(M))
    close(metric(1e-30 * M), metric(M))


@ALL
def test_jit_vmap_and_types(metric):
    several = jnp.asarray(np.random.default_rng(3).standard_normal((3, 5, 6)), jnp.float32)
    got = jax.jit(jax.vmap(metric))(several)
    close(got, [metric(m) for m in several])
    assert got.dtype == jnp.float32
    with jax.enable_x64(True):
        assert metric(M).dtype == jnp.float64


@ALL
def test_what_is_no_map(metric):
    with pytest.raises(ValueError, match="NaN or infinite"):
        metric(np.where(M > 1, np.nan, M))
    with pytest.raises(ValueError, match=r"one heatmap \[H, W\]"):
        metric(M[None])
