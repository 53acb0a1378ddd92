"""Slow, plain twins of what starts relevance and of what is made of it: CLRP, SGLRP, FG-CAM ...

Written from the formulas in numpy, float64, apart from the library; see `reference_relevance`,
whose layer lists, rules and composites these use. Maps are [h,w], signed.
"""

from functools import partial

import numpy as np
from reference_layers import Activation, BatchNorm, Conv, Dense, Tag, forward, gradients, pos
from reference_relevance import (
    alive,
    merged,
    norm,
    positive,
    proportional,
    relevance,
    z_box,
    z_plus,
)
from reference_sise import softmax


def until(layers, name) -> list:
    """The layers down to a tag, which must not lie inside a branch."""
    names = [layer.name if isinstance(layer, Tag) else None for layer in layers]
    return list(layers[: names.index(name) + 1])


# Starts: logits z [N], class t -> relevance at the logits [N]


def one_class(z, t) -> np.ndarray:
    return z * np.eye(len(z))[t]


def relevance_cam_start(z, t) -> np.ndarray:
    """1 at t, -1/N (not N - 1) elsewhere. Lee et al. 2021."""
    return np.where(np.arange(len(z)) == t, 1, -1 / len(z))


def clrp_starts(z, t) -> tuple[np.ndarray, np.ndarray]:
    """z_t at t, and its dual: z_t / (N - 1) at all others. CLRP1 of the authors of SGLRP."""
    others = np.arange(len(z)) != t
    return one_class(z, t), others * z[t] / (len(z) - 1)


def gu_starts(z, t) -> tuple[np.ndarray, np.ndarray]:
    """|z_t| at t, and its dual: |z_n| at all others, their own. CLRP1 in Gu's script."""
    return abs(one_class(z, t)), abs(z - one_class(z, t))


def sglrp_start(z, t) -> np.ndarray:
    """d y_t / d z_n, y the softmax. Iwana et al. 2019, without the 1e-8 that theirs adds at t."""
    y = softmax(z)
    return y[t] * (np.eye(len(z))[t] - y)


def matched(target, dual) -> np.ndarray:
    """target - dual, scaled to the same sum; the target where the dual sums to 0."""
    total = dual.sum()
    return target - dual * (target.sum() / total if total else 0.0)


def gu_contrast(target, dual) -> np.ndarray:
    """ReLU of the difference of shares, divided by its maximum."""
    difference = pos(target / target.sum() - dual / dual.sum())
    return difference / (difference.max() or 1.0)


def negated(layers) -> list:
    """The last dense layer with its weights negated, for the dual run of CLRP2 (Gu et al. 2018)."""
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, Dense))
    dual = layers[last]._replace(w=-layers[last].w)
    return [*layers[:last], dual, *layers[last + 1 :]]


def relevance_cam(layers, x, t, name, rule, **options) -> np.ndarray:
    """sum_k mean_hw(R_k) A_k at the tag, no ReLU. Lee et al. 2021; `options` of `relevance`."""
    z, a = forward(layers, x)[-1], forward(until(layers, name), x)[-1]
    r = relevance(layers, x, relevance_cam_start(z, t), rule, at=name, **options)
    return a @ r.mean((0, 1))


# FG-CAM: components [h,w,K] at a layer, of which the map would be the sum


def activation_and_gradient(layers, x, t, name) -> tuple[np.ndarray, np.ndarray]:
    """Of logit t, at the tag."""
    a, head = forward(until(layers, name), x)[-1], layers[len(until(layers, name)) :]
    return a, gradients(head, a, np.eye(len(forward(head, a)[-1]))[t])[0]


def grad_cam_components(layers, x, t, name) -> np.ndarray:
    """mean_hw(gradient of logit t) * activation, signed."""
    a, g = activation_and_gradient(layers, x, t, name)
    return g.mean((0, 1)) * a


def hires_components(layers, x, t, name) -> np.ndarray:
    a, g = activation_and_gradient(layers, x, t, name)
    return g * a


def denoise(components, ratio=0.1, restore_mean=False, least=1) -> np.ndarray:
    """The first d = floor(ratio min(K, hw)) singular parts of channels less their spatial mean.

    The reference has least=0: nothing is left of fewer than 10 channels or positions.
    """
    rows = np.nan_to_num(components).reshape(-1, components.shape[-1]).T
    mean = rows.mean(1, keepdims=True)
    u, s, v = np.linalg.svd(rows - mean, full_matrices=False)
    d = max(least, int(ratio * min(rows.shape)))
    low = (u[:, :d] * s[:d]) @ v[:d] + restore_mean * mean
    return low.T.reshape(components.shape)


def improve_resolution(low, high, bias=False):
    """The composite of FG-CAM: no stabiliser, relevance at zeros is dropped."""

    def rule(layer, first):
        match layer:
            case Conv() if first:
                return partial(z_box, low=low, high=high, eps=0.0)
            case Conv() | Dense():
                return partial(z_plus, eps=0.0, bias=bias)
            case Activation() | BatchNorm():
                return alive
        return norm

    return rule


def transport(
    layers, x, components, at=None, *, bounds=None, bn="pass", residual="positive"
) -> np.ndarray:
    """Components at the end of `layers` -> components at the tag `at` or the pixels.

    `bounds` of the pixels are by default the least and greatest value of this image. bn "fold" has
    no bias, "fold_bias" has. What lies on silent units is dropped before it travels.
    """
    low, high = (np.min(x), np.max(x)) if bounds is None else bounds
    folded = {"pass": layers, "fold": merged(layers), "fold_bias": merged(layers)}[bn]
    start = np.where(forward(folded, x)[-1] == 0, 0, components)
    rule = improve_resolution(low, high, bn == "fold_bias")
    add = {"positive": positive, "proportional": proportional}[residual]
    return relevance(folded, x, start, rule, bn="rule", add=add, at=at)


def fg_cam(layers, x, components, at=None, **options) -> np.ndarray:
    """The sum over channels of `transport`. arXiv 2303.09171, where networks have no residuals."""
    return transport(layers, x, components, at, **options).sum(-1)
