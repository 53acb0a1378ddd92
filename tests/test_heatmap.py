"""Resizing, scaling, fusing and laying over pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

from jaxfmi import heatmap


def close(got, expected, atol=1e-6):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("old", "new"),
    [((7, 7), (28, 28)), ((7, 5), (15, 11)), ((3, 4), (3, 4)), ((1, 1), (4, 9)), ((8, 6), (5, 13))],
)
def test_resize_is_the_twins(rng, old, new):
    m = rng.standard_normal(old).astype(np.float32)
    close(heatmap.resize(m, new), ref.resize_bilinear(m, new))
    assert heatmap.resize(jnp.asarray(m), new).dtype == jnp.float32


@pytest.mark.parametrize("new", [(3, 3), (7, 2), (1, 1)])
def test_shrinking_does_not_blur(rng, new):
    """Antialiasing, JAX's default there, is off."""
    m = rng.standard_normal((12, 9))
    close(heatmap.resize(m, new), ref.resize_bilinear(m, new))


@pytest.mark.parametrize(
    ("size", "peak"), [(7, 0.969), (14, 0.938), (28, 0.879), (56, 0.766), (112, 0.5625)]
)
def test_a_single_pixel_keeps_most_of_its_height(size, peak):
    m = np.zeros((size, size), np.float32)
    m[size // 2, size // 2] = 1
    close(heatmap.resize(m, (224, 224)).max(), peak, 5e-4)


def test_resize_to_nothing_leaves_the_map():
    m = jnp.ones((3, 4))
    assert heatmap.resize(m, None) is m


def test_unit(rng):
    m = jnp.asarray(rng.standard_normal((4, 5)))
    got = heatmap.unit(m)
    close([got.min(), got.max()], [0, 1])
    close(got, (m - m.min()) / (m.max() - m.min()))
    with jax.debug_nans(True):
        for value in (0.0, 3.0, -2.0):
            constant = jnp.full((4, 5), value)
            assert not jax.jit(heatmap.unit)(constant).any()
            assert np.isfinite(jax.grad(lambda v: heatmap.unit(v).sum())(constant)).all()


def test_divide():
    p, q = jnp.array([1.0, 1.0, 0.0]), jnp.array([2.0, 0.0, 0.0])
    close(heatmap.divide(p, q), [0.5, 0, 0])
    with jax.debug_nans(True):
        close(jax.grad(lambda q: heatmap.divide(p, q).sum())(q), [-0.25, 0, 0])


def test_tanh_max(rng):
    one, two = jnp.asarray(rng.standard_normal((2, 4, 5)))
    expected = [np.tanh(2 * np.maximum(m, 0) / m.max()) for m in (one, two)]
    got = heatmap.tanh_max([one, two])
    close(got, np.maximum(*expected))
    close(got.max(), np.tanh(2))
    close(heatmap.tanh_max([one, -jnp.ones((4, 5))]), expected[0])
    close(heatmap.tanh_max([0 * one]), np.zeros((4, 5)))


# Pictures


@pytest.fixture
def picture(rng):
    return rng.random((6, 8, 3), np.float32)


def test_overlay_of_nothing_and_of_a_positive_map(picture):
    ramp = np.linspace(0, 5, 48, dtype=np.float32).reshape(6, 8)
    got = heatmap.overlay(picture, ramp, colormap="gray", strength=1.0)
    close(got, np.broadcast_to(ramp[..., None] / 5, (6, 8, 3)), 0.01)
    close(heatmap.overlay(picture, ramp, strength=0.0), picture)
    assert got.dtype == np.float32
    close(heatmap.overlay(picture, 0 * ramp, colormap="gray", strength=0.5), picture / 2)


def test_overlay_of_a_signed_map_is_symmetric_about_zero(picture):
    m = np.zeros((6, 8), np.float32)
    m[0, 0], m[5, 7] = 2, -1
    got = heatmap.overlay(picture, m, strength=1.0)
    close(got[1:5], picture[1:5])  # 0 leaves the picture as it is
    close(got[0, 0], [1, 0, 0], 0.01)  # red
    assert got[5, 7, 2] > got[5, 7, 0]  # bluish


def test_overlay_resizes_the_map_and_stays_in_range(picture, rng):
    for m in rng.standard_normal((3, 3, 2)):
        got = heatmap.overlay(picture, m)
        assert got.shape == picture.shape
        assert got.min() >= 0
        assert got.max() <= 1


@pytest.mark.parametrize("shape", [(8,), (6, 8, 2), (6, 8, 4), (1, 6, 8, 3)])
def test_what_is_no_picture(shape):
    with pytest.raises(ValueError, match=r"picture \[H, W, 3\]"):
        heatmap.overlay(np.zeros(shape), np.zeros((6, 8)))


def test_a_signed_look_on_request(picture):
    ramp = np.linspace(0, 5, 48, dtype=np.float32).reshape(6, 8)
    assert not np.allclose(heatmap.overlay(picture, ramp)[0, 0], picture[0, 0])
    close(heatmap.overlay(picture, ramp, signed=True)[0, 0], picture[0, 0])
    close(heatmap.overlay(picture, 0 * ramp, signed=True), picture)


def test_a_percentile_leaves_colours_to_the_rest(picture):
    m = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    m[5, 7] = 1000
    options = {"colormap": "gray", "strength": 1.0}
    got = heatmap.overlay(picture, m, percentile=90, **options)
    close(got[..., 0], np.minimum(m / np.percentile(m, 90), 1), 0.01)
    assert heatmap.overlay(picture, m, **options)[5, 6].max() < 0.01
    single = np.eye(6, 8, dtype=np.float32) * (np.arange(8) == 3)[None]
    close(heatmap.overlay(picture, single, percentile=50, **options)[3, 3], 1)  # not divided by 0


def test_the_scale_of_a_map_does_not_matter(picture, rng):
    for m in (rng.random((6, 8)), rng.standard_normal((6, 8))):
        close(heatmap.overlay(picture, 1e-6 * m), heatmap.overlay(picture, m), 0.02)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1)])
def test_a_grey_picture_is_a_picture(shape):
    grey = np.random.default_rng(0).random(shape).astype(np.float32)
    colour = np.repeat(grey.reshape(6, 8, 1), 3, axis=-1)
    np.testing.assert_array_equal(heatmap.rgb(grey), colour)
    np.testing.assert_array_equal(heatmap.rgb((grey * 255).astype(np.uint8)).shape, (6, 8, 3))
    np.testing.assert_array_equal(
        heatmap.overlay(grey, np.eye(3)), heatmap.overlay(colour, np.eye(3))
    )


@pytest.mark.parametrize("value", [-0.1, 1.1, 80.0, np.nan])
def test_a_picture_is_in_the_unit_range(value):
    with pytest.raises(ValueError, match=r"floats in \[0, 1\]"):
        heatmap.rgb(np.full((2, 2, 3), value))


def test_a_map_with_nan_has_no_overlay():
    with pytest.raises(ValueError, match="the heatmap has 1 values"):
        heatmap.overlay(np.zeros((2, 2, 3)), np.array([[np.nan, 1.0]]))
