"""FG-CAM: a CAM that is carried down to fine resolution, to the pixels.

A CAM is the sum over channels of components [h, w, K]. FG-CAM does not sum them: it hands them down
layer by layer, by the rules of relevance propagation, and sums over channels where it arrives.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxfmi import taps
from jaxfmi.bilinear import resize
from jaxfmi.cam import WEIGHTS, Weigh
from jaxfmi.explainer import (
    Explainer,
    Score,
    Size,
    activation,
    asked,
    explainer,
    head,
    one_layer,
    per_layer,
    resolve_size,
    spatial,
)
from jaxfmi.heatmap import divide
from jaxfmi.lrp import check_place
from jaxfmi.masks import activation_masks
from jaxfmi.metrics.ranking import count
from jaxfmi.modules import probability
from jaxfmi.pending import NORMS, Settings, Split, check_reading
from jaxfmi.relevance import INPUT, transport
from jaxfmi.rules import Bound, every, z_box, z_plus
from jaxfmi.score_cam import AUTHORS, masked_scores

Base = Weigh | str


@explainer
def fg_cam(
    score: Score,
    layer: str = "auto",
    *,
    at: str | Sequence[str] = INPUT,
    base: Base = "grad_cam",
    denoise: float = 0.0,
    restore_mean: bool = False,
    positive: bool = False,
    bounds: tuple[Bound, Bound] = (None, None),
    norm: Literal["pass", "merge"] = "pass",
    bias: bool = False,
    split: Split = "positive",
    size: Size = "input",
    chunk: int | None = 32,
) -> Explainer:
    """FG-CAM (Qiu, Li, Zhang and Liu, 2023): a CAM at the resolution of another layer, signed.

    The components alpha_k A_k are handed down from ``layer`` to ``at`` by z+ without biases, by
    z^B with the image's least and largest value in the first layer, through everything else
    unchanged. At ``layer`` itself the map is the CAM before its ReLU, and without denoising the sum
    stays that of the CAM, but for what is lost where a unit has no positive contribution: it is
    active by its bias alone, or both branches of a sum are negative. A network of ReLU without
    biases loses nothing; MobileNetV2, whose depthwise layers see few inputs, nearly all on the way
    to the pixels (benchmarks/fg_cam_layers), so that only the proportions of its maps mean much.

    The paper's text was not available to us; as the authors' code, which knows VGG only. Ours, for
    other networks: sums of branches are split by their positive parts; an activation that is 0
    receives nothing; where denoising would leave no rank it leaves one.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, a logit; for ``base="score_cam"`` a probability.
      layer: the tag of the components, or ``"auto"``: the last spatial activation.
      at: where the map is: ``"input"`` for the pixels, or a tag; or several, for a list of maps
        from one pass.
      base: what weighs the components: ``"grad_cam"`` or another of the CAM family's, a function
        ``(a, gradient) -> weights``, or ``"score_cam"``, one evaluation per channel.
      denoise: keep this share of the components' rank, the authors' 0.1, at least one; 0 leaves
        the components as they are.
      restore_mean: give denoised channels back their mean over positions, which the authors' code
        takes away.
      positive: rectify the components first.
      bounds: low and high for z^B, as the first layer sees pixels; None for the image's own.
      norm: ``"pass"``, or ``"merge"`` normalisation into the layer before it. The same where all
        scales are positive and biases are left out.
      bias: give biases their share, which the pixels then lose.
      split: at sums of two branches: ``"positive"`` or ``"proportional"``, which is unbounded.
      size: of the heatmap; None for the resolution of ``at``.
      chunk: evaluations at a time, for ``"score_cam"``.

    Raises:
      ValueError: an unknown option; when called, an operation without a rule, or a tag that is not
        there or that the layer bypasses.
    """
    _check(at, base, denoise, bounds, norm, split)
    score = asked(score, probability) if base == "score_cam" else score
    low, high = bounds
    composite = every(z_plus(eps=0.0), first=z_box(low, high, eps=0.0))
    settings = Settings(composite, norm, bias, split)

    def explain_places(x, *args):
        name = one_layer(score, layer, x, *args)
        places = [at] if isinstance(at, str) else list(at)
        below = [place for place in places if place != name]
        a, hand_down = _features(score, name, below, settings, x, *args)
        components = _components(score, name, base, chunk, a, x, *args)
        components = jax.nn.relu(components) if positive else components
        components = denoised(components, denoise, restore_mean) if denoise else components
        found = {name: components} | hand_down(components)
        return [resize(found[p].sum(-1), resolve_size(size, x)) for p in places]

    return per_layer(explain_places, at)


def denoised(components: jax.Array, share: float, restore_mean: bool = False) -> jax.Array:
    """Components [h, w, K] at a share of their rank, each channel without its mean.

    By the eigenvectors of the Gram matrix of positions or of channels, whichever are fewer, which
    is equal to a truncated SVD.
    """
    m = components.reshape(-1, components.shape[-1])
    mean = m.mean(0, keepdims=True)
    m = m - mean
    rank = max(1, count(share, min(m.shape)))
    tall = m.shape[0] > m.shape[1]
    side = m.T if tall else m
    gram = jnp.matmul(side, side.T, precision="highest")
    top = jnp.linalg.eigh(gram)[1][:, -rank:]
    low = jnp.matmul(top, jnp.matmul(top.T, side, precision="highest"), precision="highest")
    low = low.T if tall else low
    return (low + mean if restore_mean else low).reshape(components.shape)


def _features(score, name, places, settings, x, *args):
    """The activation [h, w, K] at a layer, and ``components -> {place: relevance [h, w, K]}``."""
    if not places:
        return activation(score, name, x, *args), lambda components: {}

    def features(x):
        return taps.capture(score, name)(x, *args)[1][name]

    for place in places:
        check_place(features, place, x, upto=f"layer {name!r}")
    out, pull = transport(features, x, places, settings, until=name)
    a = spatial(name, out)

    def hand_down(components):
        multiplier = divide(components, a).reshape(out.shape).astype(out.dtype)
        return {place: spatial(place, r) for place, r in pull(multiplier).items()}

    return a, hand_down


def _components(score, name: str, base: Base, chunk, a, x, *args) -> jax.Array:
    """What the base makes of the activation [h, w, K], before any sum."""
    if base == "score_cam":
        masks = activation_masks(a, x.shape[:2])
        y = masked_scores(score, masks.maps, masks.live, AUTHORS, 0.0, chunk, x, *args)
        return jnp.where(masks.live, y, 0)[None, None] * a
    weigh: Weigh = WEIGHTS[base] if isinstance(base, str) else base
    return weigh(a, jax.grad(head(score, name, x, *args))(a)) * a


def _check(at: Any, base: Base, denoise: float, bounds: Any, norm: str, split: str) -> None:
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ValueError(f"bounds are two, low and high, each a number, an array or None: {bounds}")
    if not at or not all(isinstance(place, str) for place in at):
        raise ValueError(f"at is a tag, 'input', or several of these; got {at!r}")
    if isinstance(base, str) and base not in (*WEIGHTS, "score_cam"):
        raise ValueError(f"no base {base!r}; there are {', '.join(WEIGHTS)}, score_cam")
    if not isinstance(denoise, int | float) or isinstance(denoise, bool) or not 0 <= denoise <= 1:
        raise ValueError(f"denoise is a share of the rank, 0 to 1; got {denoise}")
    check_reading(norm, split, NORMS[:2])
