"""The tests that every experiment makes: maps against regions, for other partners, and curves."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from similarities.maps import (
    COMPLETE,
    NAMES,
    Net,
    Network,
    explain,
    explain_all,
    heatmaps,
    occlude,
)
from similarities.measures import chunked, curves, interval, pointing, same, share_of_range

Table = dict[str, dict[str, np.ndarray]]
"""measure -> method -> [n]"""


def embedded(network: Network, images: np.ndarray, batch: int = 250) -> np.ndarray:
    """Embed pictures uint8 [N, H, W, C]: [N, E]."""
    return _embedder(network.net, batch)(network.state, images)


@cache
def _embedder(net: Net, batch: int) -> Callable:
    return chunked(lambda state, x: net.embed(state)(net.input(x)), batch)


def cosine(e: jax.Array, partner: jax.Array) -> jax.Array:
    """The cosine of embeddings [..., E]."""
    norms = jnp.linalg.norm(e, axis=-1) * jnp.linalg.norm(partner, axis=-1)
    return (e * partner).sum(-1) / jnp.maximum(norms, 1e-12)


def negative_distance(e: jax.Array, partner: jax.Array) -> jax.Array:
    """The negative squared distance of embeddings [..., E]."""
    return -jnp.square(e - partner).sum(-1)


def map_test(
    network: Network,
    mean: np.ndarray,
    images: np.ndarray,
    own: np.ndarray,
    other: np.ndarray,
    regions: np.ndarray,
    *,
    partners: Mapping[str, tuple[np.ndarray, np.ndarray]],
    batch: int,
    size: tuple[int, int],
    occluded: int = 100,
    swapped: int = 100,
) -> tuple[Table, dict[str, np.ndarray]]:
    """Maps of pictures, held against regions and against the maps for other partners.

    SBSM explains a part of the pictures, and a part has its partners swapped; what is not there of
    the others is NaN.

    Args:
      network: whose embedding is explained.
      mean: embedding [E] of the corpus.
      images: uint8 [N, H, W, C].
      own: partners' embeddings [N, E].
      other: what the margin is to, [N, E].
      regions: bool [N, H, W] where the peak should be.
      partners: by name, other pairs (own, other) to be explained, for Spearman's correlation.
      batch: pictures at a time.
      size: of the maps that come back as the second value.
      occluded: pictures that SBSM explains, about.
      swapped: pictures whose maps for other partners are computed, about.

    """
    # [N, 1 + partners, E] each, the pair that is explained first.
    pairs = tuple(np.stack(e, 1) for e in zip((own, other), *partners.values(), strict=True))

    def run(explainer, names, at):
        go = _mapper(network.net, explainer, names, size, batch)
        some = tuple(e[at, : 1 + len(names)] for e in pairs)
        found = go((network.state, mean), images[at], regions[at], at, some)
        return spread(found, at, len(images))

    names, every = tuple(partners), np.arange(len(images))
    values, maps = run(explain, (), every)
    again, _ = run(explain, names, part(images, swapped))
    slow, few = run(occlude, names, part(images, occluded))
    values = {name: again[name] | values[name] for name in values} | slow
    return {m: {name: values[name][m] for name in values} for m in slow["sbsm"]}, maps | few


def part(images: np.ndarray, count: int) -> np.ndarray:
    """Which pictures a slow method explains: the first four, which are drawn, and ``count`` evenly.

    All where there are no more.
    """
    spaced = np.arange(count) * len(images) // count
    return np.union1d(np.arange(min(4, len(images))), spaced)


def spread(found, at: np.ndarray, count: int):
    """Arrays of pictures `at` [n] as arrays of all [count], NaN where there is nothing."""

    def over(values):
        every = np.full((count, *values.shape[1:]), np.nan, np.float32)
        every[at] = values
        return every

    return jax.tree.map(over, found)


@cache
def _mapper(
    net: Net, explainer: Callable, names: tuple[str, ...], size: tuple[int, int], batch: int
) -> Callable:
    """What `map_test` compiles, once for all of its uses."""

    def one(held, image, region, seed, pairs):
        (state, mean), x = held, net.input(image)
        keys = jax.random.split(jax.random.key(seed), 1 + len(names))
        each = jax.vmap(lambda pair, key: explainer(net, state, mean, x, *pair, key))(pairs, keys)
        found, *others = (jax.tree.map(lambda v: v[i], each) for i in range(1 + len(names)))
        shown = heatmaps(found, x.shape[:2])
        values = {name: pointing(shown[name], region) for name in found}
        for name, swapped in zip(names, others, strict=True):
            alike = same(found, swapped)
            values = {m: v | {f"same {name}": alike[m]} for m, v in values.items()}
        for name in found:
            values[name] |= {"score": found[name].score, "missing": jnp.abs(found[name].residual)}
        return values, heatmaps(found, size)

    return chunked(one, batch)


def curve_test(
    network: Network,
    mean: np.ndarray,
    images: np.ndarray,
    own: np.ndarray,
    other: np.ndarray,
    similarity: Callable = cosine,
    batch: int = 2,
) -> dict[str, dict[str, list[float]]]:
    """Deletion and insertion of pixels, with the similarity to `own` [N, E] as the score.

    Areas as shares of the range from the blurred to the whole picture, with intervals.
    """
    run = _curver(network.net, similarity, batch)
    values = run((network.state, mean), images, own, other, np.arange(len(images)))
    ends = values["whole"][:, 0], values["filled"][:, 0]
    return {
        name: {w: share_of_range(values[w][:, i], *ends) for w in ("deletion", "insertion")}
        for i, name in enumerate(NAMES)
    }


@cache
def _curver(net: Net, similarity: Callable, batch: int) -> Callable:
    """What `curve_test` compiles, once for both sides."""

    def one(held, image, own, other, seed):
        (state, mean), x = held, net.input(image)
        embed = net.embed(state)
        found = explain_all(net, state, mean, x, own, other, jax.random.key(seed))
        stack = jnp.stack(list(heatmaps(found, x.shape[:2]).values()))
        return jax.vmap(lambda h: curves(lambda v: similarity(embed(v), own), x, h))(stack)

    return chunked(one, batch)


def summary(table: Table, groups=None) -> dict[str, dict[str, Any]]:
    """Intervals by method and measure; of `missing` the mean over pictures, and of the score."""
    found: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
    for name, values in table.get("peak", {}).items():
        found[name]["pictures"] = int(np.isfinite(values).sum())
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
