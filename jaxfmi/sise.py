"""SISE and Ada-SISE: masks from feature maps of all depths, scored, averaged and fused.

In four steps: ``select`` the maps of each layer with positive mean gradient, ``weigh`` each by the
score of the image under it as a mask, ``combine`` the masks of a layer, ``fuse`` the layers. Only
the second costs evaluations, and its table serves every other selection of fewer maps.

SISE: Sattarzadeh, Sudhakar, Lem, Mehryar, Plataniotis, Jang, Kim, Jeong, Lee and Bae, 2021.
Ada-SISE: Sudhakar, Sattarzadeh, Plataniotis, Jang, Jeong and Kim, 2021. Of the papers only parts
were available to us (SISE's equations 6, 7, 9 and 10, the abstracts); there is no code of theirs.
What the parts leave open is taken from teaching code of the same group, or decided here:

* Layers are the inputs of all down-samplings and the last features (``fusion.sise_layers``).
* A map is selected by its mean gradient alpha: alpha > mu max(alpha), strictly. The gradient is
  that of the log-odds, which selects what the gradient of the probability does, and neither
  under- nor overflows.
* Masks are enlarged first and scaled afterwards; a sum is over masks divided by their areas.
* Layers are fused by Otsu's threshold of the deeper map, 256 bins. The text has a binary mask
  (``"hard"``), the code a sigmoid with a rule of its own (``"soft"``).
* A layer without a selected map is absent: its map is 0 and its gate 1.
"""

from collections import OrderedDict
from collections.abc import Callable
from numbers import Real
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxfmi.bilinear import resize
from jaxfmi.explainer import (
    HW,
    Explainer,
    Layers,
    Score,
    activations_and_gradients,
    asked,
    explainer,
    scalar,
)
from jaxfmi.fusion import GATES, best_split, cascade, fused_layers, otsu, split
from jaxfmi.heatmap import divide, unit
from jaxfmi.masks import activation_masks, areas, weighted_sum
from jaxfmi.modules import OF, log_odds
from jaxfmi.perturbation import scores, under
from jaxfmi.references import Baseline

Fusion = Literal["hard", "soft", "simple"]
Link = Callable[[jax.Array], jax.Array] | Literal["auto"] | None
Mu = float | Literal["otsu", "otsu-256"]
AREA = 1e-6  # added to the area of a mask


class SISELayer(NamedTuple):
    """What SISE knows of a layer with K feature maps."""

    heatmap: jax.Array  #: V [H, W] in [0, 1]; 0 where the layer is absent
    threshold: jax.Array  #: [], Otsu's of V
    absent: jax.Array  #: [] bool: no map was selected, or V is constant
    gradients: jax.Array  #: [K], mean over positions
    least: jax.Array  #: [], what gradients / max(gradients) have to exceed
    selected: jax.Array  #: [K] bool
    weights: jax.Array  #: [K], link(score) under each mask; 0 where that was not computed
    masks: jax.Array  #: [K, h, w]; ``bilinear.resize`` gives those of the image's size


class SISE(NamedTuple):
    """A heatmap, and how it came about."""

    heatmap: jax.Array  #: [H, W] in [0, 1]; all 0 where all layers are absent
    raw: jax.Array  #: E [H, W], the fusion before it is scaled; at most the number of layers
    absent: jax.Array  #: [] bool: all layers are
    layers: OrderedDict[str, SISELayer]  #: by tag, shallow to deep: ``jit`` would sort a dict


