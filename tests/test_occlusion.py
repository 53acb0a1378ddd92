"""Occlusion and RISE: what is covered, what is counted, and what is not kept in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import reference_net as net
import reference_perturbation as twin
import reference_sise as sise
from nets import g3_model, images, tiny, twins

import jaxfmi as jf
from jaxfmi import class_score
from jaxfmi.occlusion import _rise_mask

X = np.random.default_rng(5).standard_normal((6, 8, 2))


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("window", "stride"),
    [
        ((2, 2), (2, 2)),  # no remainder
        ((3, 3), (2, 2)),  # one in the rows and in the columns
        ((4, 3), (3, 1)),
        ((6, 8), (6, 8)),  # one window
        ((1, 1), (1, 1)),
        ((5, 7), (4, 6)),
    ],
)
@pytest.mark.parametrize("fill", [0.0, -0.7])
@jax.enable_x64(True)
def test_occlusion(window, stride, fill):
    layers, score, _ = twins()
    expected = ref.occlusion(net.score(layers, 1), X, window, stride, fill)
    method = jf.occlusion(score, window=window, stride=stride, fill=fill, chunk=5)
    close(jax.jit(method)(jnp.asarray(X), 1), expected)


@jax.enable_x64(True)
def test_occlusion_of_an_additive_score_finds_every_window():
    x = jnp.asarray(X)
    got = jf.occlusion(jnp.sum, window=1, stride=1)(x)
    close(got, X.sum(2))
    moved = jf.occlusion(lambda v: v[4, 7].sum(), window=2, stride=2)(x)
    close(moved[4:6, 6:8], X[4, 7].sum())
    assert not moved[:4].any()
    assert not moved[:, :6].any()


@jax.enable_x64(True)
def test_a_window_larger_than_the_image_covers_it():
    x = jnp.asarray(X)
    close(jf.occlusion(jnp.sum, window=99, stride=50)(x), np.full((6, 8), X.sum()))
    got = jf.occlusion(jnp.sum, window=(99, 8), stride=(50, 8), fill=1.0)(x)
    close(got, np.full((6, 8), X.sum() - X.size))


@jax.enable_x64(True)
def test_fill_may_be_a_colour_or_an_image():
    x = jnp.asarray(X)
    colour = np.array([0.3, -2.0])
    got = jf.occlusion(jnp.sum, window=1, stride=1, fill=colour)(x)
    close(got, X.sum(2) - colour.sum())
    got = jf.occlusion(jnp.sum, window=1, stride=1, fill=X[::-1])(x)
    close(got, (X - X[::-1]).sum(2))


@pytest.mark.parametrize(
    ("window", "stride"), [(2, 3), ((2, 4), (2, 5)), (2, 0), (0, 1), (-1, -1), ((3, 3), (1, 0))]
)
def test_windows_that_leave_pixels_out(window, stride):
    with pytest.raises(ValueError, match="expected 1 <= stride <= window, got stride"):
        jf.occlusion(jnp.sum, window=window, stride=stride)


@pytest.mark.parametrize("chunk", [0, -3])
@pytest.mark.parametrize("method", [jf.occlusion, jf.ablation_cam, jf.integrated_gradients])
def test_chunks_are_at_least_one(method, chunk):
    with pytest.raises(ValueError, match=f"at least 1; got {chunk}"):
        method(class_score(tiny("nnx")), chunk=chunk)(images(1)[0], 1)


def test_covered_images_are_never_all_there():
    """400 windows over 40 x 40: a chunk of 4 copies at a time, not 400."""
    x = jnp.ones((40, 40, 3))
    for chunk in (4, 50):
        method = jf.occlusion(lambda v: (v**2).sum(), window=2, stride=2, chunk=chunk)
        temporary = jax.jit(method).lower(x).compile().memory_analysis().temp_size_in_bytes
        assert temporary < 4 * 4 * chunk * x.size


# RISE


def rise_masks(key, n, size=(32, 32), cells=4, p=0.5):
    """Those that the library draws."""
    return jax.vmap(_rise_mask(key, size, cells, p, jnp.float32))(jnp.arange(n))


@pytest.mark.parametrize("normalise", ["expectation", "pixel"])
def test_rise_is_its_twin_of_the_same_masks(normalise):
    key, x = jax.random.key(1), sise.g3_image()
    masks = np.asarray(rise_masks(key, 12), float)
    expected = twin.rise(x, masks, sise.g3_score(), 0.5, normalise)
    score = class_score(g3_model, jf.probability)
    explain = jf.rise(score, samples=12, cells=4, normalise=normalise, chunk=5)
    close(jax.jit(explain)(jnp.asarray(x, jnp.float32), 4, key=key), expected, 1e-5)


def test_masks_are_enlarged_grids_cut_out_somewhere():
    """What the library draws is a mask of the twin's, of one of the 16 grids and 16 shifts."""
    shifts = np.array(list(np.ndindex(4, 4)))
    grids = np.array(list(np.ndindex(2, 2, 2, 2)), float).reshape(-1, 2, 2)
    every = np.concatenate(
        [twin.rise_masks(np.repeat(g[None], 16, 0), shifts, (8, 8)) for g in grids]
    )
    drawn = np.asarray(rise_masks(jax.random.key(2), 40, (8, 8), 2))
    distance = np.abs(drawn[:, None] - every[None]).max((2, 3))
    assert distance.min(1).max() < 1e-6
    assert len(set(distance.argmin(1).tolist())) > 20


