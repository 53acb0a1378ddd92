"""Relatives of FAM, to hold it against: by places, by gradients, by occlusion, without partner.

Each has FAM's shape: ``method(embed, layer, **options)(x, partner) -> heatmap [H, W]``.
"""

import functools

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxfmi import similarities
from jaxfmi.afmi import named
from jaxfmi.bilinear import resize
from jaxfmi.chunks import chunk_map
from jaxfmi.embeddings import Embed, comparer, embedding_of, separating_layer
from jaxfmi.explainer import Explainer, Size, activation, check_image, head, resolve_size
from jaxfmi.heatmap import divide, unit
from jaxfmi.occlusion import mean_drop, tiling
from jaxfmi.similarities import Similarity, cosine, dot
from jaxfmi.similarity import fam


@comparer
def point_map(
    embed: Embed,
    layer: str = "auto",
    *,
    similarity: Similarity | str = cosine,
    size: Size = "input",
    allow_bypass: bool = False,
) -> Explainer:
    """Which region of the partner explains one point of the image.

    The point's part of the embedding, u = sum_k de/dA_k A_k there, bilinear between places, is
    compared with what each place of the partner adds to its own; summed over all points, it is the
    partner's map. One row of Zhu, Yang and Chen's point-to-point map (2021), unclipped, whose
    whole is ``point_to_point``.

    Args:
      embed: as for ``fam_terms``.
      layer: likewise.
      similarity: ``cosine`` or ``dot``, which are products of parts.
      size: of the map; ``"input"`` is the partner's.
      allow_bypass: as for ``fam_terms``.

    Returns:
      ``(x [H, W, C], y [H', W', C], (row, col)) -> heatmap [H', W']``, the point in pixels of x.

    Raises:
      ValueError: another similarity, or a point outside of the image (where it is known).
    """
    chosen = named("similarity", similarity, similarities.NAMED, similarities.__name__)
    scale = similarities.product_scale(chosen)
    along = fam(
        embed, layer, similarity=dot, weighting="none", size=size, allow_bypass=allow_bypass
    )

    def explain(x, y, point):
        y = check_image(y)
        name = separating_layer(embed, layer, x, allow_bypass)
        a = activation(embed, name, x)
        part = _at_point(point, x.shape[:2], a.shape[:2]).astype(a.dtype)[..., None] * a
        q, u = jax.jvp(head(embed, name, x), (a,), (part,))
        return along(y, u * scale(q, embed(y)))

    return explain


@comparer
def point_to_point(
    embed: Embed,
    layer: str = "auto",
    *,
    similarity: Similarity | str = cosine,
    clip: bool = False,
    chunk: int | None = 64,
    allow_bypass: bool = False,
) -> Explainer:
    """Point-to-point activation (Zhu, Yang and Chen, 2021): every place against every place.

    P[i, j, x, y] = u_ij v_xy / (|q| |s|), u what a place adds to the embedding, sum_k de/dA_k A_k.
    Its total is the similarity, up to biases, and its marginals are both images' maps. The authors
    divide it by its maximum and clip negatives before anything is summed, which breaks that. Their
    paper's text was not available to us, the formula is that of their code, which writes u out for
    each kind of pooling and keeps ties of a maximum unsplit.

    Args:
      embed: as for ``fam_terms``.
      layer: likewise.
      similarity: ``cosine`` or ``dot``.
      clip: as the authors do.
      chunk: numbers of the embedding at a time: each takes a gradient of what follows the layer.
      allow_bypass: as for ``fam_terms``.

    Returns:
      ``(x [H, W, C], y [H', W', C]) -> [h, w, h', w']``: 2401 numbers for two 7x7 maps, but
      0.6 million for 28x28.
    """
    chosen = named("similarity", similarity, similarities.NAMED, similarities.__name__)
    scale = similarities.product_scale(chosen)

    def explain(x, y):
        y = check_image(y)
        u = _places(embed, separating_layer(embed, layer, x, allow_bypass), x, chunk)
        v = _places(embed, separating_layer(embed, layer, y, allow_bypass), y, chunk)
        p = jnp.einsum("ije,xye->ijxy", u, v, precision="highest") * scale(embed(x), embed(y))
        return divide(jax.nn.relu(p), p.max()) if clip else p

    return explain


@comparer
def overall_map(
    embed: Embed,
    layer: str = "auto",
    *,
    similarity: Similarity | str = cosine,
    clip: bool = True,
    size: Size = "input",
    chunk: int | None = 64,
    allow_bypass: bool = False,
) -> Explainer:
    """Overall activation (Zhu, Yang and Chen, 2021): ``point_to_point`` summed over the partner.

    Unclipped it is FAM's complete map, or that of ``none`` where the layer is not just averaged.

    Args:
      embed: as for ``fam_terms``.
      layer: likewise.
      similarity: ``cosine`` or ``dot``.
      clip: divide by the maximum and drop negatives before summing, as the authors do.
      size: of the heatmap.
      chunk: as for ``point_to_point``.
      allow_bypass: as for ``fam_terms``.

    Returns:
      ``(x [H, W, C], y [H', W', C]) -> heatmap [H, W]`` of x.
    """
    points = point_to_point(
        embed, layer, similarity=similarity, clip=clip, chunk=chunk, allow_bypass=allow_bypass
    )
    return lambda x, y: resize(points(x, y).sum((2, 3)), resolve_size(size, x))