@explainer
def sise(
    score: Score,
    layers: Layers = "auto",
    *,
    mu: float = 0.0,
    link: Link = "auto",
    select: Score | None = None,
    fusion: Fusion = "hard",
    area: bool = True,
    baseline: Baseline = 0.0,
    eps: float = 1e-6,
    chunk: int | None = 32,
) -> Explainer:
    """SISE (Sattarzadeh et al., 2021): the map [H, W] in [0, 1]; zeros where nothing is selected.

    One forward and one backward pass, and one evaluation for every selected map.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, a log-odds, which ``batched`` gives; with one of
        your own, ``link=jax.nn.sigmoid``.
      layers: tags from shallow to deep; ``"auto"`` as ``sise_layers``.
      mu: how large a mean gradient has to be, as a share of the layer's largest.
      link: what makes the weight of a mask from its score. ``"auto"`` is the sigmoid for a score
        that ``class_score`` made of log-odds, so that weights are probabilities, and for others
        the score itself, as None is always.
      select: whose gradient selects, ``(x, *args) -> scalar``; None for ``score``.
      fusion: ``"hard"``, ``"soft"`` or ``"simple"``, the gate of ``fusion.py``.
      area: divide masks by their area; without it large masks win.
      baseline: what is shown where a mask is 0, in the units of x.
      eps: of the masks' scaling, (u - min) / (max - min + eps).
      chunk: masks at a time.

    Raises:
      ValueError: layers that are not there, or not from shallow to deep; an unknown fusion; a
        ``mu`` outside [0, 1).
    """
    terms = sise_terms(
        score,
        layers,
        mu=mu,
        link=link,
        select=select,
        fusion=fusion,
        area=area,
        baseline=baseline,
        eps=eps,
        chunk=chunk,
    )
    return lambda x, *args: terms(x, *args).heatmap


@explainer
def ada_sise(
    score: Score,
    layers: Layers = "auto",
    *,
    bins: int | None = None,
    link: Link = "auto",
    select: Score | None = None,
    fusion: Fusion = "hard",
    area: bool = True,
    baseline: Baseline = 0.0,
    eps: float = 1e-6,
    chunk: int | None = 32,
) -> Explainer:
    """Ada-SISE (Sudhakar et al., 2021): SISE with a threshold of each layer's own, Otsu's.

    Reconstructed: the paper's abstract names the idea. Of the positive mean gradients, as shares
    of the largest, those above their own Otsu threshold are selected.

    Options are those of ``sise``, but for ``mu``. ``bins`` is None for Otsu's threshold of the
    values themselves, and 256 for that of their bytes, rounded down, as another's code has it; with
    few maps the two differ.

    Raises:
      ValueError: as for ``sise``; or bins that are neither None nor 256.
    """
    if bins not in (None, 256):
        raise ValueError(f"bins is None or 256, got {bins}")
    terms = sise_terms(
        score,
        layers,
        mu="otsu" if bins is None else "otsu-256",
        link=link,
        select=select,
        fusion=fusion,
        area=area,
        baseline=baseline,
        eps=eps,
        chunk=chunk,
    )
    return lambda x, *args: terms(x, *args).heatmap


@explainer
def sise_terms(
    score: Score,
    layers: Layers = "auto",
    *,
    mu: Mu = 0.0,
    link: Link = "auto",
    select: Score | None = None,
    fusion: Fusion = "hard",
    area: bool = True,
    baseline: Baseline = 0.0,
    eps: float = 1e-6,
    chunk: int | None = 32,
) -> Callable[..., SISE]:
    """SISE with all that led to it: ``(x, *args) -> SISE``.

    Options are those of ``sise``; ``mu`` may also be ``"otsu"`` or ``"otsu-256"``, the thresholds
    of ``ada_sise``.
    """
    _check(mu, fusion)
    score = asked(score, log_odds)
    select = scalar(select) if select else score
    link = _link(score, link)

    def explain(x, *args) -> SISE:
        names = fused_layers(score, layers, x, *args)
        values, gradients = activations_and_gradients(select, names, x, *args)
        alphas = [g.mean(HW) for g in gradients]
        chosen = [_selection(alpha, mu)[1] for alpha in alphas]
        masks = [activation_masks(a, x.shape[:2], eps=eps) for a in values]
        show = under(x, baseline)

        def masked(small):
            return show(resize(small, x.shape[:2]))

        scored = jnp.concatenate([c & m.live for c, m in zip(chosen, masks, strict=True)])
        y = scores(
            lambda image: score(image, *args),
            [(masked, m.maps) for m in masks],
            scored,
            chunk=chunk,
        )
        weights = jnp.where(scored, link(y), 0)
        ends = [sum(len(m.live) for m in masks[: i + 1]) for i in range(len(masks) - 1)]
        rows = zip(names, alphas, masks, jnp.split(weights, ends), strict=True)
        table = {name: (alpha, m.maps, w) for name, alpha, m, w in rows}
        return _combine(table, x.shape[:2], mu, fusion, area)

    return explain


