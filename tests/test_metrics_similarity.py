"""Similarities: scikit-image's and SciPy's values, ties, constant maps, what changes none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_similarity as ref
from scipy import stats

from jaxfmi.heatmap import unit
from jaxfmi.metrics import area_matched_iou, pearson, spearman, ssim, thresholded_iou

RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((2, 19, 23))
CORRELATIONS = pytest.mark.parametrize("similarity", [ssim, pearson, spearman])
ALL = pytest.mark.parametrize(
    "similarity", [ssim, pearson, spearman, thresholded_iou, area_matched_iou]
)


def close(got, expected, atol=1e-5):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
@jax.enable_x64(True)
def test_ssim_is_that_of_scikit_image(share):
    metrics = pytest.importorskip("skimage.metrics", reason="needs the extra `demo`: scikit-image")
    a, b = jnp.asarray(A), jnp.asarray(share * A + (1 - share) * B)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = metrics.structural_similarity(
        *map(np.asarray, map(unit, (a, b))), **settings, data_range=1
    )
    close(ssim(a, b), expected, 1e-12)


@CORRELATIONS
@pytest.mark.parametrize("b", [B, A + B, np.round(A), 0 * A + 2])
@jax.enable_x64(True)
def test_twins(similarity, b):
    close(similarity(A, b), getattr(ref, similarity.__name__)(A, b), 1e-12)


def test_ssim_by_hand():
    """Where both maps are 0 and 1 in turn, windows differ in nothing but the covariance."""
    a = jnp.asarray(np.indices((11, 11)).sum(0) % 2, jnp.float32)
    g = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights = np.outer(g, g) / g.sum() ** 2
    m = (weights * np.asarray(a)).sum()
    v, n = m * (1 - m), 1 - m
    expected = (2 * m * n + 1e-4) * (-2 * v + 9e-4) / ((m * m + n * n + 1e-4) * (2 * v + 9e-4))
    close(ssim(a, 1 - a), expected)


@pytest.mark.parametrize("rounded", [False, True])
@jax.enable_x64(True)
def test_correlations_are_those_of_scipy(rounded):
    a, b = (np.round(m) if rounded else m for m in (A, A + 2 * B))
    close(pearson(a, b), stats.pearsonr(a.ravel(), b.ravel())[0], 1e-12)
    close(spearman(a, b), stats.spearmanr(a.ravel(), b.ravel())[0], 1e-12)


def test_ranks_of_ties_are_averages():
    a, b = jnp.array([[1.0, 2.0, 2.0, -0.0]]), jnp.array([[1.0, 3.0, 4.0, 0.0]])
    close(spearman(a, b), stats.spearmanr(a[0], b[0])[0])
    close(spearman(jnp.array([[0.0, -0.0, 1.0]]), jnp.array([[5.0, 5.0, 7.0]])), 1)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_float32_maps_of_any_scale(scale):
    a, b = jnp.float32(A), jnp.float32(A + B)
    for similarity in (ssim, pearson, spearman):
        close(similarity(scale * a, b), similarity(a, b))
    close(ssim(a, b), jax.enable_x64(True)(lambda: np.float64(ssim(A, A + B)))())


@ALL
def test_a_map_is_like_itself_scaled_and_shifted(similarity):
    close(similarity(A, A), 1)
    close(similarity(A, 3 * A + 7), 1)
    close(similarity(A, B), similarity(B, A))
    assert similarity(A, B) < 0.9


@pytest.mark.parametrize("similarity", [pearson, spearman])
def test_a_negated_map_is_the_opposite(similarity):
    close(similarity(A, -A), -1)


@CORRELATIONS
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_constant_maps(similarity, value):
    constant = np.full(A.shape, value, np.float32)
    alone = similarity(constant, A)
    assert np.isfinite(alone)
    assert abs(alone) < 0.1
    assert similarity(A, constant) == alone
    close(similarity(constant, constant + 1), 1 if similarity is ssim else 0)


def test_iou_at_a_threshold():
    a = jnp.array([[0.0, 0.39, 0.4, 1.0]])
    close(thresholded_iou(a, a[:, ::-1]), 0)
    close(thresholded_iou(a, jnp.array([[0.0, 0.0, 1.0, 0.0]])), 1 / 2)
    close(thresholded_iou(a, 5 * a - 1, threshold=0.1), 1)
    assert thresholded_iou(a, jnp.ones((1, 4))) == 0
    assert np.isnan(thresholded_iou(jnp.zeros((1, 4)), jnp.ones((1, 4))))


def test_iou_of_as_many_pixels():
    a = jnp.arange(16.0).reshape(4, 4)
    close(area_matched_iou(a, a.T), 1 / 7)  # the last row and the last column
    close(area_matched_iou(a, jnp.zeros((4, 4))), 0)  # of ties the first: the first row
    close(area_matched_iou(a, -a, share=1.0), 1)
    close(area_matched_iou(a**3, a, share=0.5), 1)


@pytest.mark.parametrize("share", [0.0, 0.001, 1.5])
def test_a_share_of_no_pixel(share):
    with pytest.raises(ValueError, match=f"marks a pixel at least; got {share} of 437"):
        area_matched_iou(A, B, share=share)


@ALL
def test_what_is_no_pair_of_maps(similarity):
    with pytest.raises(ValueError, match=r"heatmap of the size \(19, 23\), got \(23, 19\)"):
        similarity(A, B.T)
    with pytest.raises(ValueError, match="values that are NaN"):
        similarity(A, np.where(A > 2, np.nan, A))
    with pytest.raises(ValueError, match=r"one heatmap \[H, W\]"):
        similarity(A[None], B)


def test_maps_smaller_than_a_window():
    with pytest.raises(ValueError, match=r"window of 11 x 11, the maps are \(10, 23\)"):
        ssim(A[:10], B[:10])
    assert ssim(A[:11, :11], B[:11, :11]).shape == ()


@ALL
def test_jit_and_vmap(similarity):
    several = jnp.asarray(RNG.standard_normal((3, 12, 14)), jnp.float32)
    got = jax.jit(jax.vmap(similarity))(several, several[::-1])
    close(got, [similarity(a, b) for a, b in zip(several, several[::-1], strict=True)])
    assert got.dtype == jnp.float32
