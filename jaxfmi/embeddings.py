"""Embeddings: what explainers of similarities are made from, and the checks of their input."""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxfmi import taps
from jaxfmi.explainer import Explainer, check_finite, check_image, one_layer, wide
from jaxfmi.heatmap import divide
from jaxfmi.references import AtLayer

Embed = Callable[[jax.Array], jax.Array]
"""``x [H, W, C] -> embedding [E]``, not scaled to unit length, with a tag inside."""

P = ParamSpec("P")


def comparer(method: Callable[Concatenate[Embed, P], Explainer]):
    """Decorate a method of embeddings so that bad input is an error that says what is wrong."""

    @functools.wraps(method)
    def checked_method(embed: Embed, *args: P.args, **options: P.kwargs) -> Explainer:
        explain = method(vector(embed), *args, **options)

        @functools.wraps(explain)
        def checked(x, *args, **kwargs):
            return explain(check_image(x), *args, **kwargs)

        checked.__name__ = checked.__qualname__ = method.__name__
        return checked

    return checked_method


def vector(embed: Embed) -> Embed:
    """Wrap an embedding so that it is [E], in float32 or wider, or a ValueError."""

    @functools.wraps(embed)
    def checked(x):
        e = embed(x)
        if jnp.ndim(e) != 1:
            raise ValueError(
                f"an embedding is one vector [E], this one has shape {jnp.shape(e)}; for features "
                "[1, h, w, K], embed = lambda x: model.features(x[None])[0].mean((0, 1))"
            )
        return wide(e)

    return checked


def embedding_of(embed: Embed, partner) -> jax.Array:
    """A partner as the similarity takes it, [E] or [2, E]; an image is embedded.

    Raises:
      ValueError: another rank, or (where they are known) values that are NaN or infinite.
    """
    partner = jnp.asarray(partner)
    if partner.ndim == 3:
        return embed(check_image(partner))
    if partner.ndim not in (1, 2):
        raise ValueError(
            "a partner is an embedding [E], a pair of them [2, E], or an image [H, W, C]; got "
            f"shape {partner.shape}; for many partners, jax.vmap(explain, (None, 0))(x, partners)"
        )
    check_finite(partner, "the partner")
    return wide(partner) if jnp.issubdtype(partner.dtype, jnp.floating) else partner.astype(float)


def separating_layer(embed: Embed, layer: str, x, allow_bypass: bool = False) -> str:
    """The layer's name, after checking that the embedding sees the image through it alone."""
    name = one_layer(embed, layer, x)
    if not allow_bypass and taps.depends(embed, x, cut=[name]):
        jax.eval_shape(taps.capture(embed, name), x)  # a layer that is not there says so
        raise ValueError(
            f"layer {name!r} does not determine the embedding, which depends on the image by a way "
            "around it too (what jaxfmi.capture reads is from before the tag); choose the block's "
            "output, or allow_bypass=True"
        )
    return name


def prototype(embeddings, mask=None) -> jax.Array:
    """The mean [E] of embeddings [K, E], of those that the mask [K] keeps; 0 where there are none.

    Raises:
      ValueError: no embedding, or (where the mask is known) none kept.
    """
    embeddings = jnp.asarray(embeddings)
    if embeddings.ndim != 2 or not len(embeddings):
        raise ValueError(
            f"the support set is empty or no [K, E]: got shape {embeddings.shape}; a prototype is "
            "the mean of at least one embedding"
        )
    kept = support_mask(mask, len(embeddings))
    return divide(jnp.where(kept[:, None], embeddings, 0).sum(0), kept.sum())


def support_mask(mask, count: int) -> jax.Array:
    """Which supports count, [S] bool, or an error where it is known that none does."""
    kept = jnp.ones(count, bool) if mask is None else jnp.asarray(mask, bool)
    if kept.shape != (count,):
        raise ValueError(f"expected a mask [{count}] of the supports; got shape {kept.shape}")
    if not isinstance(kept, Tracer) and not np.any(kept):
        raise ValueError("the support set is empty: the mask keeps none")
    return kept


def at_partner(s: jax.Array | None) -> AtLayer:
    """The partner's embedding as the reference activation everywhere."""

    def make(a):
        if s is None or s.shape != a.shape[-1:]:
            raise ValueError(
                f"reference='partner' puts the partner's embedding into the layer: it needs one of "
                f"{a.shape[-1]} numbers, as many as the layer has maps; got "
                f"{None if s is None else s.shape}"
            )
        return jnp.broadcast_to(s.astype(a.dtype), a.shape)

    return AtLayer(make)
