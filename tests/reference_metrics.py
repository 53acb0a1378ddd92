"""Slow, plain twins of the metrics: ranking, curves, confidence, localisation.

Written from the definitions in numpy and loops, float64, apart from the library, so that the two
can be compared. One example at a time: image x [H,W,C], heatmap [H,W], region [H,W] bool; the score
is f(x) -> float. NaN says that a value is not defined for this example.
"""

from collections.abc import Callable, Sequence
from math import ceil, nan
from typing import NamedTuple

import numpy as np
from reference_baselines import blur

Baseline = float | np.ndarray | Callable


class Curve(NamedTuple):
    fractions: np.ndarray  # [n] of the pixels that were replaced
    scores: np.ndarray  # [n]
    auc: float
    tied: float


class Confidence(NamedTuple):
    drop: float  # per cent
    increase: float  # 0 or 100
    gain: float  # per cent
    clean: float
    explained: float


# Ranking


def ranks(heatmap) -> np.ndarray:
    """0 for the highest pixel; the first of equal ones, in row-major order, is the higher."""
    values = np.ravel(heatmap)
    out = np.zeros(len(values), int)
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: (-values[i], i))):
        out[i] = rank
    return out.reshape(np.shape(heatmap))


def top(heatmap, n: int) -> np.ndarray:
    """The n highest pixels, [H,W] bool."""
    return ranks(heatmap) < n


def tied_share(heatmap) -> float:
    """1 - (number of distinct values) / (number of pixels)."""
    values = np.ravel(heatmap).tolist()
    return 1 - len(set(values)) / len(values)


# Deletion and insertion


def rise_kernel() -> np.ndarray:
    """RISE's [11,11]: a Gaussian of sigma 5 spreads a delta on a grid with reflecting borders."""
    delta = np.zeros((11, 11))
    delta[5, 5] = 1
    return blur(delta, 5.0)


def rise_blur(x) -> np.ndarray:
    """x convolved with RISE's kernel, zeros beyond the border. Petsiuk et al. 2018."""
    kernel = rise_kernel()
    padded = np.pad(np.asarray(x, float), ((5, 5), (5, 5), (0, 0)))
    out = np.zeros(x.shape)
    for i, j, c in np.ndindex(x.shape):
        out[i, j, c] = (padded[i : i + 11, j : j + 11, c] * kernel).sum()
    return out


def fill(x, baseline: Baseline) -> np.ndarray:
    """The baseline image of x: of a number, an array or a function of x."""
    return np.zeros_like(x) + (baseline(x) if callable(baseline) else baseline)


def replace(x, where, baseline: Baseline) -> np.ndarray:
    return np.where(where[:, :, None], fill(x, baseline), x)


def counts(pixels: int, steps: int = 28, step: int | None = None) -> list[int]:
    """0, step, 2 step, ..., pixels; step = ceil(pixels / steps) unless given."""
    step = step or ceil(pixels / steps)
    return [*range(0, pixels, step), pixels]


def trapezoid(at, values) -> float:
    area = 0.0
    for i in range(1, len(at)):
        area += (at[i] - at[i - 1]) * (values[i] + values[i - 1]) / 2
    return area


def replacement_curve(f, x, heatmap, steps, step, image) -> Curve:
    """Scores of `image(removed)`, where `removed` holds the n highest pixels."""
    taken = counts(heatmap.size, steps, step)
    scores = [f(image(top(heatmap, n))) for n in taken]
    fractions = np.array(taken) / heatmap.size
    return Curve(fractions, np.array(scores), trapezoid(fractions, scores), tied_share(heatmap))


def deletion_curve(f, x, heatmap, steps=28, step=None, baseline: Baseline = 0.0) -> Curve:
    """The highest pixels go to the baseline first; trapezoids over the true fractions."""
    return replacement_curve(
        f, x, heatmap, steps, step, lambda removed: replace(x, removed, baseline)
    )


def insertion_curve(f, x, heatmap, steps=28, step=None, baseline: Baseline = rise_blur) -> Curve:
    """The highest pixels come back to the baseline image first."""
    start = fill(x, baseline)
    return replacement_curve(f, x, heatmap, steps, step, lambda shown: replace(start, shown, x))


def deletion(f, x, heatmap, steps=28, step=None, baseline: Baseline = 0.0) -> float:
    return deletion_curve(f, x, heatmap, steps, step, baseline).auc


