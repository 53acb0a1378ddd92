"""Ablation and occlusion: what is removed, what is counted, and what is not kept in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import reference_net as net
from nets import images, tiny, twins

import jaxfmi as jf
from jaxfmi import class_score, tag

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


def test_removed_channels_are_never_all_there():
    x = jnp.ones((40, 40, 64))
    score = lambda v: (tag(v, "a") ** 2).sum() ** 0.5  # noqa: E731
    method = jf.ablation_cam(score, "a", chunk=2)
    temporary = jax.jit(method).lower(x).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 64 * x.size  # 16 copies of the activation, of 64


def test_ablation_of_negative_activations_removes_them():
    """A channel is set to 0 even where it is below: pytorch-grad-cam sinks it further."""
    a = -jnp.ones((2, 2, 3))
    got = jf.ablation_cam(lambda v: tag(v, "a").sum(), "a", relu=False)(a)
    close(got, 12 * (-4 / 12) * -np.ones((2, 2)) / 4)
