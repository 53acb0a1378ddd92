"""Slow, plain twin of SISE and Ada-SISE, and the golden model G3 that SISE and metrics share.

Written from the formulas in numpy and loops, float64, apart from the library. Activations
and gradients are lists, shallow to deep, of [h,w,K]; masks and maps have the image's size [H,W].
The papers' letters: V is the visualisation map of a layer, B its gate, E their fusion, Psi the
score that weighs a mask.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import reference_net as net
from reference import min_max, resize_bilinear

# The golden model: closed form, 32x32x3, three blocks of conv, relu ("tap0" ...), max-pool


def g3_kernel(l: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [3,3,in,out] and bias of block l."""
    inputs, outputs = (3, 8, 12, 16)[l : l + 2]
    a, b, i, o = np.indices((3, 3, inputs, outputs))
    phase = 1 + 0.5 * l + 0.7 * o + 1.3 * i + 2.1 * a + 2.9 * b
    bias = 0.05 * np.cos(np.arange(outputs) + l)
    return 1.5 * np.sqrt(2 / (9 * inputs)) * np.sin(phase), bias


def g3_layers(scale: float = 1.0) -> list[net.Layer]:
    """The layers of G3, its dense layer multiplied by `scale`; the logits come last."""
    layers = []
    for l in range(3):
        layers += [net.conv(*g3_kernel(l)), net.relu(), net.max_pool()]
    i, o = np.indices((16, 5))
    head = net.dense(scale * 2 * np.sin(0.5 + 1.1 * o + 0.9 * i), scale * 0.1 * np.arange(5))
    return [*layers, net.global_mean(), head]


def g3_image() -> np.ndarray:
    i, j, c = np.indices((32, 32, 3))
    return 0.5 + 0.5 * np.sin(0.9 * c + 0.37 * i - 0.23 * j + 0.013 * i * j)


def taps(values: list) -> list[np.ndarray]:
    """tap0, tap1, tap2 among the values, or the gradients, of the layers of G3."""
    return [values[3 * l + 2] for l in range(3)]


# Scores of logits [classes], with their gradients


def softmax(z) -> np.ndarray:
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def logit(z, k: int) -> tuple[float, np.ndarray]:
    return z[k], np.eye(len(z))[k]


def probability(z, k: int) -> tuple[float, np.ndarray]:
    p = softmax(z)
    return p[k], p[k] * (np.eye(len(z))[k] - p)


def log_odds(z, k: int) -> tuple[float, np.ndarray]:
    """z_k - logsumexp of the others."""
    others = np.where(np.arange(len(z)) == k, -np.inf, z)
    top = others.max()
    return z[k] - top - np.log(np.exp(others - top).sum()), np.eye(len(z))[k] - softmax(others)


def g3_score(k: int = 4, of: Callable = probability, scale: float = 1.0) -> Callable:
    """x -> score of class k."""
    layers = g3_layers(scale)
    return lambda x: float(of(net.forward(layers, x)[-1], k)[0])


def g3_taps(x, k: int = 4, of: Callable = probability, scale: float = 1.0) -> tuple[list, list]:
    """Activations and gradients of the score of class k at tap0, tap1, tap2."""
    layers = g3_layers(scale)
    values = net.forward(layers, x)
    return taps(values), taps(net.backward(layers, values, of(values[-1], k)[1]))


# Selection: mean gradients alpha [K] -> kept [K] bool


def positive(mu: float = 0.0) -> Callable:
    """Keep alpha > mu max(alpha), of the positive ones (SISE, Eq 7)."""
    return lambda alpha: (alpha > 0) & (alpha > mu * alpha.max())


def exact_otsu(z) -> float:
    """Largest value of the lower class of the first best split of the sorted values."""
    z, best, threshold = np.sort(z), -1.0, -np.inf
    for n in range(1, len(z)):
        variance = n * (len(z) - n) * (z[:n].mean() - z[n:].mean()) ** 2
        if variance > best:
            best, threshold = variance, z[n - 1]
    return threshold


def adaptive(threshold: Callable = exact_otsu) -> Callable:
    """Keep z = alpha / max(alpha) above Otsu's threshold of the positive z (Ada-SISE).

    All are kept where the positive z are equal, or one.
    """

    def select(alpha):
        z = alpha / alpha.max() if alpha.max() > 0 else np.zeros_like(alpha)
        found = z[z > 0]
        many = len(np.unique(found)) > 1
        return (z > threshold(found)) & (z > 0) if many else z > 0

    return select


# Otsu's thresholds: map in [0,1] -> t


def otsu_split(counts) -> int:
    """First j with the greatest n0 n1 (mean0 - mean1)^2, bins [0, j) against [j, n)."""
    bins, best, split = np.arange(len(counts)), 0.0, 0
    for j in range(1, len(counts)):
        n0, n1 = counts[:j].sum(), counts[j:].sum()
        if n0 and n1:
            mean0, mean1 = (counts * bins)[:j].sum() / n0, (counts * bins)[j:].sum() / n1
            if n0 * n1 * (mean0 - mean1) ** 2 > best:
                best, split = n0 * n1 * (mean0 - mean1) ** 2, j
    return split


