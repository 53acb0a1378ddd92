"""Slow, plain twin of FAM and its relatives: which places of an image make a similarity.

Written from the formulas in numpy and loops, float64, apart from the library. An image is given by
its activation a [h,w,K], post-ReLU where a formula asks for it; what stands between activation and
embedding [E] is a list of layers (`reference_embedding`, which has the similarities as well). A
partner is an embedding s [E], or a pair of them [2,E] for `margin` and `corpus`. FAM (Liao, Gao,
Zhang 2023) and SFAM (2025) are reconstructed from their abstracts as one setting of A-FMI's engine.
"""

from collections.abc import Callable, Sequence

import numpy as np
import reference_afmi as fmi
import reference_net as net
from reference import min_max, weighted_map
from reference_afmi import divide, mean
from reference_afmi import signed as complete
from reference_baselines import constant_activation, zero_activation
from reference_embedding import cosine, dot, embed, true_cosine

# The method


def constant(value) -> Callable:
    """The reference A0_ijk = value_k."""
    return lambda a: constant_activation(a, value)


def fam(
    layers: Sequence[net.Layer],
    a,
    partner,
    similarity: Callable = cosine,
    reduction: Callable = complete,
    reference: Callable = zero_activation,
    multiplier: Callable = fmi.gradient,
) -> fmi.FMI:
    """A-FMI of F(A) = similarity(embed(A), partner); `contribution` is c_k where A is pooled."""
    score = similarity(embed(layers, a), np.asarray(partner, float))

    def head(at):
        return float(score(embed(layers, at))[0])

    def grad(at):
        values = net.forward(list(layers), at)
        return net.backward(list(layers), values, score(values[-1])[1])[0]

    return fmi.afmi(a, reference(a), head, multiplier, reduction, grad=grad)


def pair(layers, a, b, similarity: Callable = cosine, **options) -> tuple:
    """Map of a [h,w], map of b [h',w'], their similarity; each is the other's constant partner."""
    there = fam(layers, a, embed(layers, b), similarity, **options)
    back = fam(layers, b, embed(layers, a), similarity, **options)
    return there.map, back.map, there.f


def gallery(layers, queries, partners, similarity: Callable = cosine, **options) -> np.ndarray:
    """One map per query and partner: [Q,S,h,w]."""
    rows = [[fam(layers, a, s, similarity, **options).map for s in partners] for a in queries]
    return np.array(rows)


# Contribution: M_ij = sum_k w_k A_ijk, w = normalise(weight(c, q, s))


def share(c, q, s) -> np.ndarray:
    return c


def inverse(c, q, s) -> np.ndarray:
    return 1 / (1 + (q - s) ** 2)


def gaussian(temperature: float) -> Callable:
    return lambda c, q, s: np.exp(-((q - s) ** 2) / temperature)


def unscaled(w) -> np.ndarray:
    return w


def by_l1(w) -> np.ndarray:
    return divide(w, np.abs(w).sum())


def by_sum(w) -> np.ndarray:
    """Shares; they flip the signs where the sum is below 0."""
    return divide(w, w.sum())


def by_max(w) -> np.ndarray:
    """By the greatest magnitude."""
    return divide(w, np.abs(w).max())


def by_softmax(w) -> np.ndarray:
    return np.exp(w - w.max()) / np.exp(w - w.max()).sum()


NORMALISE = {
    "none": unscaled,
    "l1": by_l1,
    "sum": by_sum,
    "max": by_max,
    "minmax": min_max,
    "softmax": by_softmax,
}


def contribution(
    layers, a, partner, similarity: Callable = cosine, weight: Callable = share, normalise="l1"
) -> tuple[np.ndarray, np.ndarray]:
    """Map [h,w] and w [K]; c from the complete map. Other weights than `share` need E = K."""
    c = fam(layers, a, partner, similarity).contribution
    w = NORMALISE[normalise](weight(c, embed(layers, a), np.asarray(partner, float)))
    return weighted_map(a, w), w


# Closed forms of a pooled activation, q = mean_ij A


def partner_as_classifier(a, w) -> np.ndarray:
    """M_ij = (1/hw) sum_k w_k A_ijk: CAM whose class weights are those of the score."""
    return weighted_map(a, np.asarray(w, float)) / a[:, :, 0].size


def unit_mass(a, c) -> np.ndarray:
    """M_ij = sum_k c_k A_ijk / sum_ij A_ijk."""
    return weighted_map(a, divide(c, a.sum((0, 1))))


def delta(a, s) -> np.ndarray:
    """Delta_ij = (1/hw) sum_k (q_k - s_k) (A_ijk - s_k), of which the total is |q - s|^2."""
    q, out = a.mean((0, 1)), np.zeros(a.shape[:2])
    for i, j, k in np.ndindex(a.shape):
        out[i, j] += (q[k] - s[k]) * (a[i, j, k] - s[k]) / a[:, :, 0].size
    return out


