"""Change something, look at the score: methods that need no gradient.

Ablation-CAM changes an activation, so only the part of the network behind it runs again; occlusion
changes pixels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxfmi.cam import finish
from jaxfmi.chunks import chunk_map
from jaxfmi.explainer import (
    Explainer,
    Layers,
    Score,
    Size,
    activation,
    explainer,
    head,
    layer_names,
    per_layer,
    wide,
)
from jaxfmi.multipliers import map_drops


@explainer
def ablation_cam(
    score: Score,
    layer: Layers = "auto",
    *,
    relu: bool = True,
    size: Size = "input",
    chunk: int | None = 32,
) -> Explainer:
    """Ablation-CAM (Desai and Ramaswamy, 2020): weights (y - y_k) / |y|, y_k without channel k.

    Channel k is set to 0, and y = 0 divides by 1, so that a weight has the sign of the drop.
    Deviations from pytorch-grad-cam, which divides by y (a negative score turns all signs) and
    writes ever lower values than 0 where activations are negative. The paper's text was not
    available to us.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, a logit.
      layer: a tag, several (then the explainer returns a list of maps), or ``"auto"``.
      relu: keep the positive part; False for the signed map.
      size: of the heatmap; None for [h, w].
      chunk: channels at a time; the cost is the part of the network behind the layer, once each.
    """

    def explain_layers(x, *args):
        maps = []
        for name in layer_names(score, layer, x, *args):
            a, rest = activation(score, name, x, *args), head(score, name, x, *args)
            weights = _drops(a, rest, chunk)
            maps.append(finish((weights * a).sum(-1), relu, size, x))
        return maps

    return per_layer(explain_layers, layer)


def _drops(a: jax.Array, rest, chunk: int | None) -> jax.Array:
    """(y - y_k) / |y| for every channel k of ``a`` [h, w, K], [1, 1, K]."""
    y, drops = rest(a), map_drops(a, jnp.zeros_like(a), rest, chunk)
    return wide(drops / jnp.where(y == 0, 1, jnp.abs(y)))[None, None]


@explainer
def occlusion(
    score: Score,
    *,
    window: int | tuple[int, int] = 16,
    stride: int | tuple[int, int] = 8,
    fill: jax.Array | float = 0.0,
    chunk: int | None = 32,
) -> Explainer:
    """Occlusion (Zeiler and Fergus, 2013): how far the score falls when a window is covered.

    A pixel's value is the mean drop ``score(x) - score(x, window filled)`` over the windows that
    cover it, signed. Windows start at 0, stride, 2 stride, ...; the last of a row or column is
    moved back so that it ends at the border, and a window larger than the image is cut to it.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``.
      window: height and width in pixels, or one number for both.
      stride: likewise; a stride beyond the window would leave pixels out.
      fill: value of covered pixels, in the units of x; broadcasts to [H, W, C].
      chunk: windows at a time; covered copies of the image exist only for these.

    Raises:
      ValueError: a window or stride below 1, or a stride larger than the window.
    """
    sides, steps = _pair(window), _pair(stride)
    if min(steps) < 1 or any(s > w for s, w in zip(steps, sides, strict=True)):
        raise ValueError(f"expected 1 <= stride <= window, got stride {stride}, window {window}")

    def explain(x, *args):
        rows, columns = (_windows(*axis) for axis in zip(x.shape[:2], sides, steps, strict=True))
        cover = jnp.broadcast_to(jnp.asarray(fill, x.dtype), x.shape)
        y = score(x, *args)

        def drop(window):
            row, column = window
            covered = jnp.outer(rows[row], columns[column])[..., None]
            return y - score(jnp.where(covered, cover, x), *args)

        grid = jnp.indices((len(rows), len(columns))).reshape(2, -1)
        drops = wide(chunk_map(drop, tuple(grid), chunk).reshape(len(rows), len(columns)))
        spread = rows.T.astype(drops.dtype) @ drops @ columns.astype(drops.dtype)
        return spread / jnp.outer(rows.sum(0), columns.sum(0))

    return explain


def _pair(n: int | tuple[int, int]) -> tuple[int, int]:
    return (n, n) if np.ndim(n) == 0 else n  # type: ignore[return-value]


def _windows(n: int, window: int, stride: int) -> jax.Array:
    """Which of ``n`` positions each window covers, [windows, n] bool."""
    window = min(window, n)
    starts = np.minimum(np.arange(0, n - window + stride, stride), n - window)
    at = np.arange(n)
    return jnp.asarray((at >= starts[:, None]) & (at < starts[:, None] + window))
