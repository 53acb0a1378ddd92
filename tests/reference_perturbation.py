"""Slow, plain twins of RISE, Score-CAM and its variants, Recipro-CAM and Extremal Perturbation.

Written from the formulas in numpy and loops, float64, apart from the library, so that the two can
be compared. One image x [H,W,C] and one activation a [h,w,K] at a time; `score` takes an image,
`head` an activation. Whatever is random or a gradient comes as an array: grids, shifts, noise.
Nothing is min-maxed: maps of the image's size [H,W] have had their ReLU where the method has one,
a `Cam` of the activation's size [h,w] is signed. Ablation-CAM is in `reference`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from reference import Cam, min_max, relu, resize_bilinear, weighted_map
from reference_sise import softmax


def masked(x, m, fill=0.0) -> np.ndarray:
    """m x + (1 - m) fill: image [H,W,C], mask [H,W], fill a value or an image."""
    return m[:, :, None] * x + (1 - m[:, :, None]) * fill


# RISE


def rise_masks(grids, shifts, size: tuple[int, int]) -> np.ndarray:
    """Grids [N,s,s] of 0 and 1, shifts [N,2] (rows, columns) -> masks [N,H,W].

    Each grid is enlarged to (s + 1) cells of ceil(size / s) pixels a side, then cropped at its
    shift, which lies in [0, cell). Petsiuk et al. 2018.
    """
    masks = []
    for grid, (row, column) in zip(np.asarray(grids, float), shifts, strict=True):
        s = len(grid)
        height, width = ((s + 1) * int(np.ceil(n / s)) for n in size)
        canvas = resize_bilinear(grid, (height, width))
        masks.append(canvas[row:, column:][: size[0], : size[1]])
    return np.array(masks)


def rise(x, masks, score: Callable, p: float, normalise: str = "expectation") -> np.ndarray:
    """sum_n score(x m_n) m_n / (N p), [H,W]; "pixel": / sum_n m_n, and 0 where that is 0.

    Petsiuk et al. 2018; division per pixel is xplique's.
    """
    total = np.zeros(x.shape[:2])
    for m in masks:
        total += float(score(masked(x, m))) * m
    seen = {"expectation": np.full_like(total, len(masks) * p), "pixel": masks.sum(0)}[normalise]
    return np.divide(total, seen, out=np.zeros_like(total), where=seen > 0)


# Score-CAM: the masks of a layer, None where a map is constant


def unit(m, eps: float = 0.0) -> np.ndarray:
    return (m - m.min()) / (m.max() - m.min() + eps)


def resize_corners(m, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, the corner samples of [h,w] on the corner samples of `size` (align_corners)."""
    rows = np.linspace(0, m.shape[0] - 1, size[0])
    columns = np.linspace(0, m.shape[1] - 1, size[1])
    tall = np.array([np.interp(rows, np.arange(m.shape[0]), column) for column in m.T]).T
    return np.array([np.interp(columns, np.arange(m.shape[1]), row) for row in tall])


def half_pixel_masks(a, size) -> list[np.ndarray | None]:
    """Upsample, then min-max without eps: the authors' and the default."""
    maps = resize_bilinear(a, size).transpose(2, 0, 1)
    return [unit(u) if u.max() > u.min() else None for u in maps]


def corner_masks(a, size) -> list[np.ndarray | None]:
    """Upsample corner to corner, then min-max with eps 1e-8: pytorch-grad-cam's."""
    maps = a.transpose(2, 0, 1)
    return [unit(resize_corners(m, size), 1e-8) if m.max() > m.min() else None for m in maps]


def unit_first_masks(a, size) -> list[np.ndarray | None]:
    """Min-max with eps 1e-8, then upsample: torch-cam's."""
    maps = a.transpose(2, 0, 1)
    return [resize_bilinear(unit(m, 1e-8), size) if m.max() > m.min() else None for m in maps]


# Score-CAM: what is subtracted from every score


def nothing(score: Callable, x) -> float:
    return 0.0


def clean(score: Callable, x) -> float:
    return float(score(x))


def zero_image(score: Callable, x) -> float:
    return float(score(np.zeros_like(x)))


class Convention(NamedTuple):
    """What implementations of Score-CAM disagree about."""

    masks: Callable = half_pixel_masks
    baseline: Callable = nothing
    softmax: bool = False  # over the channels
    upsample_first: bool = True  # before the ReLU of the map, not after it


