"""The maps that are compared, all for one picture, one partner and one other embedding."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxfmi import similarities, weightings
from jaxfmi.bilinear import resize
from jaxfmi.controls import centre_gaussian, random_map
from jaxfmi.matching import sbsm
from jaxfmi.references import constant_activation
from jaxfmi.similarity import fam_terms
from jaxfmi.taps import tag

NAMES = {
    "complete": "FAM, complete (cosine)",
    "contribution": "FAM, contribution (cosine)",
    "centred": "FAM, centred cosine",
    "margin": "FAM, margin to another",
    "grad_cam": "Grad-CAM on cosine",
    "distance": "-Delta (distance)",
    "self": "self (no partner)",
    "lafam": "LaFAM (no partner)",
    "sbsm": "SBSM (occlusion)",
    "centre": "centre",
    "random": "random",
}

COMPLETE = ("complete", "centred", "margin", "distance", "self")
"""Those whose total is a score, up to a constant."""


class Net(NamedTuple):
    """How pictures become embeddings, but for the weights, so that it can be hashed.

    All networks here end in the mean of their last activation over its positions.
    """

    graph: nnx.GraphDef
    mean: tuple[float, ...]  #: of pixels in 0..1
    std: tuple[float, ...]

    def input(self, image) -> jax.Array:
        """Pixels of 0..255 -> what the network takes."""
        mean, std = (jnp.array(v, jnp.float32)[None, None] for v in (self.mean, self.std))
        return (image / jnp.float32(255) - mean) / std

    def activation(self, state, x: jax.Array) -> jax.Array:
        """Picture [H, W, C] -> last activation [h, w, K]."""
        return nnx.merge(self.graph, state).features(x[None])[0]

    def embed(self, state) -> Callable[[jax.Array], jax.Array]:
        """Picture [H, W, C] -> embedding [K]."""
        return lambda x: pooled(self.activation(state, x))


class Network(NamedTuple):
    """A network whose embedding is explained; its weights are an argument of what is compiled."""

    net: Net
    state: nnx.State


class Found(NamedTuple):
    """A map, and what of the score is missing in its total (NaN where there is no score)."""

    map: jax.Array  #: [h, w], or [H, W] for the controls
    score: jax.Array
    residual: jax.Array


def take_apart(model: nnx.Module, *, mean=(0.0,), std=(1.0,)) -> Network:
    """The network in eval mode, for pixels with that mean and standard deviation."""
    graph, state = nnx.split(model)
    return Network(Net(graph, mean, std), state)


def pooled(a: jax.Array) -> jax.Array:
    """Activation [h, w, K] -> embedding [K]."""
    return tag(a, "maps").mean((0, 1))


def explain(net: Net, state, mean, x, own, other, key) -> dict[str, Found]:
    """All maps of x [H, W, C] but those of `occlude`.

    Args:
      net: the network.
      state: its weights.
      mean: embedding [K] that the centred form is measured from, of a corpus.
      x: picture.
      own: embedding [K] of the partner.
      other: embedding [K] that the margin is to.
      key: of the random map.

    """
    a = net.activation(state, x)  # what is explained begins here: the stem runs once for all
    e = pooled(a)
    centred = {
        "similarity": similarities.centred_cosine(mean),
        "reference": constant_activation(mean),
    }
    free = {"similarity": similarities.cosine(freeze_norms=False), "weighting": "mean"}

    def terms(partner, **options) -> Found:
        t = fam_terms(pooled, "maps", size=None, **options)(a, partner)
        return Found(t.map, t.score, t.residual)

    return {
        "complete": terms(own),
        "contribution": terms(own, weighting=weightings.contribution()),
        "centred": terms(own, **centred),
        "margin": terms(jnp.stack([own, other]), similarity=similarities.margin),
        "grad_cam": terms(own, **free),
        "distance": terms(own, similarity=similarities.neg_squared_distance),
        "self": terms(e, similarity=similarities.dot),
        "lafam": _bare(a.mean(-1)),
        "centre": _bare(centre_gaussian(jnp.sum)(x)),
        "random": _bare(random_map(jnp.sum)(x, key=key)),
    }


def occlude(net: Net, state, mean, x, own, other, key) -> dict[str, Found]:
    """SBSM, which asks the network about a hundred pictures; arguments are those of `explain`.

    Windows are the published share of a picture: 50 pixels and a stride of 20 where 224 are high.
    """
    window, stride = (round(n * x.shape[0] / 224) for n in (50, 20))
    return {"sbsm": _bare(sbsm(net.embed(state), window=window, stride=stride)(x, own))}


def explain_all(*args) -> dict[str, Found]:
    """The maps of `explain` and of `occlude`."""
    return explain(*args) | occlude(*args)


def heatmaps(found: dict[str, Found], size: tuple[int, int]) -> dict[str, jax.Array]:
    """The maps at the picture's size, in the order of `NAMES`."""
    return {name: resize(found[name].map, size) for name in NAMES if name in found}


def _bare(m: jax.Array) -> Found:
    return Found(m.squeeze(), jnp.float32(jnp.nan), jnp.float32(jnp.nan))
