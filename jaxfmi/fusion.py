"""Fusing layers: which of a network, Otsu's threshold, and the cascade that it gates."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxfmi import taps
from jaxfmi.explainer import Layers, Score

SHRUNK, GROWN = 0.9, 1.5  # sides that change by less are still those of the same run
BINS = 256
SHARPNESS = 100.0  # of a soft gate
RAISE, LEAST = 1.5, 0.1  # a soft gate's threshold is raised where fewer pixels than that are above


def sise_layers(score: Score, x: jax.Array, *args) -> list[str]:
    """SISE's layers of a network: the last of each run of tags of one size, shallow to deep.

    A run ends where a side shrinks by a tenth or grows by half, so that convolutions without
    padding, or with more than they need, do not end it. Tags of the image's own shape are left out,
    and so are single positions.

    Raises:
      ValueError: no tag is an activation [h, w, K].
    """
    found = {name: s[-3:] for name, s in taps.tags(score, x, *args).items() if len(s) in (3, 4)}
    spatial = {n: s for n, s in found.items() if min(s[:2]) > 1 and s != x.shape}
    if not spatial:
        there = taps.inventory(score, x, *args)
        raise ValueError(f"layers='auto' needs tagged activations [h, w, K]; {there}")
    names = list(spatial)
    return [
        name
        for name, after in zip(names, [*names[1:], None], strict=True)
        if after is None or _differ(spatial[name], spatial[after])
    ]


def _differ(size, after) -> bool:
    sides = zip(size[:2], after[:2], strict=True)
    return any(b <= SHRUNK * a or b >= GROWN * a for a, b in sides)


def fused_layers(score: Score, layers: Layers, x, *args) -> list[str]:
    """The names of the layers, in the order in which the network meets them, or an error."""
    if layers == "auto":
        return sise_layers(score, x, *args)
    names = [layers] if isinstance(layers, str) else list(layers or ())
    if not names:
        raise ValueError("expected the names of layers, or 'auto'; got none")
    order = [name for name in taps.tags(score, x, *args) if name in names]
    known = [name for name in names if name in order]
    if known != order:
        raise ValueError(f"layers go from shallow to deep: expected {order}, got {known}")
    return names


def otsu(values: jax.Array) -> jax.Array:
    """Otsu's threshold (1979) of values in [0, 1], by 256 bins: what is above it is foreground.

    It is j / 256 for the first split j, bins below j against all others, with the greatest
    variance between the two; values are rounded to bins, half to even. 0 where one bin holds all.
    """
    return split(_histogram(values)) / BINS


def split(counts: jax.Array) -> jax.Array:
    """The first best j to part bins [0, j) from bins [j, n), by their counts [n]."""
    index = jnp.arange(len(counts))
    below, total = jnp.cumsum(counts) - counts, counts.sum()
    moment = jnp.cumsum(counts * index) - counts * index
    above = total - below
    mean_below = moment / jnp.maximum(below, 1)
    mean_above = ((counts * index).sum() - moment) / jnp.maximum(above, 1)
    variance = (below / total) * (above / total) * (mean_below - mean_above) ** 2
    return jnp.argmax(jnp.where((below > 0) & (above > 0), variance, 0))


def best_split(values: jax.Array, among: jax.Array) -> jax.Array:
    """Otsu's threshold without bins: the largest value [] of the lower class.

    Args:
      values: [n].
      among: [n] bool, which of them take part. Where those are all equal, the result is below all.
    """
    n = among.sum()
    ordered = jnp.sort(jnp.where(among, values, jnp.inf))
    finite = jnp.where(jnp.isfinite(ordered), ordered, 0)
    below, above = jnp.arange(1, len(values) + 1), n - jnp.arange(1, len(values) + 1)
    lower = jnp.cumsum(finite)
    difference = lower / below - (lower[-1] - lower) / jnp.maximum(above, 1)
    variance = jnp.where(above > 0, below * above * difference**2, -1)
    largest = jnp.where(among, values, -jnp.inf).max()
    return jnp.where(ordered[0] < largest, ordered[jnp.argmax(variance)], -1.0)


def hard(v: jax.Array, threshold: jax.Array) -> jax.Array:
    """1 above the threshold, 0 elsewhere: the paper's binary mask."""
    return (v > threshold).astype(v.dtype)


def soft(v: jax.Array, threshold: jax.Array) -> jax.Array:
    """A steep sigmoid, which keeps an order among pixels below the threshold.

    The threshold is 1.5 times as high where fewer than a tenth of the pixels are above that.
    """
    raised = jnp.round(RAISE * threshold * BINS)
    few = (_bins(v) >= raised).mean() < LEAST
    return jax.nn.sigmoid(SHARPNESS * (v - jnp.where(few, RAISE, 1.0) * threshold))


def simple(v: jax.Array, threshold: jax.Array) -> jax.Array:
    """The map itself."""
    return v


GATES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "hard": hard,
    "soft": soft,
    "simple": simple,
}


def cascade(maps: Sequence[jax.Array], gates: Sequence[jax.Array]) -> jax.Array:
    """``e_1 = V_1, e_i = (e_{i-1} + V_i) B_i``: deeper maps add, and gate all before them.

    Args:
      maps: V_i [H, W] in [0, 1], shallow to deep; zeros for an absent layer.
      gates: B_i [H, W]; ones for an absent layer. The first is not used.
    """
    fused = maps[0]
    for v, gate in zip(maps[1:], gates[1:], strict=True):
        fused = (fused + v) * gate
    return fused


def _bins(values: jax.Array) -> jax.Array:
    return jnp.minimum(jnp.round(values * BINS).astype(int), BINS - 1)


def _histogram(values: jax.Array) -> jax.Array:
    return jnp.zeros(BINS, int).at[_bins(values).ravel()].add(1)
