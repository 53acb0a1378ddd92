"""Layer-wise relevance propagation, and its kin: one mechanism, other starts.

A score is handed back to the pixels, or to a layer, in proportion to what each input contributed.
What "contributed" means is the rule of a layer (``rules.py``); a composite chooses the rules; what
is propagated is the start: the score of a class (``lrp``), one class against the others (``clrp``,
``sglrp``), a contrast that weighs feature maps (``relevance_cam``).

Relevance is the derivative to a gate on the input (``relevance.py``), so that any traced network
will do, and a start is a multiplier at the logits. What a score does with the logits counts with
its own gradient: explain a logit, unless that is meant. A map of attention (tagged so, or any
sigmoid) is a gate: what it multiplies takes all relevance, and how it was made none. Networks of
lower precision are run in float32 from the input, or the layer, on. The papers'
texts were not available to us; rules and composites meet zennit's numbers, starts those of the
authors' repositories.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfmi import taps
from jaxfmi.bilinear import resize
from jaxfmi.cam import finish
from jaxfmi.explainer import (
    HW,
    LOGITS,
    Explainer,
    Layers,
    Score,
    Size,
    explainer,
    layer_names,
    per_layer,
    resolve_size,
    spatial,
    wide,
)
from jaxfmi.gradient import Reduce, channel_sum
from jaxfmi.heatmap import divide
from jaxfmi.pending import SPLITS, Norm, Settings, Split, check_reading
from jaxfmi.relevance import INPUT, transport
from jaxfmi.rules import NAMED, Composite
from jaxfmi.walk import ATTENTION

Start = Callable[[jax.Array, jax.Array], jax.Array]
"""``(logits [N], label) -> relevance [N]`` that is handed back."""


class LRP(NamedTuple):
    """A heatmap, and whether it accounts for the score."""

    heatmap: jax.Array  #: [H, W], the relevance summed over channels
    relevance: jax.Array  #: at the place, [H, W, C] of the pixels or [h, w, K] of a layer
    score: jax.Array  #: [], what was handed back
    lost: jax.Array  #: [], the score less the sum of relevance: what biases and small numbers took


@explainer
def lrp(
    score: Score,
    composite: Composite | str = "epsilon_plus_flat",
    *,
    at: str = INPUT,
    norm: Norm = "merge",
    bias: bool = True,
    split: Split = "proportional",
    reduce: Reduce = channel_sum,
    size: Size = "input",
) -> Explainer:
    """LRP (Bach, Binder, Montavon, Klauschen, Müller and Samek, 2015), signed.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, a logit.
      composite: which layer has which rule: a function of ``rules.py`` or of your own, or a name.
      at: ``"input"`` for the pixels, or a tag for the relevance of a layer.
      norm: normalisation by constants behind a layer: ``"merge"`` takes it as part of the layer,
        ``"pass"`` hands relevance through unchanged, ``"gradient"`` multiplies by its scale.
        Elsewhere a scale has its own gradient, and a shift hands relevance on, but with
        ``"merge"`` and ``bias`` absorbs as a bias does.
      bias: give biases their share in the denominators of rules, which is lost to the pixels; with
        ``"merge"`` also what is added apart from any layer, by normalisation before one.
      split: at sums of two branches, ``"proportional"`` to their values, or to the ``"positive"``
        part of them only.
      reduce: [H, W, C] -> [H, W].
      size: of the heatmap; None for the resolution of ``at``.

    Raises:
      ValueError: an unknown option; when called, an operation that has no rule, by its name and
        where it is, a tag that is not there, or one that the score bypasses.
    """
    terms = lrp_terms(score, composite, at=at, norm=norm, bias=bias, split=split)

    def explain(x, *args):
        return resize(reduce(terms(x, *args).relevance), resolve_size(size, x))

    return explain


@explainer
def lrp_terms(
    score: Score,
    composite: Composite | str = "epsilon_plus_flat",
    *,
    at: str = INPUT,
    norm: Norm = "merge",
    bias: bool = True,
    split: Split = "proportional",
) -> Callable[..., LRP]:
    """LRP with what it lost: ``(x, *args) -> LRP``; options are those of ``lrp``."""
    settings = _settings(composite, norm, bias, split)

    def explain(x, *args) -> LRP:
        check_place(score, at, x, *args)
        y, pull = transport(lambda x: score(x, *args), x, [at], settings)
        relevance = spatial(at, pull(jnp.ones_like(y))[at])
        total = relevance.sum()
        return LRP(relevance.sum(-1), relevance, wide(y), wide(y) - total)

    return explain


@explainer
def excitation_backprop(
    score: Score, *, at: str = INPUT, reduce: Reduce = channel_sum, size: Size = "input"
) -> Explainer:
    """Excitation backpropagation (Zhang, Lin, Brandt, Shen and Sclaroff, 2016): z+ in all layers.

    Without biases; the marginal winning probability times the score. The contrastive form is not
    offered. Options are those of ``lrp``.
    """
    return lrp(score, "z_plus", at=at, bias=False, reduce=reduce, size=size)


@explainer
def clrp(
    score: Score,
    composite: Composite | str = "deep_taylor",
    *,
    at: str = INPUT,
    own: bool = False,
    relu: bool = False,
    reduce: Reduce = channel_sum,
    size: Size = "input",
) -> Explainer:
    """Contrastive LRP (Gu, Yang and Tresp, 2018): the class's relevance less that of the others.

    The dual starts with the class's logit, spread evenly over the other classes; its map is scaled
    to the sum of the class's before it is subtracted (the form that SGLRP's repository compares
    with). ``own=True`` is Gu's script: every other class starts with its own absolute logit, and
    each map is divided by its sum. CLRP2, which turns the weights of the last layer, is not
    offered. Layers are without biases, first layers have z^B with the image's extremes.

    Args:
      score: of ``class_score``, or given by ``batched``; its arguments are ``(x, label)``.
      composite: as for ``lrp``.
      at: as for ``lrp``.
      own: as above.
      relu: keep the positive part.
      reduce: [H, W, C] -> [H, W].
      size: of the heatmap.

    Raises:
      ValueError: a score whose logits are not known; or as for ``lrp``.
    """

    def starts(z, label):
        target = jnp.arange(len(z)) == label
        if own:
            return jnp.where(target, jnp.abs(z), 0), jnp.where(target, 0, jnp.abs(z))
        return jnp.where(target, z, 0), jnp.where(target, 0, z[label] / (len(z) - 1))

    def contrast(first, second):
        sums = first.sum(), second.sum()
        if own:
            return divide(first, sums[0]) - divide(second, sums[1])
        return first - second * divide(*sums)

    return _contrastive(score, composite, starts, contrast, at, relu, reduce, size)


@explainer
def sglrp(
    score: Score,
    composite: Composite | str = "deep_taylor",
    *,
    at: str = INPUT,
    matched: bool = False,
    relu: bool = False,
    reduce: Reduce = channel_sum,
    size: Size = "input",
) -> Explainer:
    """SGLRP (Iwana, Kuroki and Uchida, 2019): LRP that starts with the softmax's gradient.

    The start is y_t (1 - y_t) at the class and -y_t y_n at all others, which sums to 0. With
    ``matched`` both parts run apart and the second is scaled to the sum of the first, as in the
    authors' repository. Other options are those of ``clrp``.
    """

    def starts(z, label):
        y = jax.nn.softmax(z)
        target = jnp.arange(len(z)) == label
        return jnp.where(target, y * (1 - y), 0), jnp.where(target, 0, y[label] * y)

    def contrast(first, second):
        return first - second * (divide(first.sum(), second.sum()) if matched else 1.0)

    return _contrastive(score, composite, starts, contrast, at, relu, reduce, size)


@explainer
def relevance_cam(
    score: Score,
    layer: Layers = "auto",
    *,
    composite: Composite | str = "z_plus",
    relu: bool = False,
    size: Size = "input",
) -> Explainer:
    """Relevance-CAM (Lee, Kim, Park, Seo and Hwang, 2021): maps weighed by their mean relevance.

    The start is 1 at the class and -1 / N at the others; z+ without biases down to the layer. The
    map is sum_k mean(R_k) A_k, signed. The authors' code adds the bias to both halves of z+ and
    squares the variance of normalisation, slips that are not repeated.

    Args:
      score: of ``class_score``, or given by ``batched``; its arguments are ``(x, label)``.
      layer: a tag, several (from one pass), or ``"auto"``.
      composite: as for ``lrp``.
      relu: keep the positive part.
      size: of the heatmap; None for [h, w].

    Raises:
      ValueError: a score whose logits are not known; or as for ``lrp``.
    """
    settings = _settings(composite, bias=False)

    def explain_layers(x, label):
        f, names = logits(score), layer_names(score, layer, x, label)
        for name in names:
            check_place(f, name, x)
        values = taps.capture(f, *names)(x)[1]
        z, pull = transport(f, x, names, settings)
        start = jnp.where(jnp.arange(len(z)) == label, 1.0, -1 / len(z))
        found = pull(divide(start, wide(z)).astype(z.dtype))
        maps = []
        for name in names:
            a, r = spatial(name, values[name]), spatial(name, found[name])
            maps.append(finish((r.mean(HW, keepdims=True) * a).sum(-1), relu, size, x))
        return maps

    return per_layer(explain_layers, layer)


def logits(score: Score) -> Callable[[jax.Array], jax.Array]:
    """All logits [N] as a function of the image, of a score that ``class_score`` made.

    Raises:
      ValueError: another score.
    """
    if not hasattr(score, LOGITS):
        raise ValueError(
            "this method sets a class against the others and needs all logits: make the score "
            "with jaxfmi.class_score(model)"
        )
    return getattr(score, LOGITS)


def check_place(score: Score, at: str, x, *args, upto: str = "the score") -> None:
    """Raise a ValueError where relevance bypasses the tag ``at`` on its way from ``score``.

    None goes to what an attention was made of, which may therefore bypass it.
    """
    if not isinstance(at, str):
        raise ValueError(f"at is 'input' or one tag, got {at!r}")
    if at == INPUT:
        return
    jax.eval_shape(taps.capture(score, at), x, *args)  # or an error that says what tags there are
    if taps.depends(score, x, *args, cut=[at, ATTENTION]):
        raise ValueError(
            f"{upto} depends on the image by ways that bypass {at!r}, so that relevance there is "
            "not all of it; choose a place that everything passes through"
        )


def _settings(
    composite: Composite | str, norm: Norm = "merge", bias: bool = True, split: Split = SPLITS[0]
) -> Settings:
    check_reading(norm, split)
    if isinstance(composite, str):
        if composite not in NAMED:
            raise ValueError(f"no composite {composite!r}; there are {', '.join(NAMED)}")
        composite = NAMED[composite]
    return Settings(composite, norm, bias, split)


def _contrastive(score, composite, starts, contrast, at, relu, reduce, size) -> Explainer:
    """A contrast of two relevances, of two starts through one network."""
    settings = _settings(composite, bias=False)

    def explain(x, label):
        f = logits(score)
        check_place(f, at, x)
        z, pull = transport(f, x, [at], settings)
        both = [divide(s, wide(z)).astype(z.dtype) for s in starts(wide(z), label)]
        first, second = jax.vmap(pull)(jnp.stack(both))[at]
        heatmap = reduce(spatial(at, contrast(first, second)))
        return resize(jax.nn.relu(heatmap) if relu else heatmap, resolve_size(size, x))

    return explain
