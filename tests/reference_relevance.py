"""Slow, plain twin of relevance propagation, layer by layer down a list of `reference_layers`.

Written from the formulas in numpy, float64, apart from the library, so that the two can be
compared. Relevance itself travels down here, where the library differentiates with respect to a
gate. A rule is (layer, x, r) -> relevance at the layer's input x, given r at its output; a
composite is (layer, first) -> rule. What starts it and what is made of it: `reference_fg_cam`.
"""

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from reference_layers import (
    Activation,
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Flatten,
    Gate,
    GlobalAvgPool,
    Reflect,
    Residual,
    Tag,
    forward,
    gradient,
    neg,
    norm_slope,
    op,
    pos,
    sdiv,
    split,
    transpose,
    value,
)

EPS = 1e-6
Rule = Callable[..., np.ndarray]  # (layer, x, r) -> r at x


# Rules. eps is a number or a stabiliser z -> z without zeros; 0 is LRP-0.


def stabilise(z, eps=EPS) -> np.ndarray:
    """z + eps sign(z), the sign of 0 being +1."""
    return eps(z) if callable(eps) else z + eps * np.where(z < 0, -1, 1)


def clipped(eps=EPS) -> Callable:
    return lambda z: np.where(z < 0, -1, 1) * np.maximum(abs(z), eps)


def scaled_to_norm(eps=EPS) -> Callable:
    return lambda z: stabilise(z, eps * np.sqrt((z**2).mean()))


def distribute(layer, r, pairs, b, eps) -> np.ndarray:
    """sum x * W^T(r / s(z)), z = sum W x + b, over the `pairs` (x, W)."""
    s = sdiv(r, stabilise(sum(op(layer, x, w) for x, w in pairs) + b, eps))
    return np.sum([x * transpose(layer, s, w, x.shape) for x, w in pairs], 0)


def alike(x, wp, wn):
    """The pairs whose products have the sign of their kernel where x >= 0: see `distribute`."""
    return [(pos(x), wp), (neg(x), wn)]


def epsilon(layer, x, r, eps: Any = EPS, bias=True) -> np.ndarray:
    return distribute(layer, r, [(x, layer.w)], bias * layer.b, eps)


def z_plus(layer, x, r, eps: Any = EPS, bias=True) -> np.ndarray:
    pairs = alike(x, pos(layer.w), neg(layer.w))
    return distribute(layer, r, pairs, bias * pos(layer.b), eps)


def z_plus_double_bias(layer, x, r) -> np.ndarray:
    """The convolution of Relevance-CAM's authors: the signed bias in either copy, so twice."""
    return distribute(layer, r, alike(x, pos(layer.w), neg(layer.w)), 2 * layer.b, 0.0)


def alpha_beta(layer, x, r, alpha=2.0, beta=1.0, eps: Any = EPS, bias=True) -> np.ndarray:
    if min(alpha, beta) < 0 or abs(alpha - beta - 1) > 1e-12:
        raise ValueError(f"alpha - beta must be 1 and both >= 0, not {alpha} and {beta}")
    inhibiting = alike(x, neg(layer.w), pos(layer.w))
    negative = distribute(layer, r, inhibiting, bias * neg(layer.b), eps)
    return alpha * z_plus(layer, x, r, eps, bias) - beta * negative


def gamma(layer, x, r, g=0.25, eps: Any = EPS, bias=True) -> np.ndarray:
    """Generalised to inputs and outputs of either sign; the output that decides keeps its bias."""
    y, w, b = value(layer, x), layer.w, bias * layer.b
    wp, wn, bp, bn = w + g * pos(w), w + g * neg(w), b + g * pos(b), b + g * neg(b)
    exciting = distribute(layer, r * (y > 0), alike(x, wp, wn), bp, eps)
    return exciting + distribute(layer, r * (y < 0), alike(x, wn, wp), bn, eps)


def z_box(layer, x, r, low=-1.0, high=1.0, eps: Any = EPS, bias=True) -> np.ndarray:
    """The bias has no part in it, nor in `flat`."""
    low, high = (np.zeros_like(x) + bound for bound in (low, high))
    pairs = [(x, layer.w), (-low, pos(layer.w)), (-high, neg(layer.w))]
    return distribute(layer, r, pairs, 0.0, eps)


def w_square(layer, x, r, eps: Any = EPS, bias=True) -> np.ndarray:
    return distribute(layer, r, [(np.ones_like(x), layer.w**2)], bias * layer.b**2, eps)


def flat(layer, x, r, eps: Any = EPS, bias=True) -> np.ndarray:
    return distribute(layer, r, [(np.ones_like(x), np.ones_like(layer.w))], 0.0, eps)


def norm(layer, x, r, eps: Any = 0.0) -> np.ndarray:
    """x * gradient(r / y): in proportion, whatever the layer; dropped where y = 0 = eps."""
    return x * gradient(layer, x, sdiv(r, stabilise(value(layer, x), eps)))


def pass_(layer, x, r) -> np.ndarray:
    return r


def alive(layer, x, r) -> np.ndarray:
    """Pass, but what is 0 receives nothing."""
    return np.where(x == 0, 0, r)


# Sums: (operands, r) -> r of each


def proportional(parts, r, eps: Any = 0.0) -> list[np.ndarray]:
    return [x * sdiv(r, stabilise(sum(parts), eps)) for x in parts]


