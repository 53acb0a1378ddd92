"""Cover parts of the image, or show only parts of it: methods that look at no activation."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfmi.bilinear import matrix
from jaxfmi.chunks import chunk_mean
from jaxfmi.explainer import Explainer, Score, asked, check_key, explainer, wide
from jaxfmi.heatmap import divide
from jaxfmi.modules import probability
from jaxfmi.perturbation import scores, under
from jaxfmi.references import Baseline


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
    tiles = tiling(window, stride)

    def explain(x, *args):
        return mean_drop(lambda image: score(image, *args), x, tiles, fill, chunk)

    return explain


@explainer
def rise(
    score: Score,
    *,
    samples: int = 4000,
    cells: int = 7,
    p: float = 0.5,
    normalise: Literal["expectation", "pixel"] = "expectation",
    baseline: Baseline = 0.0,
    chunk: int | None = 32,
) -> Explainer:
    """RISE (Petsiuk, Das and Saenko, 2018): the mean of random masks, weighted by their scores.

    ``sum_i score(x M_i) M_i / (N p)``. A mask is a grid of cells that are 1 with probability p,
    enlarged bilinearly beyond the image, and cut out at a random place, so that its mean is p at
    every pixel. Masks are drawn again where they are needed and never kept; mask i depends on the
    key and i alone.

    The paper has 4000 masks for VGG-16 and 8000 for ResNet-50, cells 7, p 0.5 (recalled; its text
    was not available to us). The authors' code reflects at the border of the enlarged grid, and
    its class for batches leaves out the division; TorchRay takes a sigmoid and divides by N;
    Xplique divides by the sum of masks (``normalise="pixel"``, plus 1e-4).

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, a class probability, which ``batched`` gives.
      samples: masks, one evaluation each.
      cells: of the grid, per side.
      p: how probable it is that a cell is 1.
      normalise: ``"expectation"`` by N p; ``"pixel"`` by the sum of masks at each pixel, which
        takes the imprint of an uneven draw away.
      baseline: what is shown where a mask is 0, in the units of x.
      chunk: masks at a time.

    Returns:
      An explainer ``(x, *args, key=...) -> heatmap [H, W]``.

    Raises:
      ValueError: samples or cells below 1, p outside (0, 1], or, when called, no key.
    """
    if min(samples, cells) < 1 or not 0 < p <= 1:
        raise ValueError(
            f"expected at least 1 sample and 1 cell, and 0 < p <= 1; got {samples=}, {cells=}, {p=}"
        )
    if normalise not in ("expectation", "pixel"):
        raise ValueError(f"normalise is 'expectation' or 'pixel'; got {normalise!r}")
    score = asked(score, probability)

    def explain(x, *args, key=None):
        draw = _rise_mask(
            check_key(key, "rise"), x.shape[:2], cells, p, jnp.promote_types(x.dtype, jnp.float32)
        )
        show, index = under(x, baseline), jnp.arange(samples)
        y = scores(
            lambda image: score(image, *args),
            [(lambda i: show(draw(i)), index)],
            chunk=chunk,
        )

        def parts(item):
            i, weight = item
            mask = draw(i)
            return weight * mask, mask

        weighted, mean = chunk_mean(parts, (index, y), chunk)
        return weighted / p if normalise == "expectation" else divide(weighted, mean)

    return explain


Tiles = tuple[tuple[int, int], tuple[int, int]]
"""Height and width of windows, and the steps between them."""


def tiling(window: int | tuple[int, int], stride: int | tuple[int, int]) -> Tiles:
    """Both as pairs, or a ValueError where windows would leave pixels out."""
    sides, steps = _pair(window), _pair(stride)
    if min(steps) < 1 or any(s > w for s, w in zip(steps, sides, strict=True)):
        raise ValueError(f"expected 1 <= stride <= window, got stride {stride}, window {window}")
    return sides, steps


def mean_drop(
    score: Score,
    x: jax.Array,
    tiles: Tiles,
    fill: jax.Array | float,
    chunk: int | None,
    of: Callable[[jax.Array], jax.Array] = lambda drops: drops,
) -> jax.Array:
    """Average ``of(score(x) - score(x, window filled))`` over the windows that cover a pixel.

    Windows are placed as ``occlusion`` says. Gives [H, W].
    """
    rows, columns = (_windows(*axis) for axis in zip(x.shape[:2], *tiles, strict=True))
    cover = jnp.broadcast_to(jnp.asarray(fill, x.dtype), x.shape)

    def covered(window):
        row, column = window
        return jnp.where(jnp.outer(rows[row], columns[column])[..., None], cover, x)

    grid = tuple(jnp.indices((len(rows), len(columns))).reshape(2, -1))
    y = scores(score, [(covered, grid)], chunk=chunk)
    drops = of(wide(score(x)) - y.reshape(len(rows), len(columns)))
    down, along = rows.astype(drops.dtype), columns.astype(drops.dtype)
    spread = jnp.einsum("ri,rc,cj->ij", down, drops, along, precision="highest")
    return spread / jnp.outer(rows.sum(0), columns.sum(0))


def _rise_mask(key, size: tuple[int, int], cells: int, p: float, dtype):
    """Make ``i -> mask [H, W]``: an enlarged random grid, cut out at a random place."""
    sides = [-(-n // cells) for n in size]  # of a cell, in pixels
    canvas = [jnp.asarray(matrix(cells, (cells + 1) * side), dtype) for side in sides]

    def draw(i):
        grid_key, *shift_keys = jax.random.split(jax.random.fold_in(key, i), 3)
        grid = jax.random.bernoulli(grid_key, p, (cells, cells)).astype(dtype)
        rows, columns = (
            jax.lax.dynamic_slice_in_dim(whole, jax.random.randint(k, (), 0, side), n)
            for whole, k, side, n in zip(canvas, shift_keys, sides, size, strict=True)
        )
        return jnp.matmul(
            jnp.matmul(rows, grid, precision="highest"), columns.T, precision="highest"
        )

    return draw


def _pair(n: int | tuple[int, int]) -> tuple[int, int]:
    return (n, n) if np.ndim(n) == 0 else n  # type: ignore[return-value]


def _windows(n: int, window: int, stride: int) -> jax.Array:
    """Which of ``n`` positions each window covers, [windows, n] bool."""
    window = min(window, n)
    starts = np.minimum(np.arange(0, n - window + stride, stride), n - window)
    at = np.arange(n)
    return jnp.asarray((at >= starts[:, None]) & (at < starts[:, None] + window))
