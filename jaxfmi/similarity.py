"""FAM: which places of an image make it similar to another.

Models that compare embeddings have no class logit to explain. FAM (Liao, Gao and Zhang, "Feature
Activation Map: Visual Explanation of Deep Learning Models for Image Classification", 2023, arXiv
2307.05017) and its successor SFAM (arXiv 2506.01636, 2025) weigh feature maps by what each channel
contributes to the similarity of two embeddings. Neither full text nor code was available to us:
what is here is FAM-style, **reconstructed from the abstract**, as one setting of A-FMI's engine:
the score is the similarity, the reference no activation, the multiplier the gradient. No number of
the papers is claimed.

On averaged activations and with ``complete``, the map is CAM with the partner's embedding as the
classifier, and adds up to the similarity. **What it shows**: where the similarity sits, which is
mostly where there is something; with another partner it is often nearly the same map. What is
specific to *this* partner is shown by contrast: ``margin`` to another prototype,
``centred_cosine`` from the mean of a corpus. Look at both.

``embed`` is ``x [H, W, C] -> embedding [E]``, with a tag inside. Let it return the raw vector: an
embedding of unit length does not change with the scale of its features, so that the total of its
map is 0 whatever the similarity. ``fam`` warns of it; under ``jit``, look at ``residual``.
"""

import warnings
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer

from jaxfmi import references, similarities, weightings
from jaxfmi.afmi import FMI, afmi_terms, named
from jaxfmi.chunks import chunk_map
from jaxfmi.embeddings import (
    Embed,
    at_partner,
    comparer,
    embedding_of,
    prototype,
    separating_layer,
    support_mask,
    vector,
)
from jaxfmi.explainer import Explainer, Size, check_image
from jaxfmi.heatmap import divide
from jaxfmi.multipliers import Multiplier, path
from jaxfmi.references import Reference
from jaxfmi.similarities import (
    Similarity,
    cosine,
    dot,
    neg_squared_distance,
)
from jaxfmi.weightings import (
    Contribution,
    Normalise,
    Weighting,
    complete,
    contribution,
    inverse,
    share,
)

VANISHED = 1e-3  # a total below this share of the similarity says that scale does not matter


@comparer
def fam(
    embed: Embed,
    layer: str = "auto",
    *,
    similarity: Similarity | str = cosine,
    weighting: Weighting | str = complete,
    normalise: Normalise | str = "l1",
    reference: Reference | None = None,
    multiplier: Multiplier | str | None = None,
    size: Size = "input",
    chunk: int | None = None,
    allow_bypass: bool = False,
) -> Explainer:
    """FAM's map alone: the ``heatmap`` of ``fam_terms``, which has the same arguments."""
    terms = fam_terms(
        embed,
        layer,
        similarity=similarity,
        weighting=weighting,
        normalise=normalise,
        reference=reference,
        multiplier=multiplier,
        size=size,
        chunk=chunk,
        allow_bypass=allow_bypass,
    )
    return lambda x, partner=None, *, key=None: terms(x, partner, key=key).heatmap