def positive(parts, r) -> list[np.ndarray]:
    return proportional([pos(x) for x in parts], r)


# The walk


def merged(layers) -> list:
    """Every BatchNorm that follows a convolution or dense layer, or their tags, folded into it."""
    out = []
    for layer in layers:
        match layer:
            case Residual():
                layer = Residual(merged(layer.branch), merged(layer.shortcut))
            case Concat():
                layer = Concat([merged(branch) for branch in layer.branches])
        at = max((i for i, a in enumerate(out) if not isinstance(a, Tag)), default=None)
        if isinstance(layer, BatchNorm) and at is not None and isinstance(out[at], Conv | Dense):
            s, host = norm_slope(layer), out[at]
            out[at] = host._replace(w=host.w * s, b=(host.b - layer.mean) * s + layer.shift)
        else:
            out.append(layer)
    return out


def relevance(
    layers, x, r, rule, *, bn="merge", shift=True, add=proportional, at=None
) -> np.ndarray:
    """Relevance at x, or at the tag `at`, of `r` at the output.

    bn "merge" folds BatchNorm; one that has nothing to be folded into then splits in proportion,
    its shift absorbing, or without `shift` passes. bn "rule" leaves all to the composite. "First"
    is what x is fed to, up to layout, mirrored edges and a leading BatchNorm (preprocessing),
    through which relevance passes.
    """
    found: dict[str | None, np.ndarray] = {}

    def through(layer, v, r, first):
        def below(branches, parts):
            pairs = zip(branches, parts, strict=True)
            return np.sum([descend(branch, v, part, first) for branch, part in pairs], 0)

        match layer:
            case Tag():
                found[layer.name] = r
                return r
            case Residual():
                branches = (layer.branch, layer.shortcut)
                return below(branches, add([forward(b, v)[-1] for b in branches], r))
            case Concat():
                return below(layer.branches, split(layer, v, r))
            case Gate():
                return r  # the signal takes all
            case BatchNorm() if first:
                return r
            case BatchNorm() if bn == "merge":
                return norm(layer, v, r) if shift else alive(layer, v, r)
        return rule(layer, first)(layer, v, r)

    def descend(layers, x, r, first):
        neutral = [isinstance(layer, Tag | Flatten | Reflect | BatchNorm) for layer in layers]
        firsts = list(accumulate(neutral, lambda a, b: a and b, initial=first))
        steps = zip(layers, forward(layers, x)[:-1], firsts[:-1], strict=True)
        for layer, v, is_first in reversed(list(steps)):
            r = through(layer, v, r, is_first)
        return r

    if bn not in ("merge", "rule"):
        raise ValueError(f'bn is "merge" or "rule", not {bn!r}')
    layers = merged(layers) if bn == "merge" else layers
    found[None] = descend(layers, np.asarray(x, float), np.asarray(r, float), at is None)
    return found[at]


# Composites. `norm_eps` is zennit's stabiliser on average pools, by default none.


def composite(conv: Rule, dense: Rule, first: dict | None = None, norm_eps: Any = 0.0, other=pass_):
    """`other` is for activations and BatchNorm; `first` maps layer types to rules."""

    def rule(layer, is_first) -> Rule:
        if is_first and first and type(layer) in first:
            return first[type(layer)]
        match layer:
            case Conv():
                return conv
            case Dense():
                return dense
            case AvgPool() | GlobalAvgPool():
                return partial(norm, eps=norm_eps)
            case Activation() | BatchNorm():
                return other
        return gradient

    return rule


def epsilon_plus(norm_eps: Any = 0.0, **o):
    """`o` of all composites: eps=1e-6, bias=True."""
    return composite(partial(z_plus, **o), partial(epsilon, **o), None, norm_eps)


def epsilon_plus_flat(norm_eps: Any = 0.0, **o):
    first = dict.fromkeys((Conv, Dense), partial(flat, **o))
    return composite(partial(z_plus, **o), partial(epsilon, **o), first, norm_eps)


def epsilon_alpha2_beta1(norm_eps: Any = 0.0, **o):
    return composite(partial(alpha_beta, **o), partial(epsilon, **o), None, norm_eps)


def epsilon_alpha2_beta1_flat(norm_eps: Any = 0.0, **o):
    first = dict.fromkeys((Conv, Dense), partial(flat, **o))
    return composite(partial(alpha_beta, **o), partial(epsilon, **o), first, norm_eps)


def epsilon_gamma_box(low, high, g=0.25, norm_eps: Any = 0.0, **o):
    first = {Conv: partial(z_box, low=low, high=high, **o)}
    return composite(partial(gamma, g=g, **o), partial(epsilon, **o), first, norm_eps)


def excitation_backprop(norm_eps: Any = 0.0, **o):
    return composite(partial(z_plus, **o), partial(z_plus, **o), None, norm_eps, gradient)


def epsilon_all(norm_eps: Any = 0.0, **o):
    return composite(partial(epsilon, **o), partial(epsilon, **o), None, norm_eps)


def wsquare_first(norm_eps: Any = 0.0, **o):
    first = {Conv: partial(w_square, **o)}
    return composite(partial(epsilon, **o), partial(epsilon, **o), first, norm_eps)