AUTHORS = Convention()  # haofanwang/Score-CAM, where `score` is a probability
SOFTMAX = Convention(softmax=True)  # the authors' masks, where `score` is a logit
PYTORCH_GRAD_CAM = Convention(corner_masks, nothing, softmax=True, upsample_first=False)
TORCH_CAM = Convention(unit_first_masks, clean, softmax=True, upsample_first=False)


def score_cam(
    a, x, score: Callable, convention: Convention = AUTHORS, variants: Callable | None = None
) -> Cam:
    """w_k = mean over the variants v of mask m_k of score(x v) - baseline; its ReLU'd map [H,W].

    Wang et al. 2020. `variants` is (k, m_k) -> masks [N,H,W], by default m_k alone. A constant
    map has weight 0 and no part in the softmax; the eps of pytorch-grad-cam and torch-cam would
    score it as a black image instead.
    """
    masks = convention.masks(a, x.shape[:2])
    live = np.array([m is not None for m in masks])
    scores = []
    for k, m in enumerate(masks):
        if m is not None:
            tried = [m] if variants is None else variants(k, m)
            scores.append(np.mean([float(score(masked(x, v))) for v in tried]))
    weights = np.zeros(len(masks))
    if live.any():
        weights[live] = np.array(scores) - convention.baseline(score, x)
        weights[live] = softmax(weights[live]) if convention.softmax else weights[live]
    if convention.upsample_first:
        return Cam(relu(weighted_map(resize_bilinear(a, x.shape[:2]), weights)), weights)
    return Cam(resize_bilinear(relu(weighted_map(a, weights)), x.shape[:2]), weights)


def ss_cam(a, x, score: Callable, noise, convention: Convention = SOFTMAX) -> Cam:
    """Score-CAM with masks m_k + noise_kn, mean of scores over n; noise [N,K,H,W] or [N,1,H,W].

    Wang et al. 2020 (SS-CAM). Noise is added at the image's size, the sum not clipped again.
    """
    noise = np.broadcast_to(noise, (len(noise), a.shape[2], *x.shape[:2]))
    return score_cam(a, x, score, convention, lambda k, m: [m + n for n in noise[:, k]])


def is_cam(
    a, x, score: Callable, steps: int, cumulative: bool = False, convention: Convention = SOFTMAX
) -> Cam:
    """Score-CAM with masks c_t m_k, c_t = t / N for t = 1..N, mean of scores over t.

    Naidu et al. 2020. `cumulative`: c_t = 1/N + 2/N + ... + t/N, as in torch-cam.
    """
    ramp = (np.cumsum if cumulative else np.array)(np.arange(1, steps + 1) / steps)
    return score_cam(a, x, score, convention, lambda k, m: [c * m for c in ramp])


# Group-CAM


class GroupCam(NamedTuple):
    map: np.ndarray  # [H,W]
    weights: np.ndarray  # [groups]
    masks: np.ndarray  # [groups,H,W], zeros where the group is dead