def bins_of_256(v) -> np.ndarray:
    """round(256 v), half to even; 256 joins the last bin."""
    return np.minimum(np.rint(256 * v).astype(int), 255)


def bytes_of(v) -> np.ndarray:
    return np.floor(255 * v).astype(int)


def otsu(v) -> float:
    """The default: 256 bins, t = split / 256."""
    return otsu_split(np.bincount(bins_of_256(v).ravel(), minlength=256)) / 256


def otsu_tau(v, tau: float = 1.5) -> float:
    """1.5 t where fewer than a tenth of the pixels lie above it (may pass 1), else t."""
    t = otsu(v)
    high = (bins_of_256(v) >= round(tau * t * 256)).mean()
    return tau * t if high < 0.1 else t


def otsu_skimage(v) -> float:
    """scikit-image's: the centre of the lower class's last of 256 bins over the data's range."""
    counts, edges = np.histogram(v, 256)
    split = otsu_split(counts)
    return (edges[split - 1] + edges[split]) / 2


def otsu_cv2(v) -> float:
    """OpenCV's on floor(255 v): the lower class's last value, / 255."""
    return (otsu_split(np.bincount(bytes_of(v).ravel(), minlength=256)) - 1) / 255


# Gates: V -> B


def hard(threshold: Callable = otsu) -> Callable:
    return lambda v: (v > threshold(v)).astype(float)


def hard_cv2(v) -> np.ndarray:
    """As OpenCV applies its threshold: to the bytes, not to the map."""
    return (bytes_of(v) > round(255 * otsu_cv2(v))).astype(float)


def soft(v) -> np.ndarray:
    return 1 / (1 + np.exp(-100 * (v - otsu_tau(v))))


def simple(v) -> np.ndarray:
    return v


# The method


class Layer(NamedTuple):
    kept: np.ndarray  # [K] bool
    masks: np.ndarray  # [N,H,W]: those of the kept maps that are not constant
    weights: np.ndarray  # [N]
    v: np.ndarray | None  # [H,W] in [0,1]; None: the layer is absent


class Sise(NamedTuple):
    layers: list[Layer]
    raw: np.ndarray  # E
    map: np.ndarray  # E min-maxed


def attribution_masks(a, size: tuple[int, int], eps: float = 1e-6) -> np.ndarray:
    """Upsample, then (u - min) / (max - min + eps), of each map of a [h,w,K]; [N,H,W]."""
    up = resize_bilinear(a, size).transpose(2, 0, 1)
    masks = [(u - u.min()) / (u.max() - u.min() + eps) for u in up if u.max() > u.min()]
    return np.array(masks).reshape(-1, *size)


def visualisation(masks, weights, area: bool = True) -> np.ndarray | None:
    """V = minmax sum_k s_k m_k / (sum m_k + 1e-6); without area: sum_k s_k m_k."""
    total = np.zeros(masks.shape[1:])
    for m, s in zip(masks, weights, strict=True):
        total += s * m / (m.sum() + 1e-6 if area else 1)
    return min_max(total) if total.max() > total.min() else None


def fuse(maps: Sequence[np.ndarray | None], gate: Callable, size: tuple[int, int]) -> np.ndarray:
    """e_1 = V_1, e_i = (e_{i-1} + V_i) B_i; an absent layer has V = 0 and B = 1."""
    e = np.zeros(size)
    for i, v in enumerate(maps):
        if v is not None:
            e = (e + v) * gate(v) if i else v
    return e


def sise(
    activations: Sequence[np.ndarray],
    gradients: Sequence[np.ndarray],
    x: np.ndarray,
    psi: Callable,
    *,
    select: Callable = positive(),  # noqa: B008 - a pure function of alpha
    gate: Callable = hard(),  # noqa: B008 - a pure function of V
    area: bool = True,
    baseline: float = 0.0,
    eps: float = 1e-6,
) -> Sise:
    """Sattarzadeh et al. 2021; Ada-SISE (Sudhakar et al. 2021) by `select=adaptive()`."""
    layers = []
    for a, g in zip(activations, gradients, strict=True):
        kept = select(g.mean((0, 1)))
        masks = attribution_masks(a[:, :, kept], x.shape[:2], eps)
        images = [m[:, :, None] * x + (1 - m[:, :, None]) * baseline for m in masks]
        weights = np.array([psi(image) for image in images])
        layers.append(Layer(kept, masks, weights, visualisation(masks, weights, area)))
    raw = fuse([layer.v for layer in layers], gate, x.shape[:2])
    return Sise(layers, raw, min_max(raw))
