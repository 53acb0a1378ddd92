"""Slow, plain twins of the CAM family, the gradient methods and occlusion.

Written from the papers' formulas in numpy and loops, float64, apart from the library, so that the
two can be compared. One image at a time: activation a [h,w,K], gradient of the score g [h,w,K],
image x [H,W,C]. A gradient comes as an array or as a function; `finite_difference` makes one from
any scalar function. Maps are signed: the ReLU, where a method has one, is left to the caller.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Cam(NamedTuple):
    map: np.ndarray  # [h,w], signed
    weights: np.ndarray  # [K], or [h,w,K] where they differ between positions


def relu(v):
    return np.maximum(v, 0)


def finite_difference(f: Callable, x, step: float = 1e-4) -> np.ndarray:
    """df/dx_i = (f(x + step e_i) - f(x - step e_i)) / (2 step)."""
    x = np.array(x, float)
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = (float(f(up)) - float(f(down))) / (2 * step)
    return gradient


# Resizing


def resize_bilinear(m, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, half-pixel centres, edge clamped, no antialiasing: [h,w] or [h,w,K] to `size`."""
    m = np.asarray(m, float)

    def neighbours(i, old, new):
        at = (i + 0.5) * old / new - 0.5
        low = int(np.floor(at))
        return max(low, 0), min(low + 1, old - 1), at - low

    out = np.zeros((*size, *m.shape[2:]))
    for i in range(size[0]):
        for j in range(size[1]):
            i0, i1, u = neighbours(i, m.shape[0], size[0])
            j0, j1, v = neighbours(j, m.shape[1], size[1])
            top = (1 - v) * m[i0, j0] + v * m[i0, j1]
            bottom = (1 - v) * m[i1, j0] + v * m[i1, j1]
            out[i, j] = (1 - u) * top + u * bottom
    return out


def pgc_pipeline(m, size: tuple[int, int]) -> np.ndarray:
    """What pytorch-grad-cam does to a signed map: ReLU, min-max, resize, ReLU, min-max."""

    def unit(v):
        return (v - v.min()) / (1e-7 + (v - v.min()).max())

    return unit(relu(resize_bilinear(unit(relu(m)), size)))


# CAM family


def weighted_map(a, weights) -> np.ndarray:
    """map_ij = sum_k w_k a_ijk, for weights [K] or [h,w,K]."""
    out = np.zeros(a.shape[:2])
    for i, j, k in np.ndindex(a.shape):
        out[i, j] += (weights[k] if weights.ndim == 1 else weights[i, j, k]) * a[i, j, k]
    return out


def per_channel(weight: Callable, a, g) -> Cam:
    """The CAM whose w_k is a function of the channel's activation and gradient, [h,w] each."""
    weights = np.array([weight(a[:, :, k], g[:, :, k]) for k in range(a.shape[2])])
    return Cam(weighted_map(a, weights), weights)


def cam(a, column) -> Cam:
    """w_k = W_dense[k, class]. Zhou et al. 2016."""
    weights = np.asarray(column, float)
    return Cam(weighted_map(a, weights), weights)


def grad_cam(a, g) -> Cam:
    """w_k = mean_ij g_ijk. Selvaraju et al. 2017."""
    return per_channel(lambda ak, gk: gk.mean(), a, g)


def grad_cam_pp(a, g) -> Cam:
    """w_k = sum_ij g+ g^2 / (2 g^2 + (sum A_k) g^3 + 1e-6). Chattopadhay et al. 2018."""

    def weight(ak, gk):
        total = 0.0
        for i, j in np.ndindex(gk.shape):
            if gk[i, j] > 0:
                square = gk[i, j] ** 2
                alpha = square / (2 * square + ak.sum() * gk[i, j] ** 3 + 1e-6)
                total += gk[i, j] * alpha
        return total

    return per_channel(weight, a, g)


def xgrad_cam(a, g) -> Cam:
    """w_k = sum_ij g A / (sum_ij A + 1e-7). Fu et al. 2020."""
    return per_channel(lambda ak, gk: (gk * ak).sum() / (ak.sum() + 1e-7), a, g)


def hires_cam(a, g) -> Cam:
    """w_ijk = g_ijk. Draelos & Carin 2020."""
    return Cam(weighted_map(a, g), g)


def layer_cam(a, g) -> Cam:
    """w_ijk = max(g_ijk, 0). Jiang et al. 2021."""
    return Cam(weighted_map(a, relu(g)), relu(g))