def reselect(terms: SISE, *, mu: Mu = 0.0, fusion: Fusion = "hard", area: bool = True) -> SISE:
    """Another selection, fusion or area from scores that are there: no evaluation at all.

    Args:
      terms: of one image, selected with a ``mu`` that is not larger, such as 0.
      mu: a share, ``"otsu"`` (Ada-SISE) or ``"otsu-256"``.
      fusion: as for ``sise``.
      area: as for ``sise``.

    Raises:
      ValueError: the selection has maps without a score (outside of ``jit``); or as for ``sise``.
    """
    _check(mu, fusion)
    table = {n: (layer.gradients, layer.masks, layer.weights) for n, layer in terms.layers.items()}
    found = _combine(table, terms.heatmap.shape, mu, fusion, area)
    for name, layer in found.layers.items():
        missing = layer.selected & ~terms.layers[name].selected
        if not isinstance(missing, Tracer) and missing.any():
            raise ValueError(
                f"{missing.sum()} maps of {name!r} that {mu=} selects were never scored; make the "
                "terms with a smaller mu, such as 0"
            )
    return found


def _check(mu: Mu, fusion: str) -> None:
    if fusion not in GATES:
        raise ValueError(f"no fusion {fusion!r}; there are {', '.join(GATES)}")
    if mu not in ("otsu", "otsu-256") and not (isinstance(mu, Real) and 0 <= mu < 1):
        raise ValueError(f"mu is a share in [0, 1), 'otsu' or 'otsu-256'; got {mu!r}")


def _link(score: Score, link: Link) -> Callable[[jax.Array], jax.Array]:
    if callable(link):
        return link
    if link not in ("auto", None):
        raise ValueError(f"link is a function of scores, 'auto' or None; got {link!r}")
    sure = link == "auto" and getattr(score, OF, None) is log_odds
    return jax.nn.sigmoid if sure else lambda y: y


def _selection(alpha: jax.Array, mu: Mu) -> tuple[jax.Array, jax.Array]:
    """What alpha / max(alpha) has to exceed, and which of [K] do (Eq 7)."""
    largest = jnp.maximum(alpha.max(), 0)
    if not isinstance(mu, str):
        return jnp.asarray(mu, alpha.dtype), (alpha > 0) & (alpha > mu * largest)
    z = jax.nn.relu(divide(alpha, largest))
    if mu == "otsu":
        least = jnp.maximum(best_split(z, z > 0), 0)
    else:
        counts = jnp.zeros(256, int).at[(255 * z).astype(int)].add(z > 0)
        least = jnp.maximum(split(counts) - 1, 0) / 255
    return least, (alpha > 0) & (z > least)


def _combine(table, size, mu: Mu, fusion: Fusion, area: bool) -> SISE:
    """Select, sum up and fuse from ``{name: (gradients, masks, weights)}``."""
    layers: OrderedDict[str, SISELayer] = OrderedDict()
    for name, (alpha, masks, weights) in table.items():
        least, selected = _selection(alpha, mu)
        share = 1 / (areas(masks, size) + AREA) if area else 1.0
        total = weighted_sum(masks, jnp.where(selected, weights * share, 0), size)
        absent = ~selected.any() | (total.max() == total.min())
        v = jnp.where(absent, 0, unit(total))
        layers[name] = SISELayer(v, otsu(v), absent, alpha, least, selected, weights, masks)
    raw = cascade(
        [layer.heatmap for layer in layers.values()],
        [
            jnp.where(layer.absent, 1, GATES[fusion](layer.heatmap, layer.threshold))
            for layer in layers.values()
        ],
    )
    absent = jnp.stack([layer.absent for layer in layers.values()]).all()
    return SISE(unit(raw), raw, absent, layers)
