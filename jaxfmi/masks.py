"""Masks made from feature maps, kept at the resolution of their layer.

Enlarging is linear and leaves constants alone, so a mask that is enlarged first and scaled to
[0, 1] afterwards is an enlarged, scaled map: ``mask_k = U m_k`` with small ``m_k`` [h, w]. Sums of
masks and their areas need no mask of the image's size at all, and one mask is two small matrix
products.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfmi.bilinear import between, centres, matrix, resize
from jaxfmi.chunks import chunk_map

Size = tuple[int, int]
AT_A_TIME = 8  # maps that are enlarged at once to find their extremes


class Masks(NamedTuple):
    """K masks of an image: ``resize(maps[k], size)`` is the mask k, in [0, 1]."""

    maps: jax.Array  #: [K, h, w]
    live: jax.Array  #: [K] bool: False for a constant map, whose mask is 0


def activation_masks(
    a: jax.Array, size: Size, *, eps: float = 0.0, first: str = "enlarge", corners: bool = False
) -> Masks:
    """Scale every map of an activation to a mask: ``(u - min u) / (max u - min u + eps)``.

    Args:
      a: [h, w, K].
      size: of the image.
      eps: with it a range r gives masks up to r / (r + eps).
      first: ``"enlarge"``: u is the enlarged map; ``"scale"``: it is the map itself, whose peaks
        the enlargement then lowers (a single pixel's to .77 from 28 to 224 pixels).
      corners: enlarge with aligned corners.

    Raises:
      ValueError: ``first`` is neither.
    """
    if first not in ("enlarge", "scale"):
        raise ValueError(f"a mask is first to 'enlarge' or to 'scale'; got {first!r}")
    maps = jnp.moveaxis(a, -1, 0)
    low, high = maps.min((1, 2)), maps.max((1, 2))
    live = high > low
    if first == "enlarge":
        low, high = _extremes(maps, size, corners)
        rounding = 4 * jnp.finfo(maps.dtype).eps * jnp.maximum(jnp.abs(low), jnp.abs(high))
        live = live & (high - low > rounding)  # a map may be constant wherever it is sampled
    span = jnp.where(live, high - low + eps, 1)
    scaled = (maps - low[:, None, None]) / span[:, None, None]
    return Masks(jnp.where(live[:, None, None], scaled, 0), live)


def weighted_sum(maps: jax.Array, weights: jax.Array, size: Size) -> jax.Array:
    """sum_k weights[k] mask_k, [H, W], of the masks of ``maps`` [K, h, w]: one enlargement."""
    return resize(jnp.tensordot(weights, maps, 1, precision="highest"), size)


def areas(maps: jax.Array, size: Size) -> jax.Array:
    """The sums [K] over pixels of the masks of ``maps`` [K, h, w], by the adjoint."""
    rows, columns = (matrix(n, m).sum(0) for n, m in zip(maps.shape[-2:], size, strict=True))
    sums = (jnp.asarray(v, maps.dtype) for v in (rows, columns))
    return jnp.einsum("kij,i,j->k", maps, *sums, precision="highest")


def _extremes(maps: jax.Array, size: Size, corners: bool) -> tuple[jax.Array, jax.Array]:
    """Minimum and maximum [K] of the enlarged maps [K, h, w].

    Between four neighbours a bilinear map is extreme at the outermost pixels, so that these, at
    most two per neighbour and axis, are all that is computed.
    """
    axes = zip(maps.shape[1:], size, strict=True)
    rows, columns = (matrix(*axis, corners)[_outermost(*axis, corners)] for axis in axes)

    def both(one):
        values = between(rows, one, columns)
        return values.min(), values.max()

    return chunk_map(both, maps, min(AT_A_TIME, len(maps)))


def _outermost(n: int, size: int, corners: bool) -> np.ndarray:
    """The first and the last of ``size`` pixels between every two of n values."""
    between = np.floor(centres(n, size, corners)).astype(int)
    change = np.flatnonzero(np.diff(between))
    return np.unique(np.concatenate([[0, size - 1], change, change + 1]))
