"""Slow, plain twin of ROAD: pixels replaced by what their neighbours say, and the score's change.

Rong et al. 2022, as in pytorch-grad-cam. Numpy and loops in float64, apart from the library; the
linear system is dense, and the noise is an argument.
"""

from collections.abc import Sequence
from math import ceil

import numpy as np
from reference_metrics import ranks

WEIGHTS = {
    (i, j): 1 / 6 if i == 0 or j == 0 else 1 / 12
    for i in (-1, 0, 1)
    for j in (-1, 0, 1)
    if (i, j) != (0, 0)
}


def impute(x, mask, noise: float | np.ndarray = 0.0) -> np.ndarray:
    """x with the pixels where `mask` [H,W] is True replaced; noise [H,W,C] is added to these.

    Each replaced pixel is the weighted mean of its neighbours, sides 1/6, corners 1/12, with the
    weights of those beyond the border left out of sum and divisor. Some pixel must remain.
    """
    places = [tuple(p) for p in np.argwhere(mask)]
    unknown = {place: n for n, place in enumerate(places)}
    a, b = np.zeros((len(places), len(places))), np.zeros((len(places), x.shape[2]))
    for n, (i, j) in enumerate(places):
        for (di, dj), weight in WEIGHTS.items():
            at = (i + di, j + dj)
            if not (0 <= at[0] < x.shape[0] and 0 <= at[1] < x.shape[1]):
                continue
            a[n, n] += weight
            if at in unknown:
                a[n, unknown[at]] -= weight
            else:
                b[n] += weight * x[at]
    out = np.array(x, float)
    out[mask] = np.linalg.solve(a, b) + np.broadcast_to(noise, x.shape)[mask]
    return out


def removed(heatmap, percentile: float) -> np.ndarray:
    """All but the pixels below the percentile (linear between ranks), ties by flat index."""
    kept = ceil(percentile * (heatmap.size - 1) / 100)
    return ranks(heatmap) < heatmap.size - kept


def road_curve(
    f, x, heatmap, percentiles: Sequence[float], noise: float | np.ndarray = 0.0
) -> np.ndarray:
    """f(imputed) - f(x) for each percentile, the highest pixels removed (MoRF); noise [P,H,W,C].

    The lowest removed (LeRF): the curve of the negated map.
    """
    noise = np.broadcast_to(noise, (len(percentiles), *x.shape))
    images = [impute(x, removed(heatmap, p), n) for p, n in zip(percentiles, noise, strict=True)]
    return np.array([f(image) - f(x) for image in images])


def road(
    f, x, heatmap, percentiles=tuple(range(10, 100, 10)), noise: float | np.ndarray = 0.0
) -> float:
    """Mean of (LeRF - MoRF) / 2; noise [2,P,H,W,C], MoRF first."""
    noise = np.broadcast_to(noise, (2, len(percentiles), *x.shape))
    morf = road_curve(f, x, heatmap, percentiles, noise[0])
    lerf = road_curve(f, x, -heatmap, percentiles, noise[1])
    return float(((lerf - morf) / 2).mean())
