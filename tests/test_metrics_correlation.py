"""Sensitivity-n, infidelity, MuFidelity: the twins on the same draws, linear scores, no NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_correlation as ref
from nets import images, tiny

import jaxfmi as jf
from jaxfmi.metrics import (
    gaussian_noise,
    infidelity,
    mu_fidelity,
    sensitivity_n,
    square_removal,
)
from jaxfmi.metrics.correlation import draw_cells, draw_square, draw_subset

RNG = np.random.default_rng(4)
X, W = RNG.standard_normal((2, 12, 9, 2))
HEATMAP = (X * W).sum(-1) + RNG.standard_normal((12, 9))
KEY = jax.random.key(7)
NET = tiny("nnx")
METRICS = [sensitivity_n, mu_fidelity, infidelity]
ALL = pytest.mark.parametrize("metric", METRICS)
CORRELATIONS = pytest.mark.parametrize("metric", METRICS[:2])


def close(got, expected, atol=1e-5):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def score(x, scale=0.5):
    return jnp.tanh(scale * (W * x).sum()) + 0.1 * (x[..., 0] ** 2).sum()


def plain(x):
    return np.tanh(0.5 * (W * x).sum()) + 0.1 * (x[..., 0] ** 2).sum()


def linear(x):
    return (jnp.asarray(W, x.dtype) * x).sum() + 3


def nothing(x):
    return 0 * x.sum()


def draws(draw, samples):
    return np.stack([draw(jax.random.fold_in(KEY, i)) for i in range(samples)])


@pytest.mark.parametrize("options", [{"n": 5}, {"share": 0.5}, {"n": 30, "baseline": 0.7}])
@jax.enable_x64(True)
def test_sensitivity_n(options):
    n = options.get("n", 54)
    subsets = draws(lambda k: draw_subset(k, (12, 9), n), 20)
    assert (subsets.sum((1, 2)) == n).all()
    got = jax.jit(sensitivity_n(score, samples=20, chunk=7, **options))(X, HEATMAP, key=KEY)
    close(got, ref.sensitivity_n(plain, X, HEATMAP, subsets, options.get("baseline", 0.0)), 1e-10)


@pytest.mark.parametrize(("grid", "n"), [(4, 3), (9, 16), (None, 21)])
@jax.enable_x64(True)
def test_mu_fidelity(grid, n):
    cells = (12, 9) if grid is None else (grid, grid)
    subsets = draws(lambda k: draw_subset(k, cells, n), 25)
    if grid is None:
        expected = ref.spearman(*ref.sums_and_drops(plain, X, HEATMAP, subsets, 0.0))
    else:
        expected = ref.mu_fidelity(plain, X, HEATMAP, subsets)
    got = jax.jit(mu_fidelity(score, grid=grid, samples=25, chunk=4))(X, HEATMAP, key=KEY)
    close(got, expected, 1e-10)


@jax.enable_x64(True)
def test_mu_fidelity_with_cells_drawn_one_by_one():
    subsets = draws(lambda k: jax.random.bernoulli(k, 0.2, (9, 9)), 30)
    got = jax.jit(mu_fidelity(score, samples=30, exact=False))(X, HEATMAP, key=KEY)
    close(got, ref.mu_fidelity(plain, X, HEATMAP, subsets), 1e-10)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "perturb", [gaussian_noise(0.3, shared=False), square_removal(4, 0.2, per_unit=True)]
)
@jax.enable_x64(True)
def test_infidelity(perturb, normalize):
    x = jnp.asarray(X)
    changes = draws(lambda k: x - perturb(k, x).image, 15)
    metric = infidelity(score, perturb=perturb, samples=15, normalize=normalize, chunk=4)
    expected = ref.infidelity(plain, X, HEATMAP, changes, normalize)
    close(jax.jit(metric)(x, HEATMAP, key=KEY), expected, 1e-9)


@jax.enable_x64(True)
def test_noise_and_squares():
    x = jnp.asarray(X)
    image, weights = gaussian_noise(0.5)(KEY, x)
    close(x - image, np.broadcast_to(weights[..., None], x.shape), 1e-12)
    close(jnp.std(weights), 0.5, 0.1)
    image, weights = square_removal(4, -9.0)(KEY, x)
    np.testing.assert_array_equal((image == -9).all(-1), weights == 1)
    assert (image[weights == 0] == x[weights == 0]).all()


@pytest.mark.parametrize("side", [1, 4, 10, 50])
def test_squares_lie_inside_and_reach_every_pixel(side):
    squares = np.asarray(
        jax.vmap(lambda k: draw_square(k, (12, 9), side))(jax.random.split(KEY, 1500))
    )
    assert (squares.sum((1, 2)) == min(side, 12) * min(side, 9)).all()
    assert squares.any(0).all()
    assert all((np.ptp(np.argwhere(s), axis=0) < side).all() for s in squares[:50])


def test_cells_are_those_of_the_grid():
    marked = draw_cells(KEY, (12, 9), (3, 3), 2)
    blocks = np.asarray(marked).reshape(3, 4, 3, 3).mean((1, 3))
    assert sorted(blocks.ravel()) == [0] * 7 + [1] * 2


# Laws


@functools.cache
def compiled(metric, score, samples=8, chunk=None, **options):
    return jax.jit(metric(score, samples=samples, chunk=chunk, **options))


def measured(metric, score, heatmap, key=KEY, **options):
    return compiled(metric, score, **options)(jnp.float32(X), jnp.float32(heatmap), key=key)


@CORRELATIONS
def test_a_score_that_is_a_sum_is_told_by_its_terms(metric):
    terms = (W * X).sum(-1)
    close(measured(metric, linear, terms), 1)
    close(measured(metric, linear, -5 * terms), -1)
    noise = RNG.standard_normal((12, 9))
    assert abs(measured(metric, linear, noise, samples=50)) < 0.6


@pytest.mark.parametrize(
    ("perturb", "heatmap"),
    [
        (None, W.sum(-1)),
        (square_removal(3), (W * X).sum(-1)),
        (square_removal(3, 0.5), (W * (X - 0.5)).sum(-1)),
    ],
)
def test_a_linear_score_has_maps_without_infidelity(perturb, heatmap):
    close(measured(infidelity, linear, heatmap, perturb=perturb), 0, 1e-8)
    assert measured(infidelity, linear, 2 * heatmap, perturb=perturb) > 0.1
    scaled = measured(infidelity, linear, 7 * heatmap, perturb=perturb, normalize=True)
    close(scaled, 0, 1e-8)


@ALL
@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_constant_maps_and_scores(metric, value):
    constant = np.full((12, 9), value)
    assert np.isfinite(measured(metric, linear, constant))
    flat = measured(metric, nothing, HEATMAP)
    assert flat > 0 if metric is infidelity else flat == 0
    assert measured(infidelity, linear, constant, normalize=True) > 0


@ALL
def test_keys_and_chunks(metric):
    first = measured(metric, score, HEATMAP, chunk=3)
    close(measured(metric, score, HEATMAP), first)
    assert abs(measured(metric, score, HEATMAP, jax.random.key(8)) - first) > 1e-4


@ALL
def test_jit_and_vmap(metric):
    measure = metric(score, samples=6)
    keys, xs = jax.random.split(KEY, 3), jnp.float32(RNG.standard_normal((3, 12, 9, 2)))
    one = lambda x, key: measure(x, x.sum(-1), key=key)  # noqa: E731
    expected = [one(*each) for each in zip(xs, keys, strict=True)]
    close(jax.jit(jax.vmap(one))(xs, keys), expected)


@ALL
def test_batched(metric):
    xs, labels = images(3), jnp.array([0, 4, 2])
    method = lambda s: metric(s, samples=6)  # noqa: E731
    got = jf.batched(method, NET, of=jf.probability, batch_size=4)(xs, xs.sum(-1), labels, key=KEY)
    measure = method(jf.class_score(NET, of=jf.probability))

    def one(i, x, label):
        return measure(x, x.sum(-1), label, key=jax.random.fold_in(KEY, i))

    close(got, jax.jit(jax.vmap(one))(jnp.arange(3), xs, labels))
    assert got.dtype == np.float32


@ALL
def test_no_key(metric):
    with pytest.raises(ValueError, match=rf"{metric.__name__} is random: .*key=jax.random.key"):
        metric(linear)(jnp.float32(X), HEATMAP)


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        (sensitivity_n, {"n": 0}, "between 1 and 108 pixels, here it would have 0"),
        (sensitivity_n, {"n": 109}, "here it would have 109"),
        (sensitivity_n, {"share": 0.001}, "here it would have 0"),
        (mu_fidelity, {"grid": 2}, "between 1 and 4 cells, here it would have 0"),
        (mu_fidelity, {"share": 1.2}, "between 1 and 81 cells, here it would have 97"),
        (infidelity, {"samples": 0}, "at least 1; got 0"),
        (infidelity, {"chunk": 0}, "at least 1; got 0"),
    ],
)
def test_bad_options(metric, options, message):
    with pytest.raises(ValueError, match=message):
        metric(linear, **options)(jnp.float32(X), HEATMAP, key=KEY)
