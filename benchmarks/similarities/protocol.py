"""The tests that every experiment makes: maps against regions, for other partners, and curves."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from similarities.maps import COMPLETE, NAMES, Net, explain, heatmaps
from similarities.measures import chunked, curves, interval, pointing, same, share_of_range

Table = dict[str, dict[str, np.ndarray]]
"""measure -> method -> [n]"""


def embedded(net: Net, images: np.ndarray, batch: int = 250) -> np.ndarray:
    """Embed pictures uint8 [N, H, W, C]: [N, E]."""
    return chunked(lambda state, x: net.embed(state)(net.input(x)), batch)(net.state, images)


def cosine(e: jax.Array, partner: jax.Array) -> jax.Array:
    """The cosine of embeddings [..., E]."""
    norms = jnp.linalg.norm(e, axis=-1) * jnp.linalg.norm(partner, axis=-1)
    return (e * partner).sum(-1) / jnp.maximum(norms, 1e-12)


def negative_distance(e: jax.Array, partner: jax.Array) -> jax.Array:
    """The negative squared distance of embeddings [..., E]."""
    return -jnp.square(e - partner).sum(-1)


def map_test(
    net: Net,
    mean: np.ndarray,
    images: np.ndarray,
    own: np.ndarray,
    other: np.ndarray,
    regions: np.ndarray,
    *,
    partners: Mapping[str, tuple[np.ndarray, np.ndarray]],
    batch: int,
    size: tuple[int, int] | None = None,
) -> tuple[Table, dict[str, np.ndarray]]:
    """Maps of pictures, held against regions and against the maps for other partners.

    Args:
      net: the network.
      mean: embedding [E] of the corpus.
      images: uint8 [N, H, W, C].
      own: partners' embeddings [N, E].
      other: what the margin is to, [N, E].
      regions: bool [N, H, W] where the peak should be.
      partners: by name, other pairs (own, other) to be explained, for Spearman's correlation.
      batch: pictures at a time.
      size: of the maps that come back as the second value (None: none do).

    """
    names = list(partners)

    def one(state, image, region, seed, pairs):
        x = net.input(image)
        keys = jax.random.split(jax.random.key(seed), 1 + len(names))
        each = jax.vmap(lambda pair, key: explain(net, state, mean, x, *pair, key))(pairs, keys)
        found, *others = (jax.tree.map(lambda v: v[i], each) for i in range(1 + len(names)))
        shown = heatmaps(found, x.shape[:2])
        values = {name: pointing(shown[name], region) for name in found}
        for name, swapped in zip(names, others, strict=True):
            alike = same(found, swapped)
            values = {m: v | {f"same {name}": alike[m]} for m, v in values.items()}
        for name in found:
            values[name] |= {"score": found[name].score, "missing": jnp.abs(found[name].residual)}
        return values, heatmaps(found, size) if size else {}

    # [N, 1 + partners, E] each, the pair that is explained first.
    pairs = tuple(np.stack(e, 1) for e in zip((own, other), *partners.values(), strict=True))
    arguments = images, regions, np.arange(len(images)), pairs
    values, maps = chunked(one, batch)(net.state, *arguments)
    return {m: {name: values[name][m] for name in values} for m in values["complete"]}, maps


def curve_test(
    net: Net,
    mean: np.ndarray,
    images: np.ndarray,
    own: np.ndarray,
    other: np.ndarray,
    similarity: Callable = cosine,
    batch: int = 4,
    groups=None,
) -> dict[str, dict[str, list[float]]]:
    """Deletion and insertion of pixels, with the similarity to `own` [N, E] as the score.

    Areas as shares of the range from the blurred to the whole picture, with intervals.
    """

    def one(state, image, own, other, seed):
        x = net.input(image)
        embed = net.embed(state)
        found = explain(net, state, mean, x, own, other, jax.random.key(seed))
        stack = jnp.stack(list(heatmaps(found, x.shape[:2]).values()))
        return jax.vmap(lambda h: curves(lambda v: similarity(embed(v), own), x, h))(stack)

    values = chunked(one, batch)(net.state, images, own, other, np.arange(len(images)))
    ends = values["whole"][:, 0], values["filled"][:, 0]
    return {
        name: {
            what: share_of_range(values[what][:, i], *ends, groups)
            for what in ("deletion", "insertion")
        }
        for i, name in enumerate(NAMES)
    }


def summary(table: Table, groups=None) -> dict[str, dict[str, Any]]:
    """Intervals by method and measure; of `missing` the mean over pictures, and of the score."""
    found: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
    for measure, by_name in table.items():
        for name, values in by_name.items():
            if measure in ("score", "missing"):
                if np.isfinite(values).any():
                    found[name][measure] = float(np.mean(values))
            else:
                found[name][measure] = interval(values, groups)
    return found


def heavier(table: Table) -> Table:
    """Add how often more than half of the energy is in the region; a half of it counts half."""
    energy = table["energy"]
    more = {
        m: (np.sign(np.where(abs(v - 0.5) < 1e-5, 0, v - 0.5)) + 1) / 2 for m, v in energy.items()
    }
    return table | {"heavier": more}


def differences(values: dict[str, np.ndarray], groups=None) -> dict[str, list[float]]:
    """How much `complete` is above every other method, pair by pair."""
    return {
        n: interval(values["complete"] - v, groups) for n, v in values.items() if n != "complete"
    }


def completeness(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean score and mean of what the maps' totals miss of it, for maps that have a score."""
    names = [*COMPLETE, "contribution", "grad_cam"]
    return {n: {k: found[n][k] for k in ("score", "missing")} for n in names}
