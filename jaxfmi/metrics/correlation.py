"""Does the score change by what the map says? Random changes of an image, against sums of the map.

All three metrics change the image many times, and compare how far the score falls with the sum of
the map over what was changed. Maps are signed, in the way that their method makes them. A map that
is uniform, or a score that nothing changes, correlates with nothing: 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfmi.chunks import chunk_map
from jaxfmi.explainer import Score, check_key, wide
from jaxfmi.metrics.metric import Metric, metric
from jaxfmi.metrics.ranking import count
from jaxfmi.metrics.similarity import correlation, rank_correlation
from jaxfmi.references import Baseline, replacement


class Perturbation(NamedTuple):
    """A changed image, and by what a map [H, W] is weighted in the sum that foretells the drop."""

    image: jax.Array  #: [H, W, C]
    weights: jax.Array  #: [H, W]


Perturb = Callable[[jax.Array, jax.Array], Perturbation]
"""``(key, x [H, W, C]) -> Perturbation``."""


@metric
def sensitivity_n(
    score: Score,
    *,
    n: int | None = None,
    share: float = 0.1,
    samples: int = 100,
    baseline: Baseline = 0.0,
    chunk: int | None = 32,
) -> Metric:
    """Sensitivity-n (Ancona, Ceolini, Öztireli and Gross, 2018), for one n.

    Pearson's correlation, over random sets of n pixels, of the sum of the map over the set with
    score(x) - score(x with the set replaced). From -1 to 1; high is good, and 1 for any n where the
    score is a sum over pixels of which the map shows the terms.

    All channels of a pixel go at once. Quantus calls this FaithfulnessCorrelation, and takes every
    channel's value by itself. What it calls SensitivityN has no random sets: values go in the order
    of the map, and the correlation is over images.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``; a logit in the paper.
      n: pixels in a set.
      share: n as a share of H W, rounded down, where n is not given. The paper goes up to 0.8.
      samples: sets.
      baseline: what replaces pixels, in the units of x: a number, an array, or ``x -> x0``.
      chunk: images at a time, for each one of a batch; the result does not depend on it.

    Returns:
      ``(x [H, W, C], heatmap [H, W], *args, key) -> scalar``.

    Raises:
      ValueError: n is not between 1 and H W; no key.
    """

    def correlate(x, heatmap, *args, key=None):
        size = count(share, heatmap.size) if n is None else n
        _check_count(size, heatmap.size, "pixels")
        perturb = removal(lambda k, shape: draw_subset(k, shape, size), baseline)
        key = check_key(key, "sensitivity_n")
        return correlation(*_sums_and_drops(score, perturb, samples, chunk, key, x, heatmap, *args))

    return correlate


@metric
def mu_fidelity(
    score: Score,
    *,
    grid: int | None = 9,
    share: float = 0.2,
    samples: int = 200,
    baseline: Baseline = 0.0,
    exact: bool = True,
    chunk: int | None = 32,
) -> Metric:
    """MuFidelity (Bhatt, Weller and Moura, 2020, definition 3), on super-pixels as in Xplique.

    Spearman's correlation, over random sets of the cells of a grid, of the sum of the map over the
    set with score(x) - score(x with the set replaced). From -1 to 1; high is good. The paper takes
    Pearson's correlation, and single pixels: ``sensitivity_n``.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``; Xplique's default is a logit.
      grid: cells to a side; None for pixels.
      share: of the cells, in a set.
      samples: sets.
      baseline: what replaces pixels, in the units of x: a number, an array, or ``x -> x0``.
      exact: every set has floor(share * cells) cells, as in the paper; False puts every cell into a
        set with the probability ``share``, as Xplique does. Then large sets have large sums and
        large drops, which alone correlates them.
      chunk: images at a time, for each one of a batch; the result does not depend on it.

    Returns:
      ``(x [H, W, C], heatmap [H, W], *args, key) -> scalar``.

    Raises:
      ValueError: a set would have no cell, or more than there are; no key.
    """

    def correlate(x, heatmap, *args, key=None):
        cells = heatmap.shape if grid is None else (grid, grid)
        number = count(share, cells[0] * cells[1])
        _check_count(number, cells[0] * cells[1], "cells")

        def draw(key, shape):
            if exact:
                return draw_cells(key, shape, cells, number)
            return _spread(jax.random.bernoulli(key, share, cells), shape)

        perturb, checked = removal(draw, baseline), check_key(key, "mu_fidelity")
        found = _sums_and_drops(score, perturb, samples, chunk, checked, x, heatmap, *args)
        return rank_correlation(*found)

    return correlate


def gaussian_noise(std: float = 0.2, *, shared: bool = True) -> Perturb:
    """Gaussian noise taken off an image; the weights are the noise.

    For maps of the score's change per unit of x, such as a gradient summed over channels, whose
    infidelity is 0 where the score is linear.

    Args:
      std: in the units of x.
      shared: one noise for all channels of a pixel. False draws each channel's own, and sums them
        up in the weights: the map then stands for every channel, as where Quantus repeats it. Yeh
        et al. and Captum have attributions per channel.
    """

    def perturb(key, x):
        noise = std * jax.random.normal(key, x.shape[:2] if shared else x.shape, x.dtype)
        return Perturbation(
            x - (noise[..., None] if shared else noise), noise if shared else noise.sum(-1)
        )

    return perturb


def square_removal(side: int, baseline: Baseline = 0.0, *, per_unit: bool = False) -> Perturb:
    """A square of pixels replaced, anywhere inside of the image; the weights are 1 on the square.

    For maps in units of the score, such as integrated gradients or occlusion.

    Args:
      side: of the square, in pixels.
      baseline: x0, what replaces pixels, in the units of x: a number, an array, or ``x -> x0``.
      per_unit: for maps of the score's change per unit of x; weights are x - x0, summed over
        channels. Yeh et al. and Captum multiply so in any case, channel by channel.
    """
    remove = removal(lambda key, shape: draw_square(key, shape, side), baseline)

    def perturb(key, x):
        image, weights = remove(key, x)
        return Perturbation(image, (x - image).sum(-1) if per_unit else weights)

    return perturb


@metric
def infidelity(
    score: Score,
    *,
    perturb: Perturb | None = None,
    samples: int = 100,
    normalize: bool = False,
    chunk: int | None = 32,
) -> Metric:
    """Infidelity (Yeh, Hsieh, Suggala, Inouye and Ravikumar, 2019), definition 2.1.

    The mean over random perturbations I of (I · map - (score(x) - score(x - I)))². 0 is good; the
    unit is that of the score, squared. Which maps are in its units is said where a perturbation
    is: ``gaussian_noise``, ``square_removal``.

    Quantus moves one patch after another to a baseline and does not put them back, weighs the map
    by x - x' of every channel, x' the changed image, and gives the mean over sizes of patches, by
    default 4 alone.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``.
      perturb: ``(key, x) -> Perturbation``; None for ``gaussian_noise()``.
      samples: perturbations.
      normalize: multiply the map by the factor that makes the result least, as Captum does on
        request: the scale of the map then does not count.
      chunk: images at a time, for each one of a batch; the result does not depend on it.

    Returns:
      ``(x [H, W, C], heatmap [H, W], *args, key) -> scalar``.

    Raises:
      ValueError: no key.
    """
    perturb = gaussian_noise() if perturb is None else perturb

    def error(x, heatmap, *args, key=None):
        key = check_key(key, "infidelity")
        sums, drops = _sums_and_drops(score, perturb, samples, chunk, key, x, heatmap, *args)
        power = (sums * sums).sum()
        factor = (sums * drops).sum() / jnp.where(power == 0, 1, power) if normalize else 1
        return ((factor * sums - drops) ** 2).mean()

    return error


def removal(draw: Callable[[jax.Array, tuple[int, ...]], jax.Array], baseline: Baseline) -> Perturb:
    """Replace the pixels that ``draw(key, (H, W)) -> bool [H, W]`` marks; weights: 1 on these."""

    def perturb(key, x):
        marked = draw(key, x.shape[:2])
        image = jnp.where(marked[..., None], replacement(baseline, x), x)
        return Perturbation(image, marked.astype(x.dtype))

    return perturb


def draw_subset(key: jax.Array, shape: tuple[int, ...], n: int) -> jax.Array:
    """Mark n positions, each set of n as likely as another; bool."""
    count = shape[0] * shape[1]
    return (jax.random.permutation(key, count) < n).reshape(shape)


def draw_cells(key: jax.Array, shape: tuple[int, ...], cells: tuple[int, ...], n: int) -> jax.Array:
    """Mark the pixels of n cells of a grid; bool."""
    return _spread(draw_subset(key, cells, n), shape)


def draw_square(key: jax.Array, shape: tuple[int, ...], side: int) -> jax.Array:
    """Mark a square that lies inside, cut to the image where it is larger; bool."""
    keys = jax.random.split(key)

    def along(key, n):
        start = jax.random.randint(key, (), 0, max(n - side, 0) + 1)
        return (jnp.arange(n) >= start) & (jnp.arange(n) < start + side)

    return jnp.outer(along(keys[0], shape[0]), along(keys[1], shape[1]))


def _spread(marked: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Enlarge a grid to pixels: each takes the cell that its centre is in."""
    rows, columns = (
        (2 * jnp.arange(n) + 1) * cells // (2 * n)
        for n, cells in zip(shape, marked.shape, strict=True)
    )
    return marked[rows[:, None], columns]


def _sums_and_drops(score, perturb, samples, chunk, key, x, heatmap, *args):
    """Give the map's weighted sums and the score's drops, [samples] each, sample i by key i."""
    y = score(x, *args)

    def one(i):
        image, weights = perturb(jax.random.fold_in(key, i), x)
        return (weights * heatmap).sum(), wide(y - score(image, *args))

    return chunk_map(one, jnp.arange(samples), chunk)


def _check_count(n: int, there: int, what: str) -> None:
    if not 1 <= n <= there:
        raise ValueError(f"a set has between 1 and {there} {what}, here it would have {n}")
