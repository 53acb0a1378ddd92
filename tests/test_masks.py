"""Masks that stay small: enlarging, extremes, areas and sums without the enlarged map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_perturbation as twin
from reference import resize_bilinear

from jaxfmi import bilinear, masks

A = np.random.default_rng(0).standard_normal((5, 4, 6))
SIZES = [(15, 11), (10, 8), (5, 4), (3, 3), (64, 7), (1, 1)]


def close(got, expected, atol=1e-12):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("corners", [False, True])
def test_resize(size, corners):
    expected = twin.resize_corners if corners else resize_bilinear
    got = bilinear.resize(jnp.asarray(A.transpose(2, 0, 1)), size, corners)
    for k in range(6):
        close(got[k], expected(A[..., k], size))


@pytest.mark.parametrize("n", [1, 2, 7, 14])
@pytest.mark.parametrize("size", [1, 3, 14, 29, 224])
@pytest.mark.parametrize("corners", [False, True])
def test_extremes_are_among_the_outermost(n, size, corners):
    """Of random maps, and of those with one high position."""
    m = bilinear.matrix(n, size, corners)
    close(m.sum(1), 1)
    kept = m[masks._outermost(n, size, corners)]
    assert len(kept) <= 2 * (n + 1)
    for v in [*np.random.default_rng(1).standard_normal((20, n)), *np.eye(n)]:
        close([(kept @ v).min(), (kept @ v).max()], [(m @ v).min(), (m @ v).max()])


@pytest.mark.parametrize("size", SIZES[:3])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.1])
def test_masks_are_scaled_after_they_are_enlarged(size, eps):
    found = masks.activation_masks(jnp.asarray(A), size, eps=eps)
    for k in range(6):
        u = resize_bilinear(A[..., k], size)
        expected = (u - u.min()) / (np.ptp(u) + eps)
        close(bilinear.resize(found.maps[k], size), expected)


def test_masks_that_are_scaled_first():
    found = masks.activation_masks(jnp.asarray(A), (15, 11), first="scale")
    expected = twin.unit_first_masks(A, (15, 11))
    close(bilinear.resize(found.maps, (15, 11)), expected, 1e-7)  # the twin's has an eps


@pytest.mark.parametrize("size", SIZES)
def test_areas_and_sums_are_those_of_enlarged_masks(size):
    found = masks.activation_masks(jnp.asarray(A), size, eps=1e-6)
    dense = np.asarray(bilinear.resize(found.maps, size))
    close(masks.areas(found.maps, size), dense.sum((1, 2)), 1e-9)
    weights = np.random.default_rng(2).standard_normal(6)
    total = masks.weighted_sum(found.maps, jnp.asarray(weights), size)
    close(total, np.tensordot(weights, dense, 1))


@pytest.mark.parametrize("first", ["enlarge", "scale"])
def test_constant_maps_are_dead_and_zero(first):
    a = jnp.asarray(A).at[..., 2].set(0.7).at[..., 4].set(0)
    with jax.debug_nans(True):
        found = masks.activation_masks(a, (15, 11), first=first)
    assert found.live.tolist() == [True, True, False, True, False, True]
    assert not found.maps[jnp.array([2, 4])].any()


def test_a_positive_affine_change_of_a_map_leaves_its_mask():
    one = masks.activation_masks(jnp.asarray(A), (15, 11))
    other = masks.activation_masks(jnp.asarray(3.5 * A - 2), (15, 11))
    close(one.maps, other.maps)
