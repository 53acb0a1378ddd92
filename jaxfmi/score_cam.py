"""Score-CAM and its kin: feature maps become masks, and the score of the masked image a weight."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxfmi.bilinear import resize
from jaxfmi.explainer import (
    Explainer,
    Layers,
    Score,
    Size,
    activation,
    asked,
    check_key,
    explainer,
    layer_names,
    per_layer,
    resolve_size,
    wide,
)
from jaxfmi.heatmap import divide
from jaxfmi.masks import Masks, activation_masks
from jaxfmi.modules import logit, probability
from jaxfmi.perturbation import scores, under
from jaxfmi.references import Baseline, replacement


class Convention(NamedTuple):
    """What programs of the name Score-CAM differ in."""

    softmax: bool = False  #: weights are a softmax over channels of logits; or probabilities
    first: Literal["enlarge", "scale"] = "enlarge"  #: what a mask does first
    corners: bool = False  #: masks are enlarged with aligned corners
    eps: float = 0.0  #: of the masks' scaling
    relu_at_layer: bool = False  #: rectify at the layer's size, or at the image's


AUTHORS = Convention()
SOFTMAX = Convention(softmax=True, relu_at_layer=True)
NAMED = {
    "authors": AUTHORS,
    "softmax": SOFTMAX,
    "pytorch-grad-cam": SOFTMAX._replace(corners=True, eps=1e-8),
    "torch-cam": SOFTMAX._replace(first="scale"),
}


@explainer
def score_cam(
    score: Score,
    layer: Layers = "auto",
    *,
    convention: Convention | str = "authors",
    baseline: Baseline = 0.0,
    relative: bool = False,
    relu: bool = True,
    size: Size = "input",
    chunk: int | None = 32,
) -> Explainer:
    """Score-CAM (Wang, Wang, Du, Yang, Zhang, Ding, Mardziel and Hu, 2020).

    The weight of a feature map is the score of the image under the map as a mask: enlarged, then
    scaled to [0, 1]. A constant map has weight 0 and costs nothing; the map is that of the
    features themselves, ``relu(sum_k w_k A_k)``, not scaled.

    The paper's text was not available to us. Its authors' code takes probabilities as weights,
    neither subtracts the score of a baseline nor takes a softmax, and rectifies the enlarged map
    (``"authors"``). pytorch-grad-cam and torch-cam take a softmax over channels of logits, which
    makes weights nearly equal where scores are close: the first enlarges with aligned corners, the
    second scales before it enlarges. ``"softmax"`` is their weighting with the authors' masks.
    Under a softmax no baseline's score matters. All but the first rectify at the layer's size.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``: a class probability, or for a softmax a logit;
        ``batched`` gives the right one.
      layer: a tag, several (then the explainer returns a list of maps), or ``"auto"``.
      convention: a name as above, or a ``Convention``.
      baseline: what is shown where a mask is 0, in the units of x: a number, an image, a function.
      relative: subtract the score of the baseline, as the paper does.
      relu: keep the positive part; False for the signed map.
      size: of the heatmap; None for [h, w].
      chunk: masks at a time, one evaluation each.

    Raises:
      ValueError: no such convention.
    """
    how = _convention(convention)
    score = asked(score, logit if how.softmax else probability)

    def weigh(masks: Masks, x, *args):
        y = masked_scores(score, masks.maps, masks.live, how, baseline, chunk, x, *args)
        y = y - wide(score(replacement(baseline, x), *args)) if relative else y
        return _softmax(y, masks.live) if how.softmax else jnp.where(masks.live, y, 0)

    return _mask_cam(weigh, score, layer, how, relu, size)


@explainer
def ss_cam(
    score: Score,
    layer: Layers = "auto",
    *,
    samples: int = 35,
    sigma: float = 2.0,
    relu: bool = True,
    size: Size = "input",
    chunk: int | None = 32,
) -> Explainer:
    """SS-CAM (Wang, Naidu, Michael and Kundu, 2020): Score-CAM with the mean over noisy masks.

    Weights softmax_k mean_n [f(x (m_k + noise)) - f(x)], noise of every pixel, mask and sample
    its own. The paper's text was not available to us; samples and sigma are torch-cam's, whose
    noise is large for masks in [0, 1] and is not clipped.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, a logit.
      layer: a tag, several (then the explainer returns a list of maps), or ``"auto"``.
      samples: noisy masks per channel, one evaluation each.
      sigma: standard deviation of the noise, in units of the mask.
      relu: keep the positive part; False for the signed map.
      size: of the heatmap; None for [h, w].
      chunk: masks at a time.

    Returns:
      An explainer ``(x, *args, key=...) -> heatmap``.

    Raises:
      ValueError: samples below 1; or, when called, no key.
    """

    def vary(key, shape, dtype):
        def noisy(mask, k, n):
            own = jax.random.fold_in(jax.random.fold_in(key, k), n)
            noise = jax.random.normal(own, (mask.size,), dtype)
            return mask + sigma * noise.reshape(shape)

        return noisy

    cam = _varied_cam(vary, samples, score, layer, relu, size, chunk)

    def explain(x, *args, key=None):
        return cam(x, *args, key=check_key(key, "ss_cam"))

    return explain


@explainer
def is_cam(
    score: Score,
    layer: Layers = "auto",
    *,
    steps: int = 10,
    cumulative: bool = False,
    relu: bool = True,
    size: Size = "input",
    chunk: int | None = 32,
) -> Explainer:
    """IS-CAM (Naidu, Ghosh, Maurya, Nayak and Kundu, 2020): Score-CAM with masks that fade in.

    Weights softmax_k mean_t [f(x m_k t / N) - f(x)], t = 1 ... N. The paper's text was not
    available to us.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, a logit.
      layer: a tag, several (then the explainer returns a list of maps), or ``"auto"``.
      steps: N, one evaluation each per channel.
      cumulative: sum the factors t / N up, as torch-cam does (0.1, 0.3, ... 5.5 for N = 10).
      relu: keep the positive part; False for the signed map.
      size: of the heatmap; None for [h, w].
      chunk: masks at a time.

    Raises:
      ValueError: steps below 1.
    """
    factors = jnp.arange(1, steps + 1) / max(steps, 1)
    factors = jnp.cumsum(factors) if cumulative else factors

    def vary(key, shape, dtype):
        return lambda mask, k, t: mask * factors[t].astype(dtype)

    return _varied_cam(vary, steps, score, layer, relu, size, chunk)


def _convention(convention: Convention | str) -> Convention:
    if isinstance(convention, Convention):
        return convention
    if convention not in NAMED:
        raise ValueError(f"no convention {convention!r}; there are {', '.join(NAMED)}")
    return NAMED[convention]


def _mask_cam(weigh: Callable[..., jax.Array], score, layer, how: Convention, relu, size):
    """``relu(sum_k w_k A_k)`` with weights [K] = ``weigh(masks, x, *args)``, at every layer."""

    def explain_layers(x, *args, **options):
        maps = []
        for name in layer_names(score, layer, x, *args):
            a = activation(score, name, x, *args)
            masks = activation_masks(
                a, x.shape[:2], eps=how.eps, first=how.first, corners=how.corners
            )
            raw = (weigh(masks, x, *args, **options)[None, None] * a).sum(-1)
            rectify = jax.nn.relu if relu else lambda m: m
            raw = rectify(raw) if how.relu_at_layer else raw
            maps.append(rectify(resize(raw, resolve_size(size, x))))
        return maps

    return per_layer(explain_layers, layer)


def _varied_cam(vary, variations: int, score, layer, relu, size, chunk) -> Explainer:
    """Score-CAM by softmax of mean gains, of masks ``vary(key, ...)(mask [H, W], k, n)``."""
    if variations < 1:
        raise ValueError(f"expected at least 1 sample or step per channel, got {variations}")
    score = asked(score, logit)

    def weigh(masks: Masks, x, *args, key=None):
        change, show = vary(key, x.shape[:2], masks.maps.dtype), under(x)
        k, n = jnp.indices((len(masks.maps), variations)).reshape(2, -1)

        def masked(item):
            small, k, n = item
            return show(change(resize(small, x.shape[:2]), k, n))

        keep = jnp.repeat(masks.live, variations)
        y = scores(
            lambda image: score(image, *args), [(masked, (masks.maps[k], k, n))], keep, chunk=chunk
        )
        gains = y.reshape(-1, variations).mean(1) - wide(score(x, *args))
        return _softmax(gains, masks.live)

    return _mask_cam(weigh, score, layer, SOFTMAX, relu, size)


def masked_scores(score, maps, keep, how: Convention, baseline, chunk, x, *args) -> jax.Array:
    """The score [K] of the image under each mask; 0 where ``keep`` is False."""
    show = under(x, baseline)

    def masked(small):
        return show(resize(small, x.shape[:2], how.corners))

    return scores(lambda image: score(image, *args), [(masked, maps)], keep, chunk=chunk)


def _softmax(y: jax.Array, live: jax.Array) -> jax.Array:
    """The softmax [K] of those that are live; 0 for the others, and where none is."""
    top = jnp.where(live, y, -jnp.inf).max(initial=jnp.finfo(y.dtype).min)
    shares = jnp.where(live, jnp.exp(jnp.where(live, y, top) - top), 0)
    return divide(shares, shares.sum())