def group_cam(a, g, x, score: Callable, baseline, groups: int) -> GroupCam:
    """sum_g s_g u_g, s_g = ReLU(score(x m_g + b (1 - m_g)) - score(b)); g the gradient at a.

    u_g is the upsampled ReLU of the sum over group g of mean(g_k) A_k, m_g its min-max. Zhang et
    al. 2021. Groups are runs of ceil(K / groups) channels, the last one shorter: there may be
    fewer than asked for. A group whose map is constant is dead: weight 0.
    """
    channels = a.shape[2]
    length = -(-channels // groups)
    weighted = g.mean((0, 1)) * a
    clean_score = float(score(np.zeros_like(x) + baseline))
    total, weights, masks = np.zeros(x.shape[:2]), [], []
    for first in range(0, channels, length):
        u = resize_bilinear(relu(weighted[:, :, first : first + length].sum(2)), x.shape[:2])
        m = min_max(u)
        s = relu(float(score(masked(x, m, baseline))) - clean_score) if m.any() else 0.0
        total += s * u
        weights.append(s)
        masks.append(m)
    return GroupCam(total, np.array(weights), np.array(masks))


# Feature space: FD-CAM, Recipro-CAM


def similar_channels(a, theta: float) -> np.ndarray:
    """[K,K] bool: cosine(A_k, A_j) > the theta-quantile (linear) of row k; a dead map's are 0."""
    cosine = np.zeros((a.shape[2], a.shape[2]))
    for k, j in np.ndindex(cosine.shape):
        norm = np.linalg.norm(a[:, :, k]) * np.linalg.norm(a[:, :, j])
        cosine[k, j] = (a[:, :, k] * a[:, :, j]).sum() / norm if norm > 0 else 0.0
    return np.array([row > np.quantile(row, theta) for row in cosine])


def fd_cam(a, g, head: Callable, theta: float) -> Cam:
    """w = exp(minmax_k(head(on_k) + head(A) - head(off_k))) minmax_k(mean gradient) - 1/2.

    on_k keeps the channels similar to k alone, off_k all others. Li et al. 2022. A min-max over
    equal values is 0.
    """
    y = float(head(a))
    similar = similar_channels(a, theta)
    scores = [float(head(a * on)) + y - float(head(a * ~on)) for on in similar]
    weights = np.exp(min_max(np.array(scores))) * min_max(g.mean((0, 1))) - 0.5
    return Cam(weighted_map(a, weights), weights)


def recipro_cam(a, head: Callable, spread: bool = False) -> np.ndarray:
    """map_ij = head(a with only position ij of all channels kept), [h,w]. Byun & Lee 2022.

    `spread` keeps [1 2 1] x [1 2 1] / 16 of the 3x3 positions around ij instead: 1/4 of ij itself,
    and at the border what lies inside.
    """
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16 if spread else np.ones((1, 1))
    r = len(kernel) // 2
    h, w = a.shape[:2]
    out = np.zeros((h, w))
    for i, j in np.ndindex(out.shape):
        keep = np.zeros((h + 2 * r, w + 2 * r))
        keep[i : i + 2 * r + 1, j : j + 2 * r + 1] = kernel
        out[i, j] = head(a * keep[r : r + h, r : r + w, None])
    return out


# Extremal Perturbation (Fong et al. 2019), as in TorchRay


def extremal_mask(
    grid,
    size: tuple[int, int],
    step: int = 7,
    sigma: float = 21,
    coldness: float = 20,
    margin: int = 21,
    reach: int | None = None,
) -> np.ndarray:
    """Smooth maximum of v_ab = grid_ab exp(-2 max(0, d_ab / sigma - 1/2)^2), with its margin.

    m = sum_ab v softmax_ab(coldness v), clipped to [0,1]; [H + 2 margin, W + 2 margin].
    Our choices, where the text is silent: grid point (a,b) lies at pixel (step a, step b); d is
    Euclidean, in pixels; the margin is sigma; the softmax runs over the whole grid. With `reach`
    it runs over the cells within `reach` of the pixel's own per axis, v = 0 outside the grid.
    """
    grid = np.asarray(grid, float)

    def cells(pixel, count):
        near = pixel // step
        return range(count) if reach is None else range(near - reach, near + reach + 1)

    out = np.zeros((size[0] + 2 * margin, size[1] + 2 * margin))
    for i, j in np.ndindex(out.shape):
        y, x = i - margin, j - margin
        v = []
        for r in cells(y, grid.shape[0]):
            for c in cells(x, grid.shape[1]):
                far = np.hypot(y - step * r, x - step * c) / sigma
                inside = 0 <= r < grid.shape[0] and 0 <= c < grid.shape[1]
                v.append(grid[r, c] * np.exp(-2 * max(0, far - 0.5) ** 2) if inside else 0.0)
        out[i, j] = np.array(v) @ softmax(coldness * np.array(v))
    return np.clip(out, 0, 1)


def area_loss(m, area: float) -> float:
    """mean (sort(m) - r)^2, r = floor(n (1 - area)) zeros, then ones; m with its margin."""
    ordered = np.sort(m, axis=None)
    target = np.arange(m.size) >= int(m.size * (1 - area))
    return float(((ordered - target) ** 2).mean())


def extremal_descent(
    gradient: Callable,
    start,
    iterations: int = 800,
    rate: float = 0.01,
    momentum: float = 0.9,
    dampening: float = 0.9,
    weight: float = 300,
    growth: float = 1.0035,
) -> list[np.ndarray]:
    """Every grid on the way of minimising weight * area_loss - reward, `start` first.

    `gradient` is (grid, weight, t) -> the loss's gradient; t, from 0, tells it when to flip the
    image. The first step's velocity is the whole gradient, undampened (PyTorch's SGD); the
    weight is 300 in step 0 and grows after every step; grids are clipped to [0,1].
    """
    grids, velocity = [np.array(start, float)], np.zeros_like(start, float)
    for t in range(iterations):
        slope = gradient(grids[-1], weight * growth**t, t)
        velocity = momentum * velocity + (1 - dampening) * slope if t else slope
        grids.append(np.clip(grids[-1] - rate * velocity, 0, 1))
    return grids
