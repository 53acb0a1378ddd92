"""ROAD: the imputation against a dense solve, its laws, and the scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_road as ref
from nets import HEIGHT, WIDTH, images

import jaxfmi
from jaxfmi.metrics import impute, road, road_curve

KEY = jax.random.key(3)
WEIGHTS = np.random.default_rng(7).standard_normal((HEIGHT * WIDTH * 3, 5)).astype(np.float32)


def model(x):
    return jnp.tanh(x).reshape(len(x), -1) @ WEIGHTS / 5


def score(x, label):
    return jax.nn.softmax(model(x[None])[0])[label]


def masks(shape):
    """Scattered pixels, a hole at the border, all but one pixel."""
    known = np.random.default_rng(0).random(shape) > 0.6
    hole = np.ones(shape, bool)
    hole[3:, : shape[1] - 4] = False
    one = np.zeros(shape, bool)
    one[shape[0] // 2, 1] = True
    return [known, hole, one]


@pytest.mark.parametrize("shape", [(15, 11), (16, 24), (3, 9)])
@jax.enable_x64(True)
def test_imputation_is_the_dense_solution(shape):
    x = np.random.default_rng(1).random((*shape, 2))
    for known in masks(shape):
        got = impute(jnp.asarray(x), known, tolerance=1e-12)
        np.testing.assert_allclose(got, ref.impute(x, ~known), atol=1e-9)
        np.testing.assert_array_equal(got[known], x[known])


def test_imputation_does_not_read_what_is_removed():
    x, known = images(1)[0], masks((HEIGHT, WIDTH))[0]
    other = jnp.where(known[..., None], x, 7.0)
    np.testing.assert_allclose(impute(x, known), impute(other, known), atol=1e-4)


def test_a_constant_image_stays():
    for known in masks((16, 24)):
        np.testing.assert_allclose(impute(jnp.full((16, 24, 3), 0.3), known), 0.3, atol=1e-6)


@jax.enable_x64(True)
def test_a_ramp_stays_inside():
    i, j = np.indices((20, 20))
    ramp = jnp.asarray(2.0 * i - 3.0 * j)[..., None]
    known = np.ones((20, 20), bool)
    known[4:15, 6:16] = False
    np.testing.assert_allclose(impute(ramp, known, tolerance=1e-12), ramp, atol=1e-8)


@jax.enable_x64(True)
def test_scores_are_the_twins():
    x, label = jnp.asarray(images(1)[0], float), 2
    heatmap = np.random.default_rng(5).permutation(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    measure = jax.jit(road_curve(score, noise=0.0, tolerance=1e-12))
    found = measure(x, heatmap, label)
    percentiles = range(90, 0, -10)  # what is kept, where we say what is removed

    def f(x):
        return float(score(jnp.asarray(x), label))

    for got, sign in ((found.morf, 1), (found.lerf, -1)):
        changes = ref.road_curve(f, np.asarray(x), sign * heatmap, percentiles)
        np.testing.assert_allclose(got - found.clean, changes, atol=1e-6)
    expected = ref.road(f, np.asarray(x), heatmap, percentiles)
    np.testing.assert_allclose(found.combined, expected, atol=1e-6)


@functools.cache
def compiled():
    """The metric of the score above; compiling conjugate gradients takes seconds."""
    return jax.jit(road(score))


def test_the_noise_is_the_keys():
    x, heatmap = images(1)[0], images(1, seed=5)[0, ..., 0]
    assert compiled()(x, heatmap, 1, key=KEY) == compiled()(x, heatmap, 1, key=KEY)
    assert compiled()(x, heatmap, 1, key=KEY) != compiled()(x, heatmap, 1, key=jax.random.key(4))


@pytest.mark.parametrize("change", [lambda m: m + 3, lambda m: 2 * m, jnp.exp])
def test_only_the_order_of_a_map_matters(change):
    x, heatmap = images(1)[0], images(1, seed=5)[0, ..., 0]
    assert compiled()(x, change(heatmap), 1, key=KEY) == compiled()(x, heatmap, 1, key=KEY)


def test_the_chunk_does_not_matter():
    x, heatmap = images(1)[0], images(1, seed=5)[0, ..., 0]
    got = jax.jit(road(score, chunk=5))(x, heatmap, 1, key=KEY)
    np.testing.assert_allclose(got, compiled()(x, heatmap, 1, key=KEY), atol=1e-5)


def test_a_batch_is_its_images():
    x, heatmaps, labels = images(3), images(3, seed=5)[..., 0], np.arange(3)
    measure = jaxfmi.batched(lambda score: road(score), model, of=jaxfmi.probability)
    got = measure(x, heatmaps, labels, key=KEY)
    keys = [jax.random.fold_in(KEY, i) for i in range(3)]
    rows = zip(x, heatmaps, labels, keys, strict=True)
    expected = [compiled()(*row[:3], key=row[3]) for row in rows]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_map_of_what_matters_has_a_high_value():
    """The score is the contrast of a square with what is around it."""
    x = jnp.zeros((16, 16, 1)).at[4:9, 5:10].set(1.0)
    heatmap = x[..., 0]
    measure = jax.jit(road(lambda x: x[4:9, 5:10].mean() - x.mean(), noise=0.0))
    assert measure(x, heatmap) > 0.2
    assert measure(x, -heatmap) < -0.2


def test_bad_input_is_said():
    x, heatmap = images(1)[0], jnp.ones((HEIGHT, WIDTH))
    with pytest.raises(ValueError, match="road is random: call it with key="):
        road(score)(x, heatmap, 1)
    for shares in ((), (0.5, 1.0)):
        with pytest.raises(ValueError, match="shares are of the pixels"):
            road(score, shares=shares)
