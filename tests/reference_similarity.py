"""Slow, plain twins of how alike two maps [H,W] are and how concentrated one is.

Numpy and loops in float64, apart from the library.
"""

from math import log, nan

import numpy as np
from reference import min_max

# Two maps


def pearson(a, b) -> float:
    """Correlation of all the values; 0 where one of the arrays is constant."""
    a, b = np.ravel(a).astype(float), np.ravel(b).astype(float)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def average_ranks(values) -> np.ndarray:
    """1 for the lowest; equal ones share the mean of their ranks."""
    values = np.ravel(values)
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def spearman(a, b) -> float:
    """Pearson correlation of the average ranks."""
    return pearson(average_ranks(a), average_ranks(b))


def ssim(a, b) -> float:
    """Mean over the 11x11 windows inside, weighted by a Gaussian of sigma 1.5; maps min-maxed.

    Wang et al. 2004, K1 = 0.01, K2 = 0.03, range 1; a constant map becomes zeros.
    """
    a, b = min_max(np.asarray(a, float)), min_max(np.asarray(b, float))
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            covariance = (window * (p - mp) * (q - mq)).sum()
            luminance = (2 * mp * mq + 0.01**2) / (mp**2 + mq**2 + 0.01**2)
            values.append(luminance * (2 * covariance + 0.03**2) / (vp + vq + 0.03**2))
    return float(np.mean(values))


# One map


def sparseness(heatmap) -> float:
    """Gini index of |map|: 1 - 2 sum_k v_k (d - k + 1/2) / (d sum v), v ascending, k = 1..d.

    Chalasani et al. 2020. NaN for a zero map.
    """
    v = np.sort(np.abs(np.ravel(heatmap)))
    if v.sum() == 0:
        return nan
    d = len(v)
    return 1 - 2 * sum(v[k - 1] * (d - k + 0.5) for k in range(1, d + 1)) / (d * v.sum())


def complexity(heatmap) -> float:
    """Entropy in nats of |map| / sum |map|. Bhatt et al. 2020. NaN for a zero map."""
    v = np.abs(np.ravel(heatmap))
    if v.sum() == 0:
        return nan
    return -sum(p * log(p) for p in v / v.sum() if p > 0)


def effective_complexity(heatmap, eps: float = 1e-5) -> int:
    """Number of pixels with |map| > eps max |map| (the count in use, after Quantus)."""
    v = np.abs(heatmap)
    return int((v > eps * v.max()).sum())