def test_masks_have_the_same_expectation_everywhere():
    masks = np.asarray(rise_masks(jax.random.key(0), 3000, (21, 14), 3, 0.3))
    assert masks.shape == (3000, 21, 14)
    assert abs(masks.mean() - 0.3) < 0.01
    close(masks.mean(0), 0.3, 5 * np.sqrt(0.3 * 0.7 / 3000))


def test_rise_of_an_additive_score_is_the_smoothed_image():
    """E[S(q)] = p sum_r w_r + sum_r w_r Cov(M(q), M(r)) / p for the score sum_r w_r x_r, x = 1."""
    w = np.zeros((20, 20), np.float32)
    w[4:9, 11:15] = 1.0
    explain = jf.rise(lambda x: (x[..., 0] * w).sum(), samples=4000, cells=5, chunk=500)
    got = np.asarray(jax.jit(explain)(jnp.ones((20, 20, 1)), key=jax.random.key(0)))
    masks = np.asarray(rise_masks(jax.random.key(9), 4000, (20, 20), 5)).reshape(4000, -1)
    covariance = np.cov(masks.T)
    expected = 0.5 * w.sum() + (covariance @ w.ravel()).reshape(20, 20) / 0.5
    close(got, expected, 0.1 * expected.max())
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.98  # of 4000 masks each
    assert w.ravel()[got.argmax()] == 1


def test_rise_is_linear_in_the_score():
    key, x = jax.random.key(4), jnp.asarray(X, jnp.float32)
    scores = [lambda v: v.sum() ** 2, lambda v: jnp.sin(v).mean()]
    one, two = (jf.rise(s, samples=20, cells=3)(x, key=key) for s in scores)
    both = jf.rise(lambda v: 2 * scores[0](v) - 3 * scores[1](v), samples=20, cells=3)(x, key=key)
    close(both, 2 * one - 3 * two, 1e-3)


def test_rise_that_covers_nothing_is_the_score():
    got = jf.rise(lambda v: v.sum(), samples=3, p=1.0)(jnp.ones((9, 7, 2)), key=jax.random.key(0))
    close(got, np.full((9, 7), 126.0), 1e-4)


def test_the_same_key_gives_every_image_the_same_masks():
    images, key = jnp.stack([jnp.ones((9, 7, 2)), 2 * jnp.ones((9, 7, 2))]), jax.random.key(5)
    explain = jf.rise(jnp.sum, samples=6, cells=3)
    got = jax.vmap(lambda x: explain(x, key=key))(images)
    close(got[1], 2 * got[0], 1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "at least 1 sample and 1 cell"),
        ({"cells": 0}, "at least 1 sample and 1 cell"),
        ({"p": 0.0}, "0 < p <= 1"),
        ({"p": 1.1}, "0 < p <= 1"),
        ({"normalise": "sum"}, "normalise is 'expectation' or 'pixel'; got 'sum'"),
    ],
)
def test_rise_that_is_none(options, message):
    with pytest.raises(ValueError, match=message):
        jf.rise(jnp.sum, **options)
