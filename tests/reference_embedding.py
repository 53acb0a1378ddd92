"""Slow, plain twins of what stands between an activation and a similarity.

Poolings [h,w,K] -> [E] as layers with a backward pass by hand, beside those of `reference_net`, and
similarities of two embeddings. Numpy in float64, apart from the library.
"""

from collections.abc import Callable, Sequence

import numpy as np
import reference_net as net
from reference_afmi import divide

# From activation to embedding: layers beside those of reference_net


def gap() -> net.Layer:
    """q_k = mean_ij A_ijk."""
    return net.global_mean()


def gem(p: float, eps: float = 1e-6) -> net.Layer:
    """q_k = (mean_ij max(A, eps)^p)^(1/p). Radenovic et al. 2019."""

    def forward(a):
        return (np.maximum(a, eps) ** p).mean((0, 1)) ** (1 / p)

    def backward(a, g):
        slope = forward(a) ** (1 - p) * np.maximum(a, eps) ** (p - 1) / a[:, :, 0].size
        return g * slope * (a > eps)

    return net.Layer("gem", forward, backward)


def global_max() -> net.Layer:
    """q_k = max_ij A_ijk; the gradient is split equally among equal maxima."""

    def backward(a, g):
        at = (a == a.max((0, 1))).astype(float)
        return g * at / at.sum((0, 1))

    return net.Layer("global_max", lambda a: a.max((0, 1)), backward)


def flatten() -> net.Layer:
    """[h,w,K] -> [h w K]."""
    return net.Layer("flatten", np.ravel, lambda a, g: g.reshape(a.shape))


def unit_length() -> net.Layer:
    """e / |e|, and 0 where e = 0."""

    def forward(e):
        return divide(e, np.linalg.norm(e))

    def backward(e, g):
        return divide(g - forward(e) * (forward(e) @ g), np.linalg.norm(e))

    return net.Layer("unit_length", forward, backward)


def embed(layers: Sequence[net.Layer], a) -> np.ndarray:
    return net.forward(list(layers), a)[-1]


# Similarities: (q0, partner) -> (q -> value, slope [E]); q0 is the unedited embedding


def linear(w, constant: float = 0.0) -> Callable:
    return lambda q: (q @ w + constant, w)


def dot(q0, s) -> Callable:
    """sum_k q_k s_k."""
    return linear(s)


def cosine(q0, s) -> Callable:
    """sum_k q_k s_k / (|q0| |s|): norms held constant; 0 where one of them is 0."""
    return linear(divide(s, np.linalg.norm(q0) * np.linalg.norm(s)))


def true_cosine(q0, s) -> Callable:
    """sum_k q_k s_k / (|q| |s|), the norm of q not held constant."""

    def of(q):
        n = np.linalg.norm(q)
        value = divide(q @ s, n * np.linalg.norm(s))
        return value, divide(s, n * np.linalg.norm(s)) - value * divide(q, n * n)

    return of


def neg_squared_distance(q0, s) -> Callable:
    """-sum_k (q_k - s_k)^2."""
    return lambda q: (-((q - s) ** 2).sum(), -2 * (q - s))


def margin(q0, pair) -> Callable:
    """-|q - p|^2 + |q - p'|^2 = 2 q (p - p') - (|p|^2 - |p'|^2)."""
    own, other = pair
    return linear(2 * (own - other), -((own**2).sum() - (other**2).sum()))


def centred_cosine(mu) -> Callable:
    """(q - mu) (s - mu) / (|q0 - mu| |s - mu|), norms held constant."""

    def similarity(q0, s):
        w = divide(s - mu, np.linalg.norm(q0 - mu) * np.linalg.norm(s - mu))
        return linear(w, -w @ mu)

    return similarity


def corpus(q0, pair) -> Callable:
    """q (mean - foil): mean dot product with a corpus minus that with a foil set."""
    return linear(pair[0] - pair[1])
