"""One query against many embeddings, and the embeddings of many images.

Maps on the query need the partners' embeddings only, E numbers each, so that a gallery is embedded
once and kept. Maps on the gallery's side: ``jax.vmap(fam(embed), (0, None))(found, embed(query))``.
"""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxfmi import similarities
from jaxfmi.afmi import named
from jaxfmi.chunks import chunk_map
from jaxfmi.embeddings import Embed, comparer, vector
from jaxfmi.explainer import Explainer, check_finite
from jaxfmi.similarities import Similarity, cosine
from jaxfmi.similarity import fam


class Gallery(NamedTuple):
    """The best of a gallery for one query, best first."""

    heatmaps: jax.Array  #: [k, H, W], on the query
    scores: jax.Array  #: [k]
    order: jax.Array  #: [k], places in the gallery


@comparer
def gallery(
    embed: Embed,
    layer: str = "auto",
    *,
    top: int = 10,
    similarity: Similarity | str = cosine,
    chunk: int | None = None,
    **options: Any,
) -> Explainer:
    """Rank a gallery of embeddings for a query, and explain the best of it on the query.

    The network's stem runs on the query alone and, compiled, once.

    Args:
      embed: as for ``fam_terms``.
      layer: likewise.
      top: how many to explain; all, where the gallery has fewer.
      similarity: as for ``fam_terms``; for ``margin`` the gallery is of pairs.
      chunk: partners at a time; None for all.
      **options: as for ``fam_terms``.

    Returns:
      ``(x [H, W, C], partners [S, E] or [S, 2, E]) -> Gallery``.

    Raises:
      ValueError: ``top`` is below 1, or the gallery is empty, has another rank or size, or (where
        values are known) an embedding that is zero, whose cosine is not defined.
    """
    if top < 1:
        raise ValueError(f"top is how many partners to explain, at least 1; got {top}")
    explain_one = fam(embed, layer, similarity=similarity, **options)
    chosen = named("similarity", similarity, similarities.NAMED, similarities.__name__)

    def explain(x, partners):
        partners, q = _check_gallery(partners, chosen), embed(x)
        scores = jax.vmap(lambda s: chosen(q, s)(q))(partners)
        best, order = jax.lax.top_k(scores, min(top, len(partners)))
        heatmaps = chunk_map(lambda s: explain_one(x, s), partners[order], chunk)
        return Gallery(heatmaps, best, order)

    return explain


def embed_images(embed: Embed, images: Iterable[Any], *, chunk: int = 64) -> np.ndarray:
    """Embed a gallery, a chunk of images at a time: neither memory nor compilation grows with it.

    Args:
      embed: ``x [H, W, C] -> [E]``.
      images: [N, H, W, C], memory-mapped if it is large, or an iterator of images of one size,
        which are then never all in memory.
      chunk: images at a time; the last chunk is padded.

    Returns:
      Embeddings [N, E], a NumPy array.

    Raises:
      ValueError: no image, chunk below 1, images of different shapes, not of floats, or with
        values that are NaN or infinite.
    """
    if chunk < 1:
        raise ValueError(f"chunk is a number of images at a time, at least 1; got {chunk}")
    program, found, shape = jax.jit(jax.vmap(vector(embed))), [], None
    stream = iter(images)
    while part := list(itertools.islice(stream, chunk)):
        batch = _check_images(part, shape)
        shape = batch.shape[1:]
        batch = np.concatenate([batch, np.repeat(batch[-1:], chunk - len(part), 0)])
        found.append((program(batch), len(part)))
        if len(found) > 1:  # one chunk is computed while the one before it is fetched
            found[-2] = jax.device_get(found[-2])
    if not found:
        raise ValueError("the gallery is empty: there is no image to embed")
    return np.concatenate([np.asarray(e)[:count] for e, count in found])


def pooled_maps(activations, partners, *, chunk: int | None = 1) -> jax.Array:
    """All queries against all partners, from stored activations, without the network.

    The closed form of FAM's complete map of the cosine where the embedding is the average of the
    layer: (1 / (h w)) sum_k A_k s_k / (|q| |s|). A zero embedding gives zeros.

    Args:
      activations: [Q, h, w, K] of the queries.
      partners: embeddings [S, K].
      chunk: queries at a time.

    Returns:
      Maps [Q, S, h, w], each of which adds up to its cosine.

    Raises:
      ValueError: no partner, or embeddings of another size than the layer has maps.
    """
    activations, partners = jnp.asarray(activations), _check_gallery(partners)
    if activations.ndim != 4 or partners.shape[1:] != activations.shape[3:]:
        raise ValueError(
            "pooled_maps takes activations [Q, h, w, K] and partners [S, K] of as many numbers as "
            f"there are maps; got {activations.shape} and {partners.shape}"
        )

    def one(a):
        weights = jax.vmap(lambda s: similarities.cosine_weights(a.mean((0, 1)), s))(partners)
        return jnp.einsum("hwk,sk->shw", a, weights, precision="highest") / a[..., 0].size

    return chunk_map(one, activations, chunk)


def _check_gallery(partners, similarity: Similarity | None = None) -> jax.Array:
    partners = jnp.asarray(partners)
    if partners.ndim not in (2, 3) or not len(partners):
        what = "is empty" if partners.size == 0 else "has an unexpected rank"
        raise ValueError(
            f"the gallery {what}: expected embeddings [S, E], or pairs of them [S, 2, E]; got "
            f"shape {partners.shape}"
        )
    check_finite(partners, "the gallery")
    if partners.ndim == 2 and not isinstance(partners, Tracer):
        zero = np.flatnonzero(similarities.undefined(similarity, partners))
        if zero.size:
            raise ValueError(
                f"{zero.size} embeddings of the gallery are zero or at the centre, the first at "
                f"{zero[0]}: their cosine is not defined"
            )
    return partners


def _check_images(part: list, shape: tuple[int, ...] | None) -> np.ndarray:
    """Some images of a stream as one array, where they and those before them, if any, are alike."""
    shapes = {np.shape(x) for x in part} | ({shape} if shape else set())
    if len(shapes) > 1 or len(next(iter(shapes))) != 3:
        raise ValueError(f"expected images [H, W, C] of one size; got shapes {sorted(shapes)}")
    batch = np.stack(part)
    if not jnp.issubdtype(batch.dtype, jnp.floating):
        raise ValueError(f"expected float images, got {batch.dtype}; preprocess them")
    check_finite(batch, "the gallery")
    return batch
