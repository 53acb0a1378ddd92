"""Does the map lie on the object? Metrics that compare a map with an annotation and ask no model.

A region is a mask [H, W] of bool at the map's size, the union of all instances of the class. Where
it is empty, or a map has no energy, a value is NaN: averages leave it out and count it.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.signal import convolve2d
from jax.typing import ArrayLike

from jaxfmi.metrics.metric import check_heatmap
from jaxfmi.metrics.ranking import count, top


def region(boxes: ArrayLike, size: tuple[int, ...]) -> np.ndarray:
    """Mark the pixels of boxes: bool [H, W]; no box marks none.

    Args:
      boxes: [n, 4] of integers (top, left, bottom, right), rows first, ends exclusive.
      size: (H, W).

    Raises:
      ValueError: a box that is empty, or not inside the image.
    """
    mask = np.zeros(size, bool)
    for box in np.asarray(boxes, int).reshape(-1, 4).tolist():
        t, l, b, r = box
        if not (0 <= t < b <= size[0] and 0 <= l < r <= size[1]):
            raise ValueError(
                "expected boxes (top, left, bottom, right) with 0 <= top < bottom <= "
                f"{size[0]} and 0 <= left < right <= {size[1]}; got {tuple(box)}"
            )
        mask[t:b, l:r] = True
    return mask


def energy_pointing(heatmap: jax.Array, region: jax.Array) -> jax.Array:
    """Energy-based pointing game (Wang et al., 2020): the share of the map inside the region.

    Negative values count as 0, and nothing else is changed: scaling by minimum and maximum first
    would remove a constant floor. From 0 to 1; a uniform map has the region's share of the image,
    a map without positive values NaN. The paper, which leaves out boxes of more than half of the
    image, was not available to us; its authors' code swaps the axes of the box.
    """
    return relevance_mass(jax.nn.relu(check_heatmap(heatmap)), region)


def relevance_mass(heatmap: jax.Array, region: jax.Array) -> jax.Array:
    """Relevance mass accuracy (Arras, Osman and Samek, 2022): sum inside the region / sum.

    Signed maps are taken as they are, as by Quantus' RelevanceMassAccuracy, which divides by
    max |map| first, to no effect. NaN where the sum is 0. Recalled, without the paper's text.
    """
    heatmap, region = _both(heatmap, region)
    return _ratio((heatmap * region).sum(), jnp.where(region.any(), heatmap.sum(), 0))


def relevance_rank(heatmap: jax.Array, region: jax.Array) -> jax.Array:
    """Relevance rank accuracy (Arras, Osman and Samek, 2022): share of the n highest pixels inside.

    n is the region's area, so that a perfect map has 1. The same as Bbox (Schulz, Sixt, Tombari
    and Landgraf, 2020), in SISE's evaluation, and up to the order of ties as Quantus'
    RelevanceRankAccuracy. Recalled, without the papers' texts.
    """
    heatmap, region = _both(heatmap, region)
    return _ratio((top(heatmap, region.sum()) & region).sum(), region.sum())


box_hit = relevance_rank  #: by its name in SISE's evaluation


def top_k_intersection(heatmap: jax.Array, region: jax.Array, k: int = 1000) -> jax.Array:
    """Top-k intersection (Theiner, Mueller-Budack and Ewerth, 2021): share of k pixels inside.

    The k highest; for k larger than the image, all, where Quantus refuses k from H W on. Recalled,
    without the paper's text.

    Raises:
      ValueError: k below 1.
    """
    if k < 1:
        raise ValueError(f"k is a number of pixels, at least 1; got {k}")
    heatmap, region = _both(heatmap, region)
    k = min(k, heatmap.size)
    return _ratio((top(heatmap, k) & region).sum(), jnp.where(region.any(), k, 0))


def iou(heatmap: jax.Array, region: jax.Array, share: float = 0.2) -> jax.Array:
    """Intersection over union of the region and the map's highest pixels, as in SISE's mIoU.

    Exactly ``floor(share H W)`` pixels; 0.2 is the share that is reported (the paper's definition
    was not in what was available to us).

    Raises:
      ValueError: a share of 0 or less, or above 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is one of the pixels, above 0 up to 1; got {share}")
    heatmap, region = _both(heatmap, region)
    binary = top(heatmap, count(share, heatmap.size))
    return _ratio((binary & region).sum(), jnp.where(region.any(), (binary | region).sum(), 0))


def pointing(
    heatmap: jax.Array,
    region: jax.Array,
    tolerance: float = 15.0,
    ties: Literal["first", "any"] = "first",
) -> jax.Array:
    """Pointing game (Zhang et al., 2016): 1 if the map's peak is in the region or near it, else 0.

    Near is closer than ``tolerance`` pixels (Euclidean) to a pixel of it, as in TorchRay, where the
    peak is the first maximum. With tolerance 0 it is in the region or not. With ties ``"any"`` one
    of several equal maxima may hit, as in Quantus, which has no tolerance, and counts an empty mask
    as a hit.

    Raises:
      ValueError: a tolerance below 0, or other ties.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance is a number of pixels, at least 0; got {tolerance}")
    if ties not in ("first", "any"):
        raise ValueError(f"of equal maxima the 'first' counts or 'any'; got {ties!r}")
    heatmap, region = _both(heatmap, region)
    if ties == "any":
        reach = int(np.ceil(tolerance))
        near = _near(jnp.arange(-reach, reach + 1), jnp.arange(-reach, reach + 1), tolerance)
        around = convolve2d(region.astype(jnp.float32), near.astype(jnp.float32), "same") > 0.5
        return _ratio(((heatmap == heatmap.max()) & around).any(), region.any())
    y, x = jnp.unravel_index(heatmap.argmax(), heatmap.shape)
    rows, columns = jnp.arange(heatmap.shape[0]) - y, jnp.arange(heatmap.shape[1]) - x
    return _ratio((_near(rows, columns, tolerance) & region).any(), region.any())


def _near(rows: jax.Array, columns: jax.Array, tolerance: float) -> jax.Array:
    """Whether places at such offsets from one are closer than the tolerance to it, or itself."""
    distance = rows[:, None] ** 2 + columns[None] ** 2
    return (distance < tolerance**2) | (distance == 0)


def _both(heatmap: Any, region: Any) -> tuple[jax.Array, jax.Array]:
    """The map, and its region as a mask of the same size, or an error."""
    heatmap = check_heatmap(heatmap)
    if region is None:
        raise ValueError("this metric compares a map with a region [H, W]; got None")
    region = jnp.asarray(region)
    if region.dtype != bool or region.shape != heatmap.shape:
        raise ValueError(
            f"expected a region of bool {heatmap.shape}, got {region.dtype} {region.shape}; "
            "jaxfmi.metrics.region makes one from boxes"
        )
    return heatmap, region


def _ratio(p, q) -> jax.Array:
    """P / q, and NaN where q is 0; float32 or wider."""
    dtype = jnp.promote_types(jnp.result_type(p, q), jnp.float32)
    p, q = jnp.asarray(p, dtype), jnp.asarray(q, dtype)
    return jnp.where(q == 0, jnp.nan, p / jnp.where(q == 0, 1, q))
