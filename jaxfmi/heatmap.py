"""Heatmaps: bring them to a size, to [0, 1] for display, together, and onto a picture.

A heatmap is the method's own values, float32 [H, W], signed where the method is signed. Nothing in
the library scales one unless it is asked to, with the functions of this file.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxfmi.bilinear import resize as resize
from jaxfmi.explainer import check_finite


def unit(heatmap: jax.Array) -> jax.Array:
    """Scale a map [H, W] to [0, 1] by its minimum and maximum; a constant map becomes zeros."""
    low, high = heatmap.min(), heatmap.max()
    return divide(heatmap - low, high - low)


def divide(p, q) -> jax.Array:
    """Divide, with 0 where ``q`` is 0; clean under ``grad`` and ``jax_debug_nans``."""
    return jnp.where(q == 0, 0.0, p / jnp.where(q == 0, 1.0, q))


def tanh_max(heatmaps: Sequence[jax.Array]) -> jax.Array:
    """Fuse non-negative maps [H, W] of several layers: element-wise maximum of tanh(2 M / max M).

    As LayerCAM (Jiang, Zhang, Hou, Cheng and Wei, 2021) fuses shallow layers with deep ones;
    recalled, the paper's text was not available. A map without positive values stays out.
    """
    scaled = [jnp.tanh(2 * divide(m, m.max())) for m in map(jax.nn.relu, heatmaps)]
    return jnp.stack(scaled).max(0)


def rgb(image: np.ndarray) -> np.ndarray:
    """Give a picture as RGB in [0, 1], float32 [H, W, 3].

    Args:
      image: [H, W, 3], [H, W, 1] or [H, W], of floats in [0, 1] or of uint8.

    Raises:
      ValueError: another shape, or values outside of [0, 1].
    """
    image = np.asarray(image)
    grey = image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 1)
    if not grey and not (image.ndim == 3 and image.shape[-1] == 3):
        raise ValueError(f"expected a picture [H, W, 3], or a grey one; got shape {image.shape}")
    values = image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1)
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"expected a picture of floats in [0, 1], or of uint8; got {image.dtype} from "
            f"{image.min()} to {image.max()}"
        )
    return np.broadcast_to(values.reshape(*image.shape[:2], -1), (*image.shape[:2], 3))


def overlay(
    image: np.ndarray,
    heatmap: np.ndarray,
    *,
    colormap: str = "auto",
    strength: float = 0.6,
    percentile: float = 100.0,
    signed: bool = False,
    full: float | None = None,
) -> np.ndarray:
    """Lay a map over a picture.

    A map with negative values is shown in a diverging colour map, symmetric about 0, where 0
    leaves the picture as it is; another from 0 to its maximum, where 0 is the map's dark end.

    Args:
      image: anything that ``rgb`` takes, [H, W, 3] or grey.
      heatmap: [h, w] of any size and scale, resized to the picture.
      colormap: a name that matplotlib knows; ``"auto"`` takes ``jet``, for signed maps ``bwr``.
      strength: share of the colours, 0 to 1.
      percentile: of |map|, from which on the colour is full. Maps of gradients have a few values
        far above all others; 99 keeps these from leaving the rest without colour.
      signed: show the map as signed even if none of its values is negative, for one look of a
        method on all pictures.
      full: the |value| of the full colour, for maps that are to be compared; None for that of the
        percentile.

    Returns:
      RGB in [0, 1], [H, W, 3].

    Raises:
      ValueError: the picture is none, or the map has values that are NaN or infinite.
    """
    import matplotlib

    check_finite(heatmap, "the heatmap")
    image = rgb(image)
    heat = np.asarray(resize(jnp.asarray(heatmap, jnp.float32), image.shape[:2]))
    signed = signed or bool(heat.min() < 0)
    full = full or np.percentile(np.abs(heat), percentile) or np.abs(heat).max() or 1.0
    heat = np.clip(heat / full, -1, 1)
    if colormap == "auto":
        colormap = "bwr" if signed else "jet"
    colours = matplotlib.colormaps[colormap]((heat + 1) / 2 if signed else heat)[..., :3]
    share = strength * (np.abs(heat)[..., None] if signed else 1.0)
    return ((1 - share) * image + share * colours).astype(np.float32)