def insertion(f, x, heatmap, steps=28, step=None, baseline: Baseline = rise_blur) -> float:
    return insertion_curve(f, x, heatmap, steps, step, baseline).auc


def region_perturbation(
    f, x, heatmap, patch: int = 8, regions: int = 100, baseline: Baseline = 0.0
) -> float:
    """AOPC = mean over k = 0..L of f(x) - f(x without its k highest patches).

    Samek et al. 2017, on a grid of patches, the last ones cut by the border; L = regions, or all
    there are. A patch is as high as the sum of its pixels, equal ones in row-major order.
    """
    rows, columns = (range(0, n, patch) for n in heatmap.shape)
    places = [(slice(i, i + patch), slice(j, j + patch)) for i in rows for j in columns]
    places.sort(key=lambda place: -heatmap[place].sum())
    removed = np.zeros(heatmap.shape, bool)
    drops = [0.0]
    for place in places[:regions]:
        removed[place] = True
        drops.append(f(x) - f(replace(x, removed, baseline)))
    return float(np.mean(drops))


# Drop, increase, gain


def explained_image(x, heatmap, keep: float | None = None, baseline: Baseline = 0.0) -> np.ndarray:
    """Soft: map * x + (1 - map) * baseline. Keep: exactly the top floor(keep HW) pixels of x."""
    if keep is None:
        weight = heatmap[:, :, None]
        return weight * x + (1 - weight) * fill(x, baseline)
    return replace(x, ~top(heatmap, int(keep * heatmap.size)), baseline)


def confidence(f, x, heatmap, keep: float | None = None, baseline: Baseline = 0.0) -> Confidence:
    """Y = f(x), O = f(explained): max(0, Y-O) / Y, O > Y, max(0, O-Y) / (1-Y), in per cent.

    Chattopadhay et al. 2018 (drop, increase). NaN where Y <= 0; the gain also where Y >= 1.
    """
    y, o = f(x), f(explained_image(x, heatmap, keep, baseline))
    if y <= 0:
        return Confidence(nan, nan, nan, y, o)
    gain = 100 * max(0.0, o - y) / (1 - y) if y < 1 else nan
    return Confidence(100 * max(0.0, y - o) / y, 100.0 * (o > y), gain, y, o)


# Localisation


def region(boxes: Sequence[Sequence[int]], size: tuple[int, int]) -> np.ndarray:
    """Union of boxes (top, left, bottom, right), in pixels, ends exclusive."""
    out = np.zeros(size, bool)
    for i, j in np.ndindex(size):
        out[i, j] = any(t <= i < b and l <= j < r for t, l, b, r in boxes)
    return out


def share_inside(values, region) -> float:
    total = values.sum()
    return float(values[region].sum() / total) if region.any() and total != 0 else nan


def energy_pointing(heatmap, region) -> float:
    """Share of the positive part of the map inside. Wang et al. 2020."""
    return share_inside(np.maximum(heatmap, 0), region)


def relevance_mass(heatmap, region) -> float:
    """Share of the map's signed sum inside. Arras et al. 2022."""
    return share_inside(np.asarray(heatmap, float), region)


def iou(heatmap, region, share: float = 0.2) -> float:
    """The top floor(share HW) pixels against the region."""
    if not region.any():
        return nan
    chosen = top(heatmap, int(share * heatmap.size))
    return float((chosen & region).sum() / (chosen | region).sum())


def top_k_intersection(heatmap, region, k: int = 1000) -> float:
    """Share of the k highest pixels, all if there are fewer, inside. Theiner et al. 2022."""
    k = min(k, heatmap.size)
    return float((top(heatmap, k) & region).sum() / k) if region.any() else nan


def box_hit(heatmap, region) -> float:
    """Share of the n highest pixels inside, n the region's area. Schulz et al. 2020."""
    return top_k_intersection(heatmap, region, int(region.sum()))


relevance_rank = box_hit


def pointing(heatmap, region, tolerance: float = 15.0) -> float:
    """1 if a pixel of the region lies nearer than `tolerance` to the first maximum.

    Zhang et al. 2016, as in TorchRay (strictly nearer, Euclidean).
    """
    if not region.any():
        return nan
    i, j = np.unravel_index(np.argmax(heatmap), heatmap.shape)
    return float(any(np.hypot(a - i, b - j) < tolerance for a, b in np.argwhere(region)))
