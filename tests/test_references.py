"""References against their slow twins, and what is drawn against what is promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_baselines as twin

from jaxfmi import references

MEAN, STD = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.1])
X = np.random.default_rng(0).standard_normal((5, 8, 3))
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.7, np.array([1.0, 2.0, 3.0])])
def test_fill(value):
    close(references.fill(value)(jnp.asarray(X)), twin.fill(X, value))


@pytest.mark.parametrize("name", ["black", "white"])
@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), (0.5, 0.25), (tuple(MEAN), tuple(STD))])
def test_black_and_white_are_pixels_before_the_normalisation(name, mean, std):
    got = getattr(references, name)(mean, std)(jnp.asarray(X))
    close(got, getattr(twin, name)(X, mean, std))
    close(got * np.broadcast_to(std, X.shape) + np.broadcast_to(mean, X.shape), name == "white")


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.3, 4.0, 20.0])
def test_blur_is_that_of_the_twin_also_where_it_is_wider_than_the_image(sigma):
    close(references.blur(sigma)(jnp.asarray(X)), twin.blur(X, sigma))


@pytest.mark.parametrize("sigma", [0.8, 2.0, 20.0])
def test_blur_is_that_of_scipy(sigma):
    ndimage = pytest.importorskip("scipy.ndimage", reason="compares with SciPy")
    expected = ndimage.gaussian_filter(X, (sigma, sigma, 0), mode="reflect", truncate=4.0)
    close(references.blur(sigma)(jnp.asarray(X)), expected)


def test_blur_keeps_the_mean_and_a_constant():
    close(references.blur(3.0)(jnp.asarray(X)).mean((0, 1)), X.mean((0, 1)))
    close(references.blur(3.0)(jnp.full(X.shape, 0.3)), 0.3)


def test_activations():
    close(references.zero_activation.make(jnp.asarray(X)), twin.zero_activation(X))
    close(references.constant_activation().make(jnp.asarray(X)), twin.constant_activation(X))
    got = references.constant_activation(MEAN).make(jnp.asarray(X))
    close(got, twin.constant_activation(X, MEAN))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize(
    "reference",
    [references.fill(MEAN), references.black(MEAN, STD), references.blur(2.0)],
)
def test_a_reference_has_the_shape_and_type_of_the_image(reference, dtype):
    got = reference(jnp.asarray(X, dtype))
    assert got.shape == X.shape
    assert got.dtype == dtype


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("reference", [references.uniform(-2.0, 3.0), references.gaussian(2.0)])
def test_random_references_are_decided_by_the_key(reference, dtype):
    x = jnp.zeros((5, 8, 3), dtype)
    got = reference.draw(KEY, x)
    assert got.shape == x.shape
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, reference.draw(KEY, x + 1))
    assert (got != reference.draw(jax.random.key(1), x)).any()
    assert len(np.unique(np.asarray(got, np.float32))) > 20  # each pixel is drawn by itself


def test_random_references_are_distributed_as_they_say():
    x = jnp.zeros((100, 100, 3))
    uniform = references.uniform(-2.0, 3.0).draw(KEY, x)
    assert uniform.min() >= -2
    assert uniform.max() < 3
    np.testing.assert_allclose([uniform.mean(), uniform.std()], [0.5, 5 / 12**0.5], atol=0.02)
    gaussian = references.gaussian(2.0).draw(KEY, x)
    np.testing.assert_allclose([gaussian.mean(), gaussian.std()], [0, 2], atol=0.03)


def test_several_are_drawn_apart():
    got = references.several(references.gaussian(1.0), 4).draw(KEY, jnp.asarray(X))
    assert got.shape == (4, *X.shape)
    np.testing.assert_array_less(0.5, np.std(got, 0).mean())
    assert len(np.unique(got)) == got.size


def test_the_named_ones():
    assert list(references.NAMED) == ["fill", "blur", "zero_activation", "constant_activation"]
    close(references.NAMED["fill"](jnp.asarray(X)), 0)
    close(references.NAMED["blur"](jnp.asarray(X)), twin.blur(X, 20.0))