@comparer
def similarity_grad_cam(
    embed: Embed, layer: str = "auto", *, relu: bool = True, size: Size = "input"
) -> Explainer:
    """Grad-CAM on the cosine of two embeddings, as much public code has it.

    **Its pitfall**: the cosine does not change with the scale of the features, so that on averaged
    activations the map before its ReLU sums to exactly 0. It is the complete map less the cosine
    times the image's own map, and shows where the partner matches better than on average: specific
    to the partner, but no account of the similarity. ``fam`` with ``cosine`` is one.

    Args:
      embed: as for ``fam_terms``.
      layer: likewise.
      relu: keep the positive part.
      size: of the heatmap.

    Returns:
      ``(x, partner) -> heatmap [H, W]``.
    """
    free = functools.partial(cosine, freeze_norms=False)
    raw = fam(embed, layer, similarity=free, weighting="mean", size=None)

    def explain(x, partner):
        m = raw(x, partner)
        return resize(jax.nn.relu(m) if relu else m, resolve_size(size, x))

    return explain


@comparer
def self_map(embed: Embed, layer: str = "auto", *, size: Size = "input") -> Explainer:
    """The image against itself: the dot product with its own embedding, held constant.

    On averaged activations (1 / (h w)) sum_k q_k A_k, of which the total is |q|². It knows of no
    partner: a map that is like it says nothing about one. A partner may be given and is ignored.
    """
    along = fam(embed, layer, similarity=dot, size=size)
    return lambda x, partner=None: along(x, embed(x))


@comparer
def lafam(embed: Embed, layer: str = "auto", *, size: Size = "input") -> Explainer:
    """LaFAM (arXiv 2407.06059, 2024; its abstract was available to us): the mean over channels.

    Scaled to [0, 1], then resized. No partner is asked, and one that is given is ignored: what does
    not beat this map shows where there is an object, no more.
    """

    def explain(x, partner=None):
        a = activation(embed, separating_layer(embed, layer, x, True), x)
        return resize(unit(a.mean(-1)), resolve_size(size, x))

    return explain


@comparer
def sbsm(
    embed: Embed,
    *,
    window: int | tuple[int, int] = 50,
    stride: int | tuple[int, int] = 20,
    fill: jax.Array | float = 0.0,
    chunk: int | None = 32,
) -> Explainer:
    """SBSM, similarity-based saliency maps (attributed to Dong et al., 2019): by occlusion.

    A pixel's value is the mean, over the windows that cover it, of how far covering takes the image
    away from the partner, ``max(0, d(covered x, partner) - d(x, partner))``, d Euclidean. Known to
    us from XAITK's code, which then scales by the largest value. Windows are placed as
    ``occlusion`` does.

    Args:
      embed: ``x [H, W, C] -> [E]``; no tag is needed.
      window: height and width in pixels, or one number for both; 50 is for pictures of 224.
      stride: likewise.
      fill: of what is covered, in the units of x.
      chunk: windows at a time.

    Returns:
      ``(x, partner) -> heatmap [H, W]``, not negative.

    Raises:
      ValueError: a window or stride below 1, a stride above the window; a window that covers the
        whole picture; the partner's size.
    """
    tiles = tiling(window, stride)

    def explain(x, partner):
        if all(side >= n for side, n in zip(tiles[0], x.shape[:2], strict=True)):
            raise ValueError(
                f"a window of {tiles[0]} covers all of a picture of {x.shape[:2]} and tells no "
                "place from another; give a smaller window and stride"
            )
        s = embedding_of(embed, partner)
        similarities.dot(embed(x), s)  # raises where the sizes differ

        def nearness(image):
            gap = embed(image) - s
            square = (gap * gap).sum()
            return -jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))

        return mean_drop(nearness, x, tiles, fill, chunk, jax.nn.relu)

    return explain


def _places(embed: Embed, name: str, x: jax.Array, chunk: int | None) -> jax.Array:
    """What each place adds to the embedding, [h, w, E]: sum_k de/dA_k A_k, without biases."""
    a = activation(embed, name, x)
    q, pull = jax.vjp(head(embed, name, x), a)
    return chunk_map(
        lambda row: (pull(row)[0] * a).sum(-1), jnp.eye(q.size, dtype=q.dtype), chunk
    ).transpose(1, 2, 0)


def _at_point(point, size: tuple[int, ...], grid: tuple[int, ...]) -> jax.Array:
    """Weights [h, w] of the grid's places at a pixel (row, col): bilinear, its edge repeated."""
    axes = []
    for at, full, n in zip(point, size, grid, strict=True):
        if not isinstance(at, Tracer) and not 0 <= at < full:
            raise ValueError(f"the point {tuple(point)} is outside of the image, {size} pixels")
        place = jnp.clip((at + 0.5) * n / full - 0.5, 0, n - 1)
        axes.append(jax.nn.relu(1 - jnp.abs(place - jnp.arange(n))))
    return jnp.outer(*axes)
