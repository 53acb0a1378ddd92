"""Slow, plain twin of A-FMI: multipliers, reductions, references, and the fields of the result.

A difference D = a - a0 of two activations [h,w,K] is weighed by a multiplier and reduced to one
importance per map. Numpy and loops in float64, apart from the library. A multiplier is called as
`multiplier(a, a0, head, grad)`, where head(a) is the score and grad(a) its gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from reference import finite_difference
from reference_net import Layer, forward


class Attribution(NamedTuple):
    kind: str  # "multiplier" m [h,w,K], "halves" (the same, constant on the two halves of each
    value: np.ndarray  # map), "elements" e [h,w,K] without a multiplier, "maps" C [K]


class FMI(NamedTuple):
    map: np.ndarray  # [h,w]
    fmi: np.ndarray  # [K]; [2,K] for signed: positive half, negative half
    contribution: np.ndarray  # [K]
    f: float
    f0: float
    residual: float  # f - f0 - sum(map)
    kept: np.ndarray  # [K] bool
    dropped: float  # 1 - sum of the kept contributions / (f - f0)


def divide(p, q) -> np.ndarray:
    """p / q, and 0 where q = 0."""
    p, q = np.broadcast_arrays(np.asarray(p, float), np.asarray(q, float))
    quotients = [u / v if v != 0 else 0.0 for u, v in zip(p.flat, q.flat, strict=True)]
    return np.array(quotients).reshape(p.shape)


# Multipliers


def gradient(a, a0, head, grad) -> Attribution:
    """m = dF/dA at A."""
    return Attribution("multiplier", grad(a))


def trapezoid(a, a0, head, grad) -> Attribution:
    """m = (dF/dA at A + dF/dA at A0) / 2."""
    return Attribution("multiplier", (grad(a) + grad(a0)) / 2)


def path(steps: int) -> Callable:
    """m = mean_i dF/dA at A0 + t_i (A - A0), t_i = (i + 1/2) / n."""

    def multiplier(a, a0, head, grad):
        m = np.zeros_like(a)
        for i in range(steps):
            m += grad(a0 + (i + 0.5) / steps * (a - a0)) / steps
        return Attribution("multiplier", m)

    return multiplier


def path_input(steps: int, stem: Callable, x, x0, dt: float = 1e-5) -> Callable:
    """e = mean_i dF/dA(x_t) dA(x_t)/dt, x_t = x0 + t (x - x0), t = (i + 1/2) / n."""

    def at(t):
        return stem(x0 + t * (x - x0))

    def multiplier(a, a0, head, grad):
        e = np.zeros_like(a)
        for i in range(steps):
            t = (i + 0.5) / steps
            e += grad(at(t)) * (at(t + dt) - at(t - dt)) / (2 * dt) / steps
        return Attribution("elements", e)

    return multiplier


def rescale(layers: list[Layer], start, eps: float = 1e-12) -> Callable:
    """DeepLIFT's Rescale through a head of layers, F = start . output. Shrikumar et al. 2017.

    Linear layers transpose; ReLU has slope (f(z) - f(z0)) / (z - z0), f'(z) where |z - z0| < eps.
    """

    def slope(z, z0):
        secant = divide(np.maximum(z, 0) - np.maximum(z0, 0), z - z0)
        return np.where(np.abs(z - z0) < eps, z > 0, secant)

    def multiplier(a, a0, head, grad):
        m = np.asarray(start, float)
        values, values0 = forward(layers, a), forward(layers, a0)
        for layer, z, z0 in zip(layers[::-1], values[-2::-1], values0[-2::-1], strict=True):
            if layer.name == "max_pool":
                raise ValueError("rescale has no rule for max_pool")
            m = m * slope(z, z0) if layer.name == "relu" else layer.backward(z, m)
        return Attribution("multiplier", m)

    return multiplier


def players(d, halves: bool) -> list[np.ndarray]:
    """Masks [h,w,K]: map 0, 1, ...; with halves where D > 0 in map 0, 1, ..., then where D < 0."""
    maps = [np.broadcast_to(np.arange(d.shape[2]) == k, d.shape) for k in range(d.shape[2])]
    return [m & (d > 0) for m in maps] + [m & (d < 0) for m in maps] if halves else maps


def from_players(c, masks, d, halves: bool) -> Attribution:
    """C itself, or m = C / (sum of D over the half) on each half and 0 where D = 0."""
    if not halves:
        return Attribution("maps", np.array(c))
    m = np.zeros_like(d)
    for ck, mask in zip(c, masks, strict=True):
        m[mask] = divide(ck, d[mask].sum())
    return Attribution("halves", m)


def ablation(halves: bool = False) -> Callable:
    """C_k = F(A) - F(A, map k <- A0_k)."""

    def multiplier(a, a0, head, grad):
        masks = players(a - a0, halves)
        c = [head(a) - head(np.where(mask, a0, a)) for mask in masks]
        return from_players(c, masks, a - a0, halves)

    return multiplier


def insertion(halves: bool = False) -> Callable:
    """C_k = F(A0, map k <- A_k) - F(A0)."""

    def multiplier(a, a0, head, grad):
        masks = players(a - a0, halves)
        c = [head(np.where(mask, a, a0)) - head(a0) for mask in masks]
        return from_players(c, masks, a - a0, halves)

    return multiplier


def shapley(permutations: Sequence, halves: bool = False) -> Callable:
    """C_k = mean over permutations of F(A0 with maps up to k from A) - F(... up to before k).

    With `halves` a permutation orders 2K players: k the positive half of map k, K + k the other.
    """

    def multiplier(a, a0, head, grad):
        masks = players(a - a0, halves)
        c = np.zeros(len(masks))
        for permutation in permutations:
            now = a0
            for k in permutation:
                then = np.where(masks[k], a, now)
                c[k] += (head(then) - head(now)) / len(permutations)
                now = then
        return from_players(c, masks, a - a0, halves)

    return multiplier


# Reductions


class View(NamedTuple):
    """What a reduction sees. m and e are None where a multiplier gives one number per map."""

    a: np.ndarray
    d: np.ndarray
    m: Any
    e: Any
    c: np.ndarray


def view(attribution: Attribution, a, d) -> View:
    """C = sum m D, or sum e, or as given; m = e / D where D is not 0."""
    kind, value = attribution
    if kind == "maps":
        return View(a, d, None, None, value)
    if kind == "elements":
        return View(a, d, divide(value, d), value, value.sum((0, 1)))
    return View(a, d, value, value * d, (value * d).sum((0, 1)))


def over_maps(v: View, fmi) -> tuple:
    """FMI_k, 0 for a map that does not change, and the terms FMI_k D."""
    fmi = np.where(np.abs(v.d).sum((0, 1)) > 0, fmi, 0.0)
    return fmi, fmi * v.d


def mean(v: View) -> tuple:
    """FMI_k = mean_ij m."""
    return over_maps(v, v.m.mean((0, 1)))


def ratio(v: View) -> tuple:
    """FMI_k = C_k / S_k, with C_k = sum m D where there is an m."""
    c = v.c if v.m is None else (v.m * v.d).sum((0, 1))
    return over_maps(v, divide(c, v.d.sum((0, 1))))


def absmean(v: View) -> tuple:
    """FMI_k = sum m |D| / sum |D|."""
    return over_maps(v, divide((v.m * np.abs(v.d)).sum((0, 1)), np.abs(v.d).sum((0, 1))))


def signed(v: View) -> tuple:
    """FMI+- = sum m D+- / sum D+-; M = sum_k FMI+ D+ + FMI- D-."""
    up, down = np.maximum(v.d, 0), np.minimum(v.d, 0)
    halves = [divide((v.m * half).sum((0, 1)), half.sum((0, 1))) for half in (up, down)]
    return np.array(halves), halves[0] * up + halves[1] * down


def proportional(v: View) -> tuple:
    """FMI_k = C_k / L_k; M = sum_k FMI_k |D_k|."""
    fmi = divide(v.c, np.abs(v.d).sum((0, 1)))
    return fmi, fmi * np.abs(v.d)


def none(v: View) -> tuple:
    """M = sum_k e. There is no number per map; mean_ij m stands in for it."""
    return over_maps(v, v.m.mean((0, 1)))[0], v.e


def contribution(v: View) -> tuple:
    """M = sum_k C_k A_k."""
    return v.c, v.c * v.a


EVERY = (mean, ratio, absmean, signed, proportional, none, contribution)
FITS = {
    "multiplier": EVERY,
    "elements": EVERY,
    "halves": EVERY[1:],  # the zeros where D = 0 bias the mean
    "maps": (ratio, proportional, contribution),
}


# The engine


def strongly_relevant(a, a0, head, tau: float) -> np.ndarray:
    """r_k = |F(A) - F(A, map k <- A0_k)|; kept where r_k > tau max r."""
    r = np.abs(ablation()(a, a0, head, None).value)
    return r > tau * r.max()


def afmi(a, a0, head, multiplier, reduction=signed, relevance=None, grad=None) -> FMI:
    """D = A - A0, C, FMI, M = sum of the kept maps' terms, and what M leaves of F(A) - F(A0).

    Without `grad` the gradient of `head` is a central difference.
    """
    a, a0 = np.asarray(a, float), np.asarray(a0, float)
    grad = grad or (lambda at: finite_difference(head, at))
    attribution = multiplier(a, a0, head, grad)
    if reduction not in FITS[attribution.kind]:
        names = [f.__name__ for f in FITS[attribution.kind]]
        raise ValueError(f"{reduction.__name__} does not fit {attribution.kind}; {names} do")
    v = view(attribution, a, a - a0)
    fmi, terms = reduction(v)
    every = np.ones(a.shape[2], bool)
    kept = every if relevance is None else strongly_relevant(a, a0, head, relevance)
    m = terms[:, :, kept].sum(2)
    f, f0 = float(head(a)), float(head(a0))
    dropped = 1 - v.c[kept].sum() / (f - f0) if f != f0 else 0.0
    return FMI(m, fmi, v.c, f, f0, f - f0 - m.sum(), kept, dropped)


def over_references(a, a0s, head, *args, **options) -> tuple:
    """Mean map, mean contribution, standard deviation of the maps over references a0s [R,h,w,K]."""
    results = [afmi(a, a0, head, *args, **options) for a0 in a0s]
    maps = np.array([r.map for r in results])
    return maps.mean(0), np.mean([r.contribution for r in results], 0), maps.std(0)