@comparer
def fam_terms(
    embed: Embed,
    layer: str = "auto",
    *,
    similarity: Similarity | str = cosine,
    weighting: Weighting | str = complete,
    normalise: Normalise | str = "l1",
    reference: Reference | None = None,
    multiplier: Multiplier | str | None = None,
    size: Size = "input",
    chunk: int | None = None,
    allow_bypass: bool = False,
) -> Explainer:
    """FAM-style maps, reconstructed from the abstract, with all of their terms.

    One image against many partners, one pass through the stem for all of them:
    ``jax.vmap(fam(embed), (None, 0))(x, partners)``; ``gallery`` picks the best.

    Args:
      embed: ``x [H, W, C] -> [E]``; pooling, projection and what else there is are in it.
      layer: one tag, or ``"auto"``, the last spatial activation.
      similarity: see ``similarities.py``; ``"cosine"``, ``"dot"``, ``"margin"``, ...
      weighting: see ``weightings.py``; ``complete`` (ours, the map adds up to the similarity less
        its value at the reference), ``contribution()`` (the literal reading of the abstract), or
        any reduction of A-FMI. ``mean`` is complete only for averaged activations.
      normalise: of ``contribution`` alone: ``"l1"``, ``"sum"``, ``"max"``, ``"none"``, which give
        the same map up to its scale, ``"minmax"``, ``"softmax"``, which do not; or a function.
      reference: see ``references.py``; ``"partner"`` is the partner's embedding everywhere. None
        for ``"partner"`` with a squared distance whose map adds up, else ``"zero_activation"``.
      multiplier: see ``multipliers.py``. The gradient is exact where the embedding is linear, or
        changes in proportion, with the activation; ``path(32)`` for a projection head with biases.
        None for ``path(1)`` with such a distance, where it is exact on averages, else
        ``"gradient"``.
      size: of the heatmap; None for [h, w].
      chunk: evaluations of what follows the layer at a time; None for all at once.
      allow_bypass: explain a layer although something reaches the embedding around it.

    Returns:
      ``(x, partner[, key]) -> FMI``, as of ``afmi_terms``: ``score`` is the similarity,
      ``contribution`` [K] what each channel adds to it, ``reference_score`` what no place does
      (a projection's bias, the margin's constant), ``residual`` what is missing. A partner is an
      embedding [E] of an image or a prototype, a pair [2, E] for ``margin``, or an image
      [H', W', C'] of any size.

    Raises:
      ValueError: at trace time: the embedding is no vector; the partner has another size or an
        unexpected rank; something reaches the embedding around the layer; ``contribution`` has a
        reference; options do not fit, or names are not known. Outside ``jit``: an embedding of
        the cosine is zero (under ``jit`` the map is then 0).
    """
    measure: Similarity = named("similarity", similarity, similarities.NAMED, similarities.__name__)
    weigh: Weighting = named("weighting", weighting, weightings.NAMED, weightings.__name__)
    normalising = named("normalisation", normalise, weightings.NORMALISE, weightings.__name__)
    literal = isinstance(weigh, Contribution)
    far = measure is neg_squared_distance and not literal
    starting = ("partner" if far else "zero_activation") if reference is None else reference
    multiplying = (path(1) if far else "gradient") if multiplier is None else multiplier
    if not literal and normalise != "l1":
        raise ValueError("normalise is for the weighting contribution(); the others are not scaled")
    if literal and not _is_zero(starting):
        raise ValueError(
            "the weighting contribution() has no reference but zero_activation: its map is made "
            "of the activation itself; take weighting=complete"
        )

    def explain(x, partner=None, *, key=None):
        q, s = embed(x), None if partner is None else embedding_of(embed, partner)
        name = separating_layer(embed, layer, x, allow_bypass)
        value, at = measure(q, s), starting
        if isinstance(starting, str) and starting == "partner":
            at = at_partner(s)
        reduce = weigh
        if isinstance(reduce, Contribution):
            shares = getattr(measure, similarities.SHARES, None)
            reduce = weightings.reduction(reduce, normalising, q, s, shares)
        terms = afmi_terms(
            lambda x: value(embed(x)),
            name,
            reference=at,
            multiplier=multiplying,
            reduce=reduce,
            size=size,
            chunk=chunk,
            allow_bypass=True,  # of the score; the embedding is what was checked
        )(x, key=key)
        if weigh in (complete, weightings.NAMED["none"]):
            _warn_of_free_scale(terms)
        return terms

    return explain


