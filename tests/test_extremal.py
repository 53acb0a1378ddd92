"""Extremal perturbation: its masks and loss against their twins, and that it finds what matters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_perturbation as twin

import jaxfmi as jf
from jaxfmi import extremal, references

FAST = {"iterations": 200, "step": 4, "sigma": 5.0}
RNG = np.random.default_rng(0)


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("size", "step", "sigma"), [((35, 22), 7, 21.0), ((20, 33), 5, 6.0)])
@jax.enable_x64(True)
def test_masks_are_those_of_the_twin(size, step, sigma):
    make, margin, shape = extremal.smooth_masks(size, step, sigma)
    assert shape == tuple(-(-n // step) for n in size)
    parameters = RNG.random(shape)
    reach = 1 + int(np.ceil(sigma / step))
    expected = twin.extremal_mask(parameters, size, step, sigma, margin=margin, reach=reach)
    close(make(jnp.asarray(parameters)), expected)


@pytest.mark.parametrize("area", [0.05, 0.1, 0.5])
@jax.enable_x64(True)
def test_the_loss_of_the_area(area):
    mask = RNG.random((14, 9))
    close(extremal.area_loss(jnp.asarray(mask), area), twin.area_loss(mask, area))
    step = (np.arange(100) >= 90).astype(float).reshape(10, 10)
    close(extremal.area_loss(jnp.asarray(step), 0.1), 0)


@jax.enable_x64(True)
def test_descent_is_that_of_the_twin():
    target = RNG.random((4, 3))

    def loss(p, i):
        return 300 * 1.0035**i * ((p - target) ** 2).mean() + (p**3).sum()

    def gradient(p, weight, t):
        return weight * 2 * (p - target) / p.size + 3 * p**2

    expected = twin.extremal_descent(gradient, np.ones((4, 3)), 25)[-1]
    close(extremal._descend(loss, jnp.ones((4, 3)), 25), expected)


@jax.enable_x64(True)
def test_the_pyramid_goes_from_a_blur_to_the_image():
    x = jnp.asarray(RNG.random((12, 9, 3)))
    pyramid = extremal.blur_pyramid(x)
    assert len(pyramid) == 8
    close(pyramid[0], references.blur(20.0)(x))
    close(extremal.between(pyramid, jnp.ones((12, 9))), x)
    close(extremal.between(pyramid, jnp.zeros((12, 9))), pyramid[0])
    half = extremal.between(pyramid, jnp.full((12, 9), 0.5))
    close(half, (pyramid[3] + pyramid[4]) / 2)


def spotted(size=32):
    """Bright discs in both upper quarters, which a blur takes away."""
    i, j = np.indices((size, size)) - 6
    disc = i**2 + j**2 <= 25
    return jnp.asarray((disc | disc[:, ::-1])[..., None] * np.ones(3), jnp.float32)


def in_quadrant(x):
    """How bright the upper left quarter is; steep, for what is blurred most changes little."""
    return 10 * x[:12, :12, 0].mean()


@pytest.mark.parametrize("variant", ["preserve", "delete", "dual"])
def test_the_mask_lies_where_the_model_looks(variant):
    explain = jf.extremal_perturbation(
        in_quadrant, areas=(0.07,), variant=variant, mirror=False, **FAST
    )
    got = np.asarray(jax.jit(explain)(spotted()))
    assert np.isfinite(got).all()
    assert 0 <= got.min() <= got.max() <= 1
    assert got[:14, :14].sum() > 0.7 * got.sum()
    assert 0.05 < got.mean() < 0.2


def test_mirrored_steps_explain_both_sides():
    explain = jf.extremal_perturbation(in_quadrant, areas=(0.14,), **FAST)
    got = np.asarray(jax.jit(explain)(spotted()))
    assert min(got[:14, :14].sum(), got[:14, 18:].sum()) > 0.3 * got.sum()


def test_masks_of_several_areas_are_summed():
    options = FAST | {"iterations": 20}
    areas = (0.1, 0.3)
    both = jf.extremal_perturbation(in_quadrant, areas=areas, **options)(spotted())
    each = [jf.extremal_perturbation(in_quadrant, areas=(a,), **options) for a in areas]
    close(both, sum(explain(spotted()) for explain in each), 0.03)  # equal values: rounding sorts
    smooth = jf.extremal_perturbation(in_quadrant, areas=areas, smooth=0.09, **options)(spotted())
    assert np.abs(np.diff(smooth, axis=0)).max() < np.abs(np.diff(both, axis=0)).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"areas": ()}, "areas are shares of the mask"),
        ({"areas": (0.1, 1.0)}, "areas are shares of the mask"),
        ({"variant": "keep"}, "variant is 'preserve', 'delete' or 'dual'; got 'keep'"),
        ({"iterations": 0}, "numbers of at least 1"),
        ({"sigma": 0.0}, "numbers of at least 1"),
    ],
)
def test_what_is_none(options, message):
    with pytest.raises(ValueError, match=message):
        jf.extremal_perturbation(jnp.sum, **options)
