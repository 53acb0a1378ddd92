"""A-FMI: feature map importance, on the difference from a reference.

Zhang, Wang, Fang, Shi, Chua and Chen, "A-FMI: Learning Attributions from Deep Networks via Feature
Map Importance", 2021 (arXiv 2104.05527). Neither its full text nor code was available to us: what
is here is A-FMI-style, **reconstructed from the abstract**, as one engine of four parts:

1. the target: the score F, a logit rather than a probability, which saturates itself;
2. a reference, which gives D = A - A0 at the layer (``references.py``);
3. a multiplier m with sum of m D near F(A) - F(A0) (``multipliers.py``);
4. a reduction of m to one importance per feature map (``reductions.py``), M = sum_k FMI_k D_k.

It contains Grad-CAM (``gradient``, ``mean``, no activation), HiResCAM (``gradient``, ``none``),
layer integrated gradients (``path``, ``none``), DeepLIFT at a layer (``rescale``, ``none``),
LIFT-CAM (``rescale``, ``contribution``) and Ablation-CAM (``ablation``). Where the layer is
followed by average pooling and one dense layer, all sensible settings give one map; elsewhere the
choice matters much. The default, ``path`` and ``signed``, is complete for every head and located
objects best in our trials; no number of the paper is claimed for it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxfmi import multipliers, reductions, references, taps
from jaxfmi.bilinear import resize
from jaxfmi.explainer import (
    HW,
    Explainer,
    Score,
    Size,
    activation,
    check_key,
    explainer,
    head,
    one_layer,
    resolve_size,
)
from jaxfmi.heatmap import divide
from jaxfmi.multipliers import Multiplied, Multiplier, View, map_drops
from jaxfmi.reductions import Reduction
from jaxfmi.references import AtLayer, Random, Reference


class FMI(NamedTuple):
    """All that A-FMI finds for one image. Over several references, the means."""

    heatmap: jax.Array  #: [H, W], ``map`` resized; signed, not scaled
    map: jax.Array  #: [h, w]; what completeness is about
    fmi: jax.Array  #: [K], importance per unit of activation; [2, K] for ``signed``
    contribution: jax.Array  #: [K], in units of the score
    score: jax.Array  #: scalar, of the image
    reference_score: jax.Array  #: scalar, head(a0)
    residual: jax.Array  #: scalar, score - reference_score - sum(map)
    leak: jax.Array  #: scalar, head(a0) - score(x0): what goes around the layer
    kept: jax.Array  #: [K] bool, the strongly relevant maps (for every reference)
    dropped: jax.Array  #: scalar, the share of the change that the kept maps' contributions miss
    spread: jax.Array  #: [h, w], standard deviation of the map over references; 0 for one


@explainer
def afmi(
    score: Score,
    layer: str = "auto",
    *,
    reference: Reference = "fill",
    multiplier: Multiplier | str = "path",
    reduce: Reduction | str = "signed",
    relevance: float | None = None,
    size: Size = "input",
    chunk: int | None = None,
    allow_bypass: bool = False,
) -> Explainer:
    """A-FMI's map alone: the ``heatmap`` of ``afmi_terms``, which has the same arguments."""
    terms = afmi_terms(
        score,
        layer,
        reference=reference,
        multiplier=multiplier,
        reduce=reduce,
        relevance=relevance,
        size=size,
        chunk=chunk,
        allow_bypass=allow_bypass,
    )
    return lambda x, *args, key=None: terms(x, *args, key=key).heatmap