@comparer
def sfam(
    embed: Embed,
    layer: str = "auto",
    *,
    similarity: Similarity | str = cosine,
    normalise: Normalise | str = "l1",
    size: Size = "input",
) -> Explainer:
    """SFAM-style map (arXiv 2506.01636, 2025), reconstructed: channel contributions times maps.

    ``fam`` with ``weighting=contribution()``; for ``neg_squared_distance`` with the weight
    ``inverse``, so that larger means more alike. Both readings of the abstract are ours. The map
    does not add up to the similarity.
    """
    measure: Similarity = named("similarity", similarity, similarities.NAMED, similarities.__name__)
    weight = inverse if measure is neg_squared_distance else share
    return fam(
        embed,
        layer,
        similarity=measure,
        weighting=contribution(weight),
        normalise=normalise,
        size=size,
    )


@comparer
def pair(embed: Embed, layer: str = "auto", **options: Any) -> Explainer:
    """Explain both images of a pair, each with the other's embedding as its constant partner.

    Args:
      embed: as for ``fam_terms``.
      layer: likewise.
      **options: likewise.

    Returns:
      ``(x [H, W, C], y [H', W', C]) -> heatmap of x [H, W], of y [H', W'], similarity``. With
      ``complete`` both totals are the similarity, if nothing is owed to biases.
    """
    terms = fam_terms(embed, layer, **options)

    def explain(x, y, *, key=None):
        y = check_image(y)
        there, back = terms(x, embed(y), key=key), terms(y, embed(x), key=key)
        return there.heatmap, back.heatmap, there.score

    return explain


def support_shares(
    embed: Embed, layer: str = "auto", *, chunk: int | None = None, size: Size = "input"
) -> Explainer:
    """What each support, and each place of it, adds to a query's cosine with their prototype.

    M^j = (1 / (K h w)) sum_k A^j_k q_k / (|q| |p|) on averaged activations, p the mean of the K
    supports' embeddings: all maps together add up to cos(q, p).

    Args:
      embed: as for ``fam_terms``.
      layer: likewise.
      chunk: supports at a time; None for all at once.
      size: of the maps.

    Returns:
      ``(query, supports [S, H, W, C], mask=None) -> maps [S, H, W], shares [S]``. The query is an
      image or an embedding; supports that the mask [S] drops have zeros.

    Raises:
      ValueError: no support, or (where values are known) none that the mask keeps, or an embedding
        that is zero.
    """
    embed = vector(embed)
    along = fam(embed, layer, similarity=dot, size=size)

    def explain(query, supports, mask=None):
        q = embedding_of(embed, query)
        supports = jnp.asarray(supports)
        if supports.ndim != 4:
            raise ValueError(f"expected supports [S, H, W, C]; got shape {supports.shape}")
        if not len(supports):
            raise ValueError("the support set is empty: a prototype needs at least one image")
        kept = support_mask(mask, len(supports))
        shots = chunk_map(embed, supports, chunk)
        p = prototype(shots, mask)
        similarities.cosine(q, p)  # raises where one of them is zero
        each = divide(q * similarities.product_scale(cosine)(q, p), kept.sum())

        def one(item):
            support, keep = item
            return along(support, jnp.where(keep, each, 0))

        shares = jnp.where(kept, shots @ each, 0)
        return chunk_map(one, (supports, kept), chunk), shares

    return explain


def _is_zero(reference: Reference) -> bool:
    named_so = isinstance(reference, str) and reference == "zero_activation"
    return named_so or reference is references.zero_activation


def _warn_of_free_scale(terms: FMI) -> None:
    """Say that a map's total is 0 because the similarity does not change with scale."""
    if isinstance(terms.map, Tracer) or isinstance(terms.score, Tracer):
        return
    total, size, score = (
        float(v) for v in (terms.map.sum(), jnp.abs(terms.map).sum(), terms.score)
    )
    if abs(total) < VANISHED * min(abs(score), size):
        warnings.warn(
            f"the map's total is {total:.1e}, the similarity {score:.3g}: it does not change when "
            "the activation is scaled, as where the embedding ends in L2 normalisation, or with "
            "cosine(freeze_norms=False). Let embed return the vector before normalisation",
            stacklevel=4,
        )