def eigen_cam(a) -> Cam:
    """map = M v: M = A [hw,K] minus column means, v its first right singular vector.

    Muhammad & Yeasin 2020. The sign is ours: flipped where |min| > |max| of the map.
    """
    h, w, k = a.shape
    centred = a.reshape(h * w, k) - a.reshape(h * w, k).mean(0)
    v = np.linalg.svd(centred, full_matrices=False)[2][0]
    m = (centred @ v).reshape(h, w)
    return Cam(-m, -v) if abs(m.min()) > abs(m.max()) else Cam(m, v)


def eigen_grad_cam(a, g) -> Cam:
    """Eigen-CAM of g * A (pytorch-grad-cam's variant)."""
    return eigen_cam(g * a)


def ablation_cam(a, head: Callable, divide: str = "abs") -> Cam:
    """w_k = (y - y_k) / |y|, y = head(A), y_k = head(A with channel k set to 0).

    Desai & Ramaswamy 2020; they and pytorch-grad-cam divide by y itself: `divide="score"`.
    The divisor is 1 where y = 0.
    """
    y = float(head(a))
    divisor = {"abs": abs(y), "score": y}[divide] or 1.0
    weights = []
    for k in range(a.shape[2]):
        removed = a.copy()
        removed[:, :, k] = 0
        weights.append((y - float(head(removed))) / divisor)
    return Cam(weighted_map(a, np.array(weights)), np.array(weights))


def min_max(v) -> np.ndarray:
    """(v - min) / (max - min) over the whole array; zeros where it is constant."""
    spread = v.max() - v.min()
    return (v - v.min()) / spread if spread > 0 else np.zeros_like(v)


def full_grad(pairs: Sequence[tuple], x, dx) -> np.ndarray:
    """sum_layers sum_k resize(minmax |bias * g|) + sum_c minmax |x * dx|, [H,W].

    Srinivas & Fleuret 2019. `pairs` holds (bias [K], gradient at the layer's output [h,w,K]).
    """
    out = min_max(np.abs(x * dx)).sum(2)
    for bias, g in pairs:
        out = out + resize_bilinear(min_max(np.abs(bias * g)), x.shape[:2]).sum(2)
    return out


# Gradient methods


def saliency(g) -> np.ndarray:
    """max_c |g|, [H,W]. Simonyan et al. 2014."""
    return np.abs(g).max(2)


def input_x_gradient(x, g) -> np.ndarray:
    """sum_c x g, [H,W]. Shrikumar et al. 2016."""
    return (x * g).sum(2)


def integrated_gradients(x, x0, gradient: Callable, steps: int) -> np.ndarray:
    """sum_c (x - x0) mean_i gradient(x0 + (i + 1/2)/n (x - x0)), [H,W].

    Sundararajan et al. 2017, by the midpoint rule.
    """
    mean = np.zeros_like(x)
    for i in range(steps):
        mean += gradient(x0 + (i + 0.5) / steps * (x - x0)) / steps
    return ((x - x0) * mean).sum(2)


def smooth_grad(x, noise, explain: Callable) -> np.ndarray:
    """mean_n explain(x + noise_n), noise [N,H,W,C]. Smilkov et al. 2017.

    With `explain` a gradient the mean is signed; with a map such as `saliency` it is of maps.
    """
    return np.mean([explain(x + n) for n in noise], axis=0)


def guided_grad_cam(guided, m) -> np.ndarray:
    """guided * resize(ReLU(m)), [H,W,C]: guided gradient [H,W,C], signed Grad-CAM m [h,w].

    Selvaraju et al. 2017.
    """
    return guided * resize_bilinear(relu(m), guided.shape[:2])[:, :, None]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """0, stride, ...; one more window, ending at the border, where a remainder is left."""
    starts = list(range(0, length - window + 1, stride))
    return starts if starts[-1] + window == length else [*starts, length - window]


def occlusion(score: Callable, x, window, stride, fill: float = 0.0) -> np.ndarray:
    """map_p = mean over windows covering p of score(x) - score(x filled there); 0 if none does.

    Zeiler & Fergus 2014, averaged over overlapping windows.
    """
    total, count = np.zeros(x.shape[:2]), np.zeros(x.shape[:2])
    for i in window_starts(x.shape[0], window[0], stride[0]):
        for j in window_starts(x.shape[1], window[1], stride[1]):
            place = slice(i, i + window[0]), slice(j, j + window[1])
            covered = x.copy()
            covered[place] = fill
            total[place] += score(x) - score(covered)
            count[place] += 1
    return total / np.maximum(count, 1)