# Few shots


def prototype(shots, mask=None) -> np.ndarray:
    """p = mean of the embeddings [S,E] that the mask [S] keeps; 0 where it keeps none."""
    kept = np.ones(len(shots), bool) if mask is None else np.asarray(mask, bool)
    return divide(np.asarray(shots)[kept].sum(0), kept.sum())


def support_shares(layers, q, supports: Sequence, mask=None) -> tuple[np.ndarray, np.ndarray]:
    """M^j_xy = (1/n) sum_e v^j_xye q_e / (|q| |p|) [S,h',w'], and s_j q / (n |q| |p|) [S].

    The shares sum to cos(q, p); a support that the mask drops has neither map nor share.
    """
    kept = np.ones(len(supports), bool) if mask is None else np.asarray(mask, bool)
    shots = [embed(layers, b) for b in supports]
    norms = np.linalg.norm(q) * np.linalg.norm(prototype(shots, kept))
    w = [divide(k * q, kept.sum() * norms) for k in kept]
    maps = [positions(layers, b) @ w_j for b, w_j in zip(supports, w, strict=True)]
    return np.array(maps), np.array([s @ w_j for s, w_j in zip(shots, w, strict=True)])


# Point to point. Zhu, Yang, Chen 2021


def positions(layers, a) -> np.ndarray:
    """u_ij [h,w,E]: what each position adds to the embedding, sum_k de/dA_ijk A_ijk; no bias."""
    values = net.forward(list(layers), a)
    rows = [net.backward(list(layers), values, unit)[0] for unit in np.eye(len(values[-1]))]
    return np.stack([(row * a).sum(2) for row in rows], axis=2)


def point_to_point(layers, a, b) -> np.ndarray:
    """P[i,j,x,y] = u_ij v_xy / (|q| |s|): the total is the cosine, up to biases."""
    u, v = positions(layers, a), positions(layers, b)
    norms = np.linalg.norm(embed(layers, a)) * np.linalg.norm(embed(layers, b))
    out = np.zeros(u.shape[:2] + v.shape[:2])
    for i, j, x, y in np.ndindex(out.shape):
        out[i, j, x, y] = divide(u[i, j] @ v[x, y], norms)
    return out


def clipped(p) -> np.ndarray:
    """Divided by the maximum, then without negatives; 0 where there is nothing positive."""
    return divide(np.maximum(p, 0), p.max())


def overall(p, clip: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Sum over the other image's positions: [h,w] and [h',w']. The authors clip before summing."""
    p = clipped(p) if clip else p
    return p.sum((2, 3)), p.sum((0, 1))


def point_map(p, point: tuple[int, int], size: tuple[int, int], clip: bool = False) -> np.ndarray:
    """P at pixel (row, col) of an image of `size`, bilinear on the grid, its edge repeated."""
    p = clipped(p) if clip else p
    at = [(r + 0.5) * n / full - 0.5 for r, n, full in zip(point, p.shape, size, strict=False)]
    out = np.zeros(p.shape[2:])
    for i, j in np.ndindex(2, 2):
        row, col = int(np.floor(at[0])) + i, int(np.floor(at[1])) + j
        inside = np.clip(row, 0, p.shape[0] - 1), np.clip(col, 0, p.shape[1] - 1)
        out += (1 - abs(at[0] - row)) * (1 - abs(at[1] - col)) * p[inside]
    return out


# Relatives


def grad_cam_on_cosine(layers, a, s) -> np.ndarray:
    """Grad-CAM before its ReLU, of the cosine whose norms are not held constant."""
    return fam(layers, a, s, true_cosine, mean).map


def self_map(layers, a) -> np.ndarray:
    """The dot product with the image's own embedding, held constant."""
    return fam(layers, a, embed(layers, a), dot).map


def lafam(a) -> np.ndarray:
    """Mean over channels, min-max: no partner. arXiv 2407.06059."""
    return min_max(a.mean(2))


def sbsm(embedding: Callable, x, s, windows, fill: float = 0.0) -> np.ndarray:
    """Mean over windows [N,H,W] covering a pixel of max(0, d(occluded x, s) - d(x, s)).

    d is the Euclidean distance of embeddings, `embedding` takes an image [H,W,C]. 0 where no
    window covers. Dong et al. 2019.
    """
    total, count = np.zeros(x.shape[:2]), np.zeros(x.shape[:2])
    for window in windows:
        occluded = np.where(window[:, :, None], fill, x)
        rise = np.linalg.norm(embedding(occluded) - s) - np.linalg.norm(embedding(x) - s)
        total += np.maximum(rise, 0) * window
        count += window
    return divide(total, count)