@explainer
def afmi_terms(
    score: Score,
    layer: str = "auto",
    *,
    reference: Reference = "fill",
    multiplier: Multiplier | str = "path",
    reduce: Reduction | str = "signed",
    relevance: float | None = None,
    size: Size = "input",
    chunk: int | None = None,
    allow_bypass: bool = False,
) -> Explainer:
    """A-FMI with all of its terms, the residual of completeness among them.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, usually a class logit.
      layer: one tag, or ``"auto"``, the last spatial activation.
      reference: see ``references.py``; in the units of x. The default is 0 everywhere, the mean
        colour of a normalised image; ``references.black(mean, std)`` is black.
      multiplier: see ``multipliers.py``.
      reduce: see ``reductions.py``.
      relevance: keep only the strongly relevant maps, those with
        ``|F(A) - F(A with map k from A0)| > relevance * max over k``; None keeps all. Our reading
        of the abstract; it breaks completeness, and ``dropped`` says by how much.
      size: of the heatmap; None for [h, w].
      chunk: evaluations of the head at a time; None for all at once.
      allow_bypass: explain a layer although something of the image reaches the score around it.

    Names (``"path"``, ``"signed"``, ``"blur"``, ...) stand for functions with their defaults.

    Returns:
      ``(x, *args[, key]) -> FMI``. The key is for random references and multipliers.

    Raises:
      ValueError: at trace time: the layer is not there, is not [h, w, K], or is bypassed; the
        reference has another shape; multiplier and reduction do not fit; a random option is
        without a key; a name is not known.
    """
    multiply: Multiplier = named("multiplier", multiplier, multipliers.NAMED, multipliers.__name__)
    reduction: Reduction = named("reduction", reduce, reductions.NAMED, reductions.__name__)
    reference = named("reference", reference, references.NAMED, references.__name__)

    def explain(x, *args, key=None):
        name = one_layer(score, layer, x, *args)
        a, rest = activation(score, name, x, *args), head(score, name, x, *args)
        if not allow_bypass and taps.depends(score, x, *args, cut=[name]):
            raise ValueError(
                f"the score depends on the image by a way around layer {name!r}, so that a map "
                "at this layer is not complete; choose the block's output, or allow_bypass=True"
            )
        draw_key, multiplier_key = (None, None) if key is None else jax.random.split(key)

        def stem(x):
            return activation(score, name, x, *args)

        def one(x0, a0):
            a0 = stem(x0) if a0 is None else a0
            view = View(a, a0, rest, name, x, x0, stem, multiplier_key, chunk)
            terms = _terms(view, multiply, reduction, relevance)
            leak = 0.0 if x0 is None else terms.reference_score - score(x0, *args)
            return terms._replace(leak=jnp.asarray(leak, a.dtype))

        terms = _over_references(one, reference, x, a, draw_key)
        return terms._replace(heatmap=resize(terms.map, resolve_size(size, x)))

    return explain


def _terms(view: View, multiply: Multiplier, reduction: Reduction, relevance) -> FMI:
    """The engine, for one reference."""
    a, d = view.a, view.a - view.a0
    f, f0 = view.head(a).astype(a.dtype), view.head(view.a0).astype(a.dtype)
    multiplied = multiply(view)
    if not isinstance(multiplied, Multiplied):
        raise ValueError(
            f"a multiplier gives one of {Multiplied}, this one a {type(multiplied).__name__}; "
            "those of jaxfmi.multipliers are made by a call, such as path()"
        )
    fmi, parts = reduction(multiplied, d, a)
    each = reductions.contributions(multiplied, d)
    kept = jnp.ones((1, 1, a.shape[-1]), bool)
    if relevance is not None:
        drops = jnp.abs(map_drops(a, view.a0, view.head, view.chunk))
        kept = (drops > relevance * drops.max()).reshape(kept.shape)
    m = reductions.heatmap(parts, kept)
    return FMI(
        heatmap=m,
        map=m,
        fmi=fmi.squeeze(HW),
        contribution=each.squeeze(HW),
        score=f,
        reference_score=f0,
        residual=f - f0 - m.sum(),
        leak=jnp.zeros((), a.dtype),
        kept=kept.squeeze(HW),
        dropped=divide(f - f0 - jnp.where(kept, each, 0).sum(), f - f0),
        spread=jnp.zeros_like(m),
    )


def _over_references(one, reference, x, a, key) -> FMI:
    """``one(x0, a0)`` for the reference, or the mean over several of them."""
    if isinstance(reference, AtLayer):
        a0 = _shaped(reference.make(a), a, "activation")
        return one(None, a0) if a0.ndim == a.ndim else _mean(jax.vmap(lambda r: one(None, r))(a0))
    if isinstance(reference, Random):
        x0 = reference.draw(check_key(key, "this reference"), x)
    else:
        x0 = reference(x) if callable(reference) else jnp.asarray(reference, x.dtype)
    x0 = _shaped(x0, x, "image")
    return one(x0, None) if x0.ndim == x.ndim else _mean(jax.vmap(lambda r: one(r, None))(x0))


def _mean(each: FMI) -> FMI:
    means = FMI(*(jnp.mean(v, 0) for v in each))
    return means._replace(kept=each.kept.all(0), spread=each.map.std(0))


def _shaped(reference, like: jax.Array, what: str) -> jax.Array:
    """Broadcast a reference to the shape it is compared with, or to [R, *shape]."""
    shape = (*reference.shape[: max(reference.ndim - like.ndim, 0)], *like.shape)
    if reference.ndim <= like.ndim + 1:
        try:
            return jnp.broadcast_to(reference, shape)
        except ValueError:
            pass
    raise ValueError(
        f"the reference {what} has shape {reference.shape}; expected what broadcasts to "
        f"{like.shape}, or several of them {('R', *like.shape)}"
    )


def named(what: str, value: Any, names: Mapping[str, Any], made_by: str) -> Any:
    """Resolve a name to the function it stands for.

    Raises:
      ValueError: there is no such name; says which there are, and which module makes others.
    """
    if not isinstance(value, str):
        return value
    if value not in names:
        hint = taps.suggestion(value, names)
        raise ValueError(
            f"no {what} is called {value!r}{hint}; there are {', '.join(names)}, and what "
            f"the functions of {made_by} make"
        )
    return names[value]
