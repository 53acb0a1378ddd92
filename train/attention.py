"""How the map that a model makes for itself fares while it learns."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxfmi.bilinear import resize
from jaxfmi.report import panel
from jaxfmi.train.card import inside

__all__ = ["draw", "health", "localise", "steadiness"]


def health(out: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Figures [N] of what a model's `forward` gives, where it gives a map.

    Of `attention` [N, h, w, 1]: its mean, the share of positions above 1/2, its spatial entropy as
    a share of the highest (1: even), and whether it is constant. Of `importance` [N, C], if any:
    exp(entropy)/C, the share of channels that effectively count, and the largest. Of `features`
    [N, h, w, C]: the share of channels that are zero everywhere.
    """
    if "attention" not in out:
        return {}
    a = jnp.asarray(out["attention"], jnp.float32).reshape(len(out["attention"]), -1)
    share = a / jnp.maximum(a.sum(-1, keepdims=True), 1e-12)
    rows = {
        "attention_mean": a.mean(-1),
        "attention_above_half": (a > 0.5).mean(-1),
        "attention_entropy": _entropy(share) / np.log(a.shape[-1]),
        "attention_constant": jnp.asarray(a.max(-1) == a.min(-1), jnp.float32),
    }
    if "importance" in out:
        w = jnp.asarray(out["importance"], jnp.float32)
        rows["importance_effective"] = jnp.exp(_entropy(w)) / w.shape[-1]
        rows["importance_max"] = w.max(-1)
    if "features" in out:
        rows["dead_channels"] = (out["features"] == 0).all((-3, -2)).mean(-1)
    return rows


def steadiness(maps: np.ndarray, before: np.ndarray | None) -> dict[str, float]:
    """Mean correlation of maps [N, h, w] with earlier ones of the same pictures.

    Pictures with a constant map are left out; without any other this is NaN.
    """
    if before is None:
        return {}
    a, b = (
        m.reshape(len(m), -1) - m.reshape(len(m), -1).mean(1, keepdims=True) for m in (maps, before)
    )
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    there = norms > 0
    found = (a * b).sum(1)[there] / norms[there]
    return {"attention_steadiness": float(found.mean()) if len(found) else float("nan")}


def localise(maps: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> dict[str, float]:
    """How well maps [N, h, w] lie on boxes [N, 4] (x1, y1, x2, y2 in pixels, both ends included).

    `attention_pointing` is how often the peak is in the box, `attention_energy` the mean share of
    the map's sum that is, both of maps resized to the picture, (H, W).
    """
    full = np.asarray(jax.vmap(lambda m: resize(m, size))(jnp.asarray(maps)))
    peaks = np.stack(np.unravel_index(full.reshape(len(full), -1).argmax(1), size), 1)
    rows, columns = np.arange(size[0]), np.arange(size[1])
    x1, y1, x2, y2 = (boxes[:, [i]] for i in range(4))
    within = ((rows >= y1) & (rows <= y2))[:, :, None] & ((columns >= x1) & (columns <= x2))[
        :, None
    ]
    total = full.sum((1, 2))
    energy = (full * within).sum((1, 2))[total > 0] / total[total > 0]
    return {
        "attention_pointing": inside(peaks, boxes),
        "attention_energy": float(energy.mean()) if len(energy) else float("nan"),
    }


def draw(path: Path, images: np.ndarray, maps: np.ndarray, captions: list[str]) -> None:
    """Write a panel: pictures uint8 [N, H, W, 3] beside their maps [N, h, w]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    panel([i / 255 for i in images], {"attention": list(maps)}, captions=captions, path=path)


def _entropy(p: jax.Array) -> jax.Array:
    """Of distributions [..., n], in nats."""
    return -(p * jnp.log(jnp.where(p > 0, p, 1))).sum(-1)
