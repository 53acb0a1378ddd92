"""How alike are two heatmaps? What the metrics of robustness and of randomisation compare by.

Every function takes two maps [H, W] of one size and gives a scalar. Only the shape of a map counts,
not its scale: no positive factor and no constant that is added changes a value. Signs count; give
the absolute values of both maps where they should not.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxfmi.heatmap import divide, unit
from jaxfmi.metrics.metric import check_heatmap
from jaxfmi.metrics.ranking import count, top

WINDOW, SIGMA = 11, 1.5


def ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Structural similarity (Wang, Bovik, Sheikh and Simoncelli, 2004) of two maps [H, W].

    Both maps are scaled to [0, 1] by their own minimum and maximum. Then, with Gaussian means,
    variances and covariance in windows of 11 x 11 pixels (sigma 1.5), the mean over all windows
    inside of the map of

        (2 μa μb + .01²) (2 σab + .03²) / ((μa² + μb² + .01²) (σa² + σb² + .03²))

    which is at most 1, and 1 for maps that are equal once they are scaled. Equal to scikit-image's
    with the paper's settings (``gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1``). Constant maps count as zeros, so two of them are equal. Adebayo et al. (2018)
    and the field scale the maps too, as their values have no unit. Quantus flattens them first and
    so compares windows of a row of pixels: 7 of one weight, with sample covariances, and the joint
    range of both maps as data range.

    Raises:
      ValueError: maps of two sizes, or smaller than a window.
    """
    a, b = _pair(a, b)
    if min(a.shape) < WINDOW:
        raise ValueError(f"ssim has a window of {WINDOW} x {WINDOW}, the maps are {a.shape}")
    return _ssim(unit(a), unit(b))


def _ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    ma, mb = _local_mean(a), _local_mean(b)
    va, vb = _local_mean(a * a) - ma**2, _local_mean(b * b) - mb**2
    covariance = _local_mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    same = (2 * ma * mb + c1) * (2 * covariance + c2)
    return (same / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()


def _local_mean(m: jax.Array) -> jax.Array:
    """Gaussian means over the windows that lie inside, [H, W] -> [H - 10, W - 10]."""
    weights = np.exp(-0.5 * (np.arange(-(WINDOW // 2), WINDOW // 2 + 1) / SIGMA) ** 2)
    weights = jnp.asarray(weights / weights.sum(), m.dtype)
    exact = jax.lax.Precision.HIGHEST  # the difference of two means of squares follows
    rows = jax.scipy.signal.convolve(m, weights[:, None], "valid", precision=exact)
    return jax.scipy.signal.convolve(rows, weights[None], "valid", precision=exact)


def pearson(a: jax.Array, b: jax.Array) -> jax.Array:
    """Pearson's correlation of two maps [H, W], from -1 to 1; 0 where one of them is constant.

    SciPy and Quantus give NaN for a constant map: it follows nothing, so the library says 0.

    Raises:
      ValueError: maps of two sizes.
    """
    return correlation(*_pair(a, b))


def spearman(a: jax.Array, b: jax.Array) -> jax.Array:
    """Spearman's rank correlation of two maps [H, W], from -1 to 1; 0 where one is constant.

    Pearson's correlation of the ranks; pixels of one value share the average of their ranks, as in
    SciPy. No increasing change of a map changes it.

    Raises:
      ValueError: maps of two sizes.
    """
    return rank_correlation(*_pair(a, b))


def correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Pearson's correlation of two arrays of one shape; 0 where one of them is constant."""
    a, b = (v - v.mean() for v in (unit(a), unit(b)))  # scaled: squares of 1e-30 would be 0
    return jnp.clip(divide((a * b).sum(), jnp.sqrt((a * a).sum() * (b * b).sum())), -1, 1)


def rank_correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Spearman's correlation of two arrays of one shape; 0 where one of them is constant."""
    return correlation(_average_ranks(a), _average_ranks(b))


def _average_ranks(v: jax.Array) -> jax.Array:
    """Twice the rank of every value, the average rank where values are tied."""
    # Only what came out of the sort is compared: XLA may compute v once more, rounded otherwise.
    ordered, places = jax.lax.sort((v.ravel(), jnp.arange(v.size)), num_keys=1)
    below, up_to = (jnp.searchsorted(ordered, ordered, side=side) for side in ("left", "right"))
    return jnp.zeros_like(ordered).at[places].set((below + up_to).astype(v.dtype))


def thresholded_iou(a: jax.Array, b: jax.Array, *, threshold: float = 100 / 256) -> jax.Array:
    """Intersection over union of where two maps [H, W], scaled to [0, 1], are above a threshold.

    From 0 to 1; NaN where neither map has such a pixel, which is so for two constant maps only (for
    thresholds from 0 to 1). 100/256 is the threshold at which LFI-CAM (Lee, Jeong, Lee, Park and
    Kim, 2021) was compared with ABN; their code wraps the maximum of a map, 256 in 8 bits, to 0.

    Raises:
      ValueError: maps of two sizes.
    """
    a, b = _pair(a, b)
    return _iou(unit(a) > threshold, unit(b) > threshold)


def area_matched_iou(a: jax.Array, b: jax.Array, *, share: float = 0.25) -> jax.Array:
    """Intersection over union of the highest pixels of two maps [H, W], as many of each.

    From 0 to 1, about share / (2 - share) by chance. There is no threshold, so that it is fair
    between maps that are wide and maps that are narrow. The floor(share H W) highest pixels of a
    map are marked, of tied ones the first.

    Raises:
      ValueError: maps of two sizes, or a share that marks none or more than there are.
    """
    a, b = _pair(a, b)
    n = count(share, a.size)
    if not 1 <= n <= a.size:
        raise ValueError(f"share is in (0, 1] and marks a pixel at least; got {share} of {a.size}")
    return _iou(top(a, n), top(b, n))


def _iou(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.float32((a & b).sum()) / (a | b).sum()


def _pair(a, b) -> tuple[jax.Array, jax.Array]:
    a = check_heatmap(a)
    return a, check_heatmap(b, a.shape)
