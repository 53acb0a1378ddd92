"""Completeness and conservation: maps that add up, and by how much others do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import images, tiny

import jaxfmi as jf
from jaxfmi.metrics import completeness_error, conservation_error

X = images(1)[0]
SCORE = jf.class_score(tiny("nnx"))
LINEAR = jnp.asarray(0.1 * np.random.default_rng(0).standard_normal(X.shape), jnp.float32)


def linear(x, scale=1.0):
    return scale * (LINEAR * x).sum()


def close(got, expected, atol=1e-4):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("reference", [0.0, 0.5, np.float32([0.1, -1, 2]), jf.references.blur(3)])
def test_integrated_gradients_are_complete(reference):
    start = reference(X) if callable(reference) else reference
    heatmap = jax.jit(jf.integrated_gradients(SCORE, baseline=start, steps=300))(X, 2)
    error = completeness_error(SCORE, reference=reference)
    close(error(X, heatmap, 2), 0, 2e-3)
    close(error(X, heatmap + 1, 2), heatmap.size, 2e-3)
    relative = completeness_error(SCORE, reference=reference, relative=True)
    change = SCORE(X, 2) - SCORE(jnp.broadcast_to(start, X.shape), 2)
    close(relative(X, heatmap + 1, 2), heatmap.size / abs(change), 0.02)


def test_input_x_gradient_of_a_linear_score_is_conserved():
    heatmap = jf.input_x_gradient(linear)(X)
    close(conservation_error(linear)(X, heatmap), 0)
    close(conservation_error(linear)(X, heatmap, 3.0), -2 * linear(X))
    close(conservation_error(linear, relative=True)(X, 0 * heatmap), -np.sign(linear(X)))
    close(conservation_error(linear, relative=True)(-X, 0 * heatmap), np.sign(linear(X)))


def test_relative_to_nothing_is_undefined():
    zero = 0 * X
    heatmap = jnp.ones(X.shape[:2])
    assert np.isnan(completeness_error(linear, relative=True)(zero, heatmap))
    assert np.isnan(conservation_error(linear, relative=True)(zero, heatmap))
    close(completeness_error(linear)(zero, heatmap), heatmap.size)


@pytest.mark.parametrize("metric", [completeness_error, conservation_error])
def test_forms(metric):
    xs, labels = images(3), jnp.array([0, 4, 2])
    heatmaps = jax.vmap(jf.input_x_gradient(SCORE))(xs, labels)
    expected = [metric(SCORE)(*each) for each in zip(xs, heatmaps, labels, strict=True)]
    close(jax.jit(jax.vmap(metric(SCORE)))(xs, heatmaps, labels), expected)
    got = jf.batched(metric, tiny("nnx"), batch_size=4)(xs, heatmaps, labels)
    close(got, expected)
    assert got.dtype == np.float32


@pytest.mark.parametrize("metric", [completeness_error, conservation_error])
def test_bad_input(metric):
    with pytest.raises(ValueError, match=r"heatmap of the size \(15, 11\), got \(8, 6\)"):
        metric(SCORE)(X, np.zeros((8, 6)), 1)
    with pytest.raises(ValueError, match="label 9 is out of range"):
        metric(SCORE)(X, np.zeros((15, 11)), 9)
