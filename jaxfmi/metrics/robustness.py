"""How much does a map depend on what it should, and how little on what it should not?

These metrics ask the explainer again: for a noisy image, another class, another reference, or
another trained model. An explainer that is random gets its key beforehand, as in
``lambda x, label: explain(x, label, key=key)``.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfmi.chunks import chunk_map
from jaxfmi.explainer import Explainer, check_finite, check_key
from jaxfmi.metrics.metric import Metric, check_heatmap, with_checks
from jaxfmi.metrics.similarity import area_matched_iou, pearson, spearman, ssim, thresholded_iou
from jaxfmi.modules import check_labels

Similarity = Callable[[jax.Array, jax.Array], jax.Array]
"""``(map [H, W], map [H, W]) -> scalar``: those of ``similarity.py``."""


def max_sensitivity(
    explain: Explainer,
    *,
    radius: float = 0.02,
    samples: int = 10,
    relative: bool = True,
    chunk: int | None = 4,
) -> Metric:
    """Max-sensitivity (Yeh, Hsieh, Suggala, Inouye and Ravikumar, 2019), by sampling.

    The largest ‖map(x + noise) - map(x)‖ over samples of uniform noise of at most ``radius`` in
    every value; low is good. Norms are Euclidean, over pixels.

    Args:
      explain: ``(x, *args) -> heatmap [H, W]``.
      radius: in the units of x.
      samples: noisy images.
      relative: divide by ‖map(x)‖, as Captum does, whose radius and number of samples these are (a
        map of zeros divides by 1); False as in the paper. Quantus 0.6 divides likewise, and takes
        200 samples of 0.2.
      chunk: noisy images at a time; the result does not depend on it.

    Returns:
      ``(x [H, W, C], heatmap [H, W], *args, key) -> scalar``.

    Raises:
      ValueError: the explainer's maps are of another size; no key.
    """

    def measure(x, heatmap, *args, key=None):
        key = check_key(key, "max_sensitivity")

        def change(i):
            noisy = x + draw_noise(jax.random.fold_in(key, i), x, radius)
            return jnp.linalg.norm(_explained(explain, heatmap, noisy, *args) - heatmap)

        size = jnp.linalg.norm(heatmap)
        largest = chunk_map(change, jnp.arange(samples), chunk).max()
        return largest / jnp.where(size == 0, 1, size) if relative else largest

    return with_checks(measure, "max_sensitivity", explain)


def draw_noise(key: jax.Array, x: jax.Array, radius: float) -> jax.Array:
    """Uniform noise in [-radius, radius] for every value of x."""
    return jax.random.uniform(key, x.shape, x.dtype, -radius, radius)


def random_logit(explain: Explainer, classes: int, *, similarity: Similarity = ssim) -> Metric:
    """Random logit (Sixt, Granz and Landgraf, 2020): likeness to the map of another random class.

    Low is good: a map that stays the same whatever class is explained explains no class. In the
    range of the similarity, 1 for equal maps. Quantus computes its SSIM on flattened maps.

    Args:
      explain: ``(x, label) -> heatmap [H, W]``.
      classes: how many there are, at least 2; all but the label are as likely.
      similarity: of two maps.

    Returns:
      ``(x [H, W, C], heatmap [H, W], label, key) -> scalar``.

    Raises:
      ValueError: fewer than 2 classes; a label out of range; no key.
    """
    if classes < 2:
        raise ValueError(f"another class needs 2 classes at least, got {classes}")

    def measure(x, heatmap, label, key=None):
        check_labels(label, classes)
        other = draw_other(check_key(key, "random_logit"), label, classes)
        return similarity(heatmap, _explained(explain, heatmap, x, other))

    return with_checks(measure, "random_logit", explain)


def draw_other(key: jax.Array, label, classes: int) -> jax.Array:
    """Draw a label that is not the given one."""
    return (label + jax.random.randint(key, (), 1, classes)) % classes


def class_discriminability(explain: Explainer, *, similarity: Similarity = spearman) -> Metric:
    """Likeness of a map to that of another class, normally the second-best one; low is good.

    Where an image shows objects of both classes, their maps should have little in common. In the
    range of the similarity, 1 for equal maps.

    Args:
      explain: ``(x, label) -> heatmap [H, W]``.
      similarity: of two maps.

    Returns:
      ``(x [H, W, C], heatmap [H, W], other) -> scalar``; ``other`` is the other class.
    """

    def measure(x, heatmap, other):
        return similarity(heatmap, _explained(explain, heatmap, x, other))

    return with_checks(measure, "class_discriminability", explain)


def reference_insensitivity(
    explainers: Sequence[Explainer], *, similarity: Similarity = spearman
) -> Metric:
    """Mean likeness, over all pairs, of a map and those that other explainers give; high is good.

    The explainers are one method with other references (A-FMI, integrated gradients), of which the
    choice should not matter. In the range of the similarity, 1 where it does not matter at all.

    Args:
      explainers: ``(x, *args) -> heatmap [H, W]`` each, at least one.
      similarity: of two maps.

    Returns:
      ``(x [H, W, C], heatmap [H, W], *args) -> scalar``.

    Raises:
      ValueError: no explainer.
    """
    if not explainers:
        raise ValueError("expected one explainer at least, to compare the map with; got none")

    def measure(x, heatmap, *args):
        maps = [heatmap, *(_explained(e, heatmap, x, *args) for e in explainers)]
        return jnp.stack([similarity(a, b) for a, b in combinations(maps, 2)]).mean()

    return with_checks(measure, "reference_insensitivity", explainers[0])


class Stability(NamedTuple):
    """How alike the maps of several models are: means over pairs."""

    iou: jax.Array  #: of where maps, scaled to [0, 1], exceed a threshold; NaN if all are constant
    matched_iou: jax.Array  #: of as many of the highest pixels
    pearson: jax.Array
    spearman: jax.Array


def stability(
    heatmaps: jax.Array,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    threshold: float = 100 / 256,
    share: float = 0.25,
    chunk: int | None = 32,
) -> Stability:
    """Compare the maps that several trained models give for one image: high is stable.

    Without ``stability_chance`` of the same maps the numbers cannot be read: large maps overlap in
    any case. Report pairs that differ in their seed, their settings, or both apart.

    Args:
      heatmaps: [M, H, W], of M models.
      pairs: of models to be compared; None for all.
      threshold: as in ``thresholded_iou``, whose undefined pairs are left out of the mean.
      share: as in ``area_matched_iou``.
      chunk: pairs at a time.

    Raises:
      ValueError: fewer than two models, or a pair of models that are not there.
    """
    maps = _several(heatmaps, "[M, H, W]", 3)
    compare = lambda a, b: _agreement(maps[a], maps[b], threshold, share)  # noqa: E731
    return _mean(compare, np.asarray(_model_pairs(pairs, len(maps))), chunk)


def stability_chance(
    heatmaps: jax.Array,
    *,
    key: jax.Array,
    pairs: Sequence[tuple[int, int]] | None = None,
    threshold: float = 100 / 256,
    share: float = 0.25,
    chunk: int | None = 32,
) -> Stability:
    """``stability`` of maps of *different* images: what models have in common by chance.

    The images are put in a random circle, and the map that one model of a pair gives for an image
    is compared with what the other gives for the next one: every image is used once on each side.

    Args:
      heatmaps: [M, N, H, W], of M models and N images, two of each at least.
      key: of the order.
      pairs: as in ``stability``.
      threshold: likewise.
      share: likewise.
      chunk: likewise.

    Raises:
      ValueError: fewer than two models or images, or a pair of models that are not there.
    """
    maps = _several(heatmaps, "[M, N, H, W]", 4)
    if maps.shape[1] < 2:
        raise ValueError("chance is between different images: expected two at least, got one")
    order = jax.random.permutation(key, maps.shape[1])
    following = jnp.roll(order, -1)
    models = _model_pairs(pairs, len(maps))
    each = np.asarray([(a, b, k) for a, b in models for k in range(maps.shape[1])])

    def compare(a, b, k):
        return _agreement(maps[a, order[k]], maps[b, following[k]], threshold, share)

    return _mean(compare, each, chunk)


def _agreement(a: jax.Array, b: jax.Array, threshold: float, share: float) -> Stability:
    matched = area_matched_iou(a, b, share=share)
    return Stability(
        thresholded_iou(a, b, threshold=threshold), matched, pearson(a, b), spearman(a, b)
    )


def _mean(compare, rows: np.ndarray, chunk: int | None) -> Stability:
    values = chunk_map(lambda row: compare(*row), jnp.asarray(rows), chunk)
    return jax.tree.map(jnp.nanmean, values)


def _several(heatmaps, shape: str, rank: int) -> jax.Array:
    maps = jnp.asarray(heatmaps)
    if maps.ndim != rank or len(maps) < 2:
        raise ValueError(f"expected maps {shape} of two models at least, got shape {maps.shape}")
    check_finite(maps, "the stack of heatmaps")
    return maps


def _model_pairs(pairs, models: int) -> list[tuple[int, int]]:
    pairs = list(combinations(range(models), 2) if pairs is None else pairs)
    if not pairs or not all(0 <= m < models for pair in pairs for m in pair):
        raise ValueError(f"expected pairs of models from 0 to {models - 1}, got {pairs}")
    return pairs


def _explained(explain: Explainer, heatmap: jax.Array, *args) -> jax.Array:
    """Give the explainer's map, which must be of the heatmap's size."""
    return check_heatmap(explain(*args), heatmap.shape)
