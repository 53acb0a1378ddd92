"""Slow, plain twins of A-FMI's references: images x -> x0 [H,W,C], activations a -> a0 [h,w,K]."""

import numpy as np


def fill(x, value) -> np.ndarray:
    """x0 = value everywhere, in the units of x."""
    return np.zeros_like(x) + value


def black(x, mean, std) -> np.ndarray:
    """Pixel value 0, then (0 - mean) / std per channel."""
    return fill(x, (0 - np.asarray(mean)) / np.asarray(std))


def white(x, mean, std) -> np.ndarray:
    """Pixel value 1, then (1 - mean) / std per channel."""
    return fill(x, (1 - np.asarray(mean)) / np.asarray(std))


def blur(x, sigma: float, truncate: float = 4.0) -> np.ndarray:
    """Gaussian blur, sigma in pixels, rows then columns; the border repeats: c b a | a b c."""
    radius = int(truncate * sigma + 0.5)
    offsets = range(-radius, radius + 1)
    kernel = np.array([np.exp(-(o**2) / (2 * sigma**2)) for o in offsets])
    kernel = kernel / kernel.sum()

    def along_rows(v):
        n = len(v)
        fold = [*range(n), *range(n - 1, -1, -1)]
        rows = np.zeros_like(v)
        for i in range(n):
            for offset, weight in zip(offsets, kernel, strict=True):
                rows[i] += weight * v[fold[(i + offset) % (2 * n)]]
        return rows

    return along_rows(along_rows(x).swapaxes(0, 1)).swapaxes(0, 1)


def zero_activation(a) -> np.ndarray:
    """A0 = 0."""
    return np.zeros_like(a)


def constant_activation(a, value=None) -> np.ndarray:
    """A0_ijk = mean_ij A_ijk, or a given vector [K]."""
    return np.zeros_like(a) + (a.mean((0, 1)) if value is None else value)
