"""Does the score follow the map? Curves of the score as pixels go, or come, in the map's order.

Scores should be probabilities (``class_score(model, of=probability)``): ratios of logits mean
nothing, and areas under them have no bounds. Nothing is converted silently.

A number of this kind belongs to its baseline, its step and its tie rule: programs differ in all
three, often by more than methods do.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfmi.chunks import chunk_map
from jaxfmi.explainer import Score, activation, head, wide
from jaxfmi.metrics.metric import Metric, check_heatmap, metric, part
from jaxfmi.metrics.ranking import Ties, ranks, tied_share
from jaxfmi.references import Baseline, gaussian_matrix, replacement


class Curve(NamedTuple):
    """The score of an image as more and more of it is replaced."""

    fractions: jax.Array  #: of positions that are replaced, [n + 1], from 0 to 1
    scores: jax.Array  #: [n + 1]
    auc: jax.Array  #: area under the scores
    tied: jax.Array  #: 1 - distinct values / positions: above 0 the tie rule orders some


def rise_blur(x: jax.Array) -> jax.Array:
    """Blur an image [H, W, C] as RISE's insertion does (Petsiuk, Das and Saenko, 2018).

    The kernel of the authors' code is a Gaussian filter (sigma 5) of a point on an 11 x 11 grid
    with reflecting borders, flatter than a truncated Gaussian; around the image there are zeros,
    so that its border darkens.
    """
    kernel = gaussian_matrix(11, 5.0)[5]

    def matrix(n):
        offsets = np.arange(n)[:, None] - np.arange(n) + 5
        inside = (offsets >= 0) & (offsets < 11)
        return jnp.asarray(np.where(inside, kernel[np.clip(offsets, 0, 10)], 0), x.dtype)

    rows, columns = matrix(x.shape[0]), matrix(x.shape[1])
    return jnp.einsum("ij,jkc,lk->ilc", rows, x, columns, precision="highest")


@metric
def deletion_curve(
    score: Score,
    *,
    steps: int = 28,
    step: int | None = None,
    baseline: Baseline = 0.0,
    layer: str | None = None,
    ties: Ties = "first",
    equal: bool = False,
    chunk: int | None = 32,
) -> Metric:
    """Deletion (Petsiuk, Das and Saenko, 2018): the score as the map's highest pixels go.

    Low is good. All channels of a pixel go at once, ``ceil(H W / steps)`` pixels at a time in the
    order of ``ranks``; the last step may be shorter. The first score is that of the image, the
    last that of the baseline. The defaults are RISE's benchmark at 224 x 224 pixels.

    Others: torch-cam has 20 steps, Xplique 10 and means of midpoints; Quantus' PixelFlipping
    replaces each channel's value by itself with the sample's minimum, leaves out the first point,
    and does not divide its area by the number of steps; Captum and pytorch-grad-cam have none.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, a probability.
      steps: number of intervals.
      step: pixels at a time, instead of ``steps``.
      baseline: in the units of x: a number, an array, or a function ``x -> x0`` such as
        ``rise_blur`` or those of ``jaxfmi.references``. 0 is the mean colour of normalised images.
      layer: replace positions of the activation [h, w, K] at this tag instead of pixels; the map
        is then [h, w], and the baseline one of activations.
      ties: pixels of one value go by their place, ``"first"`` or ``"last"`` (RISE's code) first.
      equal: weigh all steps alike, as RISE's code does, even if the last one is shorter.
      chunk: images at a time, for each one of a batch.

    Returns:
      ``(x [H, W, C], heatmap [H, W], *args) -> Curve``.

    Raises:
      ValueError: steps or step below 1; a map of another size, or with NaN.
    """
    _check_steps(steps, step)

    def curve(x, heatmap, *args):
        start, f = _space(score, layer, x, *args)
        end = replacement(baseline, start)
        return _curve(f, start, end, heatmap, steps, step, ties, equal, chunk)

    return curve


@metric
def insertion_curve(
    score: Score,
    *,
    steps: int = 28,
    step: int | None = None,
    baseline: Baseline = rise_blur,
    layer: str | None = None,
    ties: Ties = "first",
    equal: bool = False,
    chunk: int | None = 32,
) -> Metric:
    """Insertion (Petsiuk, Das and Saenko, 2018): the score as the map's highest pixels come.

    High is good. As ``deletion_curve``, but from the baseline, by default a blurred image, to the
    image. torch-cam and Xplique begin with zeros, Group-CAM with a wider blur (51 pixels, sigma
    50); Quantus has none.

    Raises:
      ValueError: as for ``deletion_curve``; or a layer without a baseline of its activations.
    """
    _check_steps(steps, step)
    if layer is not None and baseline is rise_blur:
        raise ValueError("insertion in a layer needs a baseline of activations, such as 0.0")

    def curve(x, heatmap, *args):
        end, f = _space(score, layer, x, *args)
        start = replacement(baseline, end)
        return _curve(f, start, end, heatmap, steps, step, ties, equal, chunk)

    return curve


deletion = part(deletion_curve, "auc", "deletion")
insertion = part(insertion_curve, "auc", "insertion")


@metric
def region_perturbation(
    score: Score,
    *,
    patch: int = 8,
    regions: int = 100,
    baseline: Baseline = 0.0,
    chunk: int | None = 32,
) -> Metric:
    """Region perturbation, AOPC (Samek, Binder, Montavon, Lapuschkin and Mueller, 2017).

    The image's patches go in the order of the map's sums over them, and the value is the mean of
    ``score(x) - score(x_k)`` over k = 0 ... regions, with the k highest patches replaced. High is
    good. Patches at the far borders are smaller where ``patch`` does not divide the image, so that
    a constant added to the map changes their place; there are at most as many regions as patches.

    The authors draw the new pixels uniformly at random; for this give a ``baseline`` that does.
    Quantus returns the list of differences, and where ``patch`` does not divide the image it pads
    both sides, each by half of what is missing. The paper's text was not available to us.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``.
      patch: side in pixels.
      regions: patches that are replaced, one after the other.
      baseline: as for ``deletion_curve``.
      chunk: images at a time, for each one of a batch.

    Raises:
      ValueError: patch or regions below 1.
    """
    if patch < 1 or regions < 1:
        raise ValueError(f"patch and regions are at least 1; got {patch} and {regions}")

    def aopc(x, heatmap, *args):
        order = jnp.repeat(jnp.repeat(ranks(_patch_sums(heatmap, patch)), patch, 0), patch, 1)
        order = order[: x.shape[0], : x.shape[1]]
        patches = -(-x.shape[0] // patch) * -(-x.shape[1] // patch)
        counts = np.arange(min(regions, patches) + 1)
        end = replacement(baseline, x)
        scores = _scores(lambda a: score(a, *args), x, end, order, counts, chunk)
        return (scores[0] - scores).mean()

    return aopc


def _space(score: Score, layer: str | None, x, *args):
    """Give what has positions to replace, the image or an activation, and the score of it."""
    if layer is None:
        return x, lambda a: score(a, *args)
    return activation(score, layer, x, *args), head(score, layer, x, *args)


def _curve(f, start, end, heatmap, steps, step, ties, equal, chunk) -> Curve:
    check_heatmap(heatmap, start.shape[:2])
    step = step or -(-heatmap.size // steps)
    counts = np.append(np.arange(0, heatmap.size, step), heatmap.size)
    scores = _scores(f, start, end, ranks(heatmap, ties), counts, chunk)
    fractions = jnp.asarray(counts / heatmap.size, scores.dtype)
    along = jnp.linspace(0, 1, len(counts), dtype=scores.dtype) if equal else fractions
    return Curve(fractions, scores, jnp.trapezoid(scores, along), tied_share(heatmap))


def _scores(f, start, end, order, counts, chunk) -> jax.Array:
    """Score ``start`` with its first n positions from ``end``, for every n of ``counts``."""
    inner = chunk_map(
        lambda n: f(jnp.where((order < n)[..., None], end, start)), jnp.asarray(counts), chunk
    )
    return wide(inner)


def _patch_sums(heatmap: jax.Array, patch: int) -> jax.Array:
    height, width = (-(-n // patch) for n in heatmap.shape)
    beyond = [(0, m * patch - n) for m, n in zip((height, width), heatmap.shape, strict=True)]
    return jnp.pad(heatmap, beyond).reshape(height, patch, width, patch).sum((1, 3))


def _check_steps(steps: int, step: int | None) -> None:
    if steps < 1 or (step is not None and step < 1):
        raise ValueError(f"steps and step are numbers of at least 1; got {steps} and {step}")
