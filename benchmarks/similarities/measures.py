"""What maps are measured by, and the intervals of the means."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from jaxfmi.metrics import deletion_curve, insertion_curve
from jaxfmi.metrics.similarity import spearman
from jaxfmi.references import blur

RESAMPLES = 2000
COVER = 0.7  # boxes that cover more of the picture are left out of pointing
THRESHOLDS = np.arange(1, 20) / 20
OVERLAPS = (0.3, 0.5, 0.7)


def chunked(f: Callable, batch: int) -> Callable:
    """Compile `f(state, *example)` over leading axes, `batch` examples at a time; numpy comes back.

    What does not fill a batch is filled with the first examples, so that there is one compilation.
    """
    run = jax.jit(lambda state, arrays: jax.vmap(lambda *a: f(state, *a))(*arrays))

    def over(state, *arrays):
        n = len(arrays[0])
        parts = []
        for start in range(0, n, batch):
            at = np.arange(start, start + batch) % n
            at[: n - start] = np.arange(start, min(start + batch, n))
            parts.append(jax.device_get(run(state, jax.tree.map(lambda a: a[at], arrays))))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)

    return over


def pointing(heatmap: jax.Array, region: jax.Array) -> dict[str, jax.Array]:
    """Peak in the region, share of the positive energy in it, peak on the picture's border."""
    height, width = heatmap.shape
    row, column = jnp.unravel_index(heatmap.argmax(), heatmap.shape)
    positive = jax.nn.relu(heatmap)
    total = positive.sum()
    energy = jnp.where(
        total > 0, (positive * region).sum() / jnp.where(total > 0, total, 1), jnp.nan
    )
    border = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    values = {"peak": region[row, column], "energy": energy, "border": border}
    return {name: value.astype(jnp.float32) for name, value in values.items()}


def same(first, second) -> dict[str, jax.Array]:
    """Spearman's correlation of the maps for two partners, by name."""
    return {name: spearman(first[name].map, second[name].map) for name in first}


def box_mask(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Mark boxes [n, 4] or [4] of fractions x1, y1, x2, y2: bool [H, W], by centres of pixels."""
    rows, columns = ((np.arange(n) + 0.5) / n for n in size)
    mask = np.zeros(size, bool)
    for x1, y1, x2, y2 in np.reshape(box, (-1, 4)):
        mask |= np.outer((rows >= y1) & (rows <= y2), (columns >= x1) & (columns <= x2))
    return mask


def box_overlap(
    heatmap: np.ndarray, boxes: np.ndarray, thresholds: Sequence[float] = THRESHOLDS
) -> np.ndarray:
    """For every threshold of the map scaled to 0..1, the best IoU with a box (of fractions).

    The box of a threshold is the tight one of the largest connected component. [len(thresholds)].
    """
    low, high = heatmap.min(), heatmap.max()
    scaled = (heatmap - low) / (high - low if high > low else 1)
    height, width = heatmap.shape
    found = []
    for threshold in thresholds:
        parts, count = ndimage.label(scaled >= threshold)
        if not count:
            found.append((0, 0, 0, 0))
            continue
        largest = np.bincount(parts.ravel())[1:].argmax()
        rows, columns = ndimage.find_objects(parts)[largest]
        found.append(
            (columns.start / width, rows.start / height, columns.stop / width, rows.stop / height)
        )
    return np.max([iou(np.array(found), box) for box in np.reshape(boxes, (-1, 4))], axis=0)


def iou(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [n, 4] with one, x1, y1, x2, y2."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    inter = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    return inter / np.maximum(areas - inter, 1e-12)


def box_accuracy(heatmaps, boxes, right=None, groups=None) -> dict[str, Any]:
    """MaxBoxAcc at IoU .3, .5, .7, and at a fifth of the maximum: intervals over maps [n, H, W].

    `right` [n], whether a decision was: where given, `top-1` counts only the pictures where it was.
    The best threshold is chosen anew in every resample. `groups` as for `interval`.
    """
    overlaps = np.stack([box_overlap(h, b) for h, b in zip(heatmaps, boxes, strict=True)])
    fifth = int(np.argmin(abs(THRESHOLDS - 0.2)))

    def best(hits):
        return interval(hits, groups, lambda m: m.max(-1))

    found: dict[str, Any] = {f"box@{o}": best(overlaps >= o) for o in OVERLAPS}
    found["box@0.5, map above 0.2"] = interval(overlaps[:, fifth] >= 0.5, groups)
    if right is not None:
        found["top-1 box@0.5"] = best((overlaps >= 0.5) & right[:, None])
    return found | {"pictures": len(overlaps)}


def curves(score: Callable, x, heatmap, *args, steps: int = 28) -> dict[str, jax.Array]:
    """Deletion and insertion of x, blurred where it is deleted: areas, first and last score."""
    fill = blur(x.shape[0] / 8)
    gone = deletion_curve(score, steps=steps, baseline=fill, chunk=None)(x, heatmap, *args)
    back = insertion_curve(score, steps=steps, baseline=fill, chunk=None)(x, heatmap, *args)
    ends = {"whole": gone.scores[0], "filled": gone.scores[-1]}
    return {"deletion": gone.auc, "insertion": back.auc} | ends


def share_of_range(values: np.ndarray, whole: np.ndarray, filled: np.ndarray, groups=None):
    """The mean area, 0 being the filled pictures' mean score and 1 the whole ones': interval."""
    return interval(
        np.stack([values - filled, whole - filled], 1), groups, lambda m: m[..., 0] / m[..., 1]
    )


def interval(values, groups=None, of=lambda m: m[..., 0], seed: int = 0) -> list[float]:
    """Mean and the bootstrap's 95 % interval [mean, low, high], over images or over groups of them.

    Args:
      values: [n] or [n, m]; rows with NaN are left out.
      groups: [n], the episode or run of each; whole groups are drawn.
      of: function of the mean(s) [..., m].
      seed: of the resamples.

    """
    values = np.asarray(values, float).reshape(len(values), -1)
    fine = np.isfinite(values).all(1)
    values = values[fine]
    if not len(values):
        return [float("nan")] * 3
    keys = np.arange(len(values)) if groups is None else np.asarray(groups)[fine]
    index = np.unique(keys, return_inverse=True)[1]
    count = np.bincount(index).astype(float)
    sums = np.stack([np.bincount(index, v) for v in values.T], 1)
    drawn = resamples(len(count), seed)
    means = (drawn @ sums) / (drawn @ count)[:, None]
    return [float(of(values.mean(0))), *np.percentile(of(means), [2.5, 97.5]).tolist()]


@lru_cache(maxsize=16)
def resamples(count: int, seed: int) -> np.ndarray:
    """How often each of `count` things is drawn, [RESAMPLES, count]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(float)
