"""Bilinear resizing of maps: exact weights, and two small matrix products, fast on any device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def resize(maps: Any, size: tuple[int, ...] | None, corners: bool = False) -> jax.Array:
    """Resize maps bilinearly: edges clamped, no antialiasing when they shrink.

    Args:
      maps: [..., h, w].
      size: (H, W); None leaves the maps as they are.
      corners: the centres of the corners are aligned (PyTorch's ``align_corners=True``); else
        pixels have half-pixel centres, as OpenCV's and PyTorch's ``align_corners=False``.

    Returns:
      [..., H, W].
    """
    if size is None or tuple(size) == maps.shape[-2:]:
        return maps
    rows, columns = (matrix(*axis, corners) for axis in zip(maps.shape[-2:], size, strict=True))
    return between(rows, jnp.asarray(maps), columns)


def between(rows: np.ndarray, maps: jax.Array, columns: np.ndarray) -> jax.Array:
    """``rows m columns^T`` for every map m of [..., h, w]."""
    dtype = maps.dtype if jnp.issubdtype(maps.dtype, jnp.floating) else float
    both = (jnp.asarray(m, dtype) for m in (rows, columns))
    return jnp.einsum("ij,lk,...jk->...il", *both, maps, precision="highest")


def matrix(n: int, size: int, corners: bool = False) -> np.ndarray:
    """The matrix [size, n] that resizes n values linearly; its rows sum to 1."""
    at = np.clip(centres(n, size, corners), 0, n - 1)
    low = np.minimum(at.astype(int), max(n - 2, 0))
    rows, out = np.arange(size), np.zeros((size, n))
    out[rows, low] = 1 - (at - low)
    out[rows, np.minimum(low + 1, n - 1)] += at - low
    return out


def centres(n: int, size: int, corners: bool = False) -> np.ndarray:
    """Where the pixels of ``size`` lie among n."""
    if corners:
        return np.arange(size) * (n - 1) / max(size - 1, 1)
    return (np.arange(size) + 0.5) * n / size - 0.5
