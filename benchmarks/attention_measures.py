"""What ``lfi_cam.py`` measures: maps of every arm, how they lie on objects, how steady they are."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from similarities.measures import box_overlap

from jaxfmi import class_score, controls, heatmap, metrics, probability
from jaxfmi.models.lfi_cam import attend, attention_map

THRESHOLD = 100 / 256
CURVES = ("deletion", "insertion")
CONFIDENCE = ("drop", "increase")
DIFFER = ("seed differs", "setting differs", "setting and seed differ")  # pairs of models
LEVELS = (0.2, 0.3, 0.5)  # of a map in [0, 1], whose largest component above has a box
STEPS, BATCH = 20, 50


def views(model: nnx.Module, x: jax.Array) -> dict[str, Any]:
    """What a network says of pictures, and all maps [N, h, w] that are read off it.

    `CAM` is that of the predicted class, from the last maps before any attention. An LFI-CAM
    network is also asked with its weights replaced by 1/C, and without its map.
    """
    out = model.forward(x)
    logits, features = out["logits"], out["features"]
    kernel = model.backbone.head.kernel[:, logits.argmax(-1)]
    said, maps = {"own": logits}, {}
    maps["CAM"] = jax.nn.relu(jnp.einsum("nhwc,cn->nhw", features, kernel))
    if "attention" in out:
        maps["A"] = out["attention"][..., 0]
    if "aux_logits" in out:
        said["attention head"] = out["aux_logits"]
        maps["A inverted"] = 1 - maps["A"]
        maps["A pooled"] = nnx.avg_pool(out["attention"], (2, 2), (2, 2))[..., 0]
    elif "importance" in out:
        even = attention_map(features, jnp.full_like(out["importance"], 1 / features.shape[-1]))
        said["w = 1/C"] = model.backbone.classify(attend(features, even))
        said["A = 0"] = model.backbone.classify(features)
        maps["w = 1/C"] = even[..., 0]
        w = out["importance"]
        entropy = -(w * jnp.log(jnp.where(w > 0, w, 1))).sum(-1)
        effective = jnp.exp(entropy) / w.shape[-1]
        return {"said": said, "maps": maps, "importance": w, "effective": effective}
    return {"said": said, "maps": maps}


def look(graph: nnx.GraphDef, state, x: jax.Array, size: int) -> dict[str, Any]:
    """`views` of all pictures, with maps [N, size, size] scaled to [0, 1]."""
    some = _looking(graph, size)
    parts = [jax.device_get(some(state.params, state.stats, x[i : i + 500])) for i in _cuts(x, 500)]
    return jax.tree.map(lambda *a: np.concatenate(a), *parts)


@cache
def _looking(graph: nnx.GraphDef, size: int):
    @jax.jit
    def some(params, stats, x):
        found = views(merge(graph, params, stats), x)
        sized = {k: jax.vmap(partial(scaled, size=size))(m) for k, m in found["maps"].items()}
        return found | {"maps": sized}

    return some


def merge(graph: nnx.GraphDef, params, stats) -> nnx.Module:
    """The network, in evaluation mode."""
    model = nnx.merge(graph, params, stats, copy=True)
    model.eval()
    return model


def scaled(m: jax.Array, size: int) -> jax.Array:
    """A map [h, w] resized to the pictures and brought to [0, 1]."""
    return heatmap.unit(heatmap.resize(m, (size, size)))


def no_net(x: jax.Array, size: int) -> dict[str, np.ndarray]:
    """Maps that ask no network: the middle of the picture, its edges, noise."""
    score = lambda x: x.sum()  # noqa: E731 - it is not asked
    keys = jax.random.split(jax.random.key(0), len(x))
    maps = {
        "centre": jax.vmap(controls.centre_gaussian(score))(x),
        "edges": jax.vmap(controls.edge_map(score))(x),
        "random": jax.vmap(lambda x, key: controls.random_map(score)(x, key=key))(x, keys),
    }
    return {k: np.asarray(jax.vmap(partial(scaled, size=size))(m)) for k, m in maps.items()}


def placed(maps: np.ndarray, regions: Mapping[str, np.ndarray], small) -> dict[str, Any]:
    """Means over pictures of how maps [N, S, S] lie on regions, and on those of small objects."""
    found: dict[str, Any] = {}
    for name, region in regions.items():
        rows = {k: np.asarray(v) for k, v in _placed(jnp.asarray(maps), region).items()}
        if name == "box":
            overlaps = [
                box_overlap(m, extent(r), LEVELS) for m, r in zip(maps, region, strict=True)
            ]
            hits = np.array(overlaps) >= 0.5
            rows |= {f"box at {level}": hits[:, i] for i, level in enumerate(LEVELS)}
        found[name] = {k: float(np.nanmean(v)) for k, v in rows.items()}
        if 0 < small.sum() < len(small):
            found[f"small {name}"] = {k: float(np.nanmean(v[small])) for k, v in rows.items()}
    return found


def extent(region: np.ndarray) -> np.ndarray:
    """The tight box x1, y1, x2, y2 of a region [H, W], in fractions."""
    edges = []
    for axis in (0, 1):
        there = np.flatnonzero(region.any(axis))
        edges.append((there[0] / region.shape[1 - axis], (there[-1] + 1) / region.shape[1 - axis]))
    (left, right), (top, bottom) = edges
    return np.array([left, top, right, bottom])


@jax.jit
@partial(jax.vmap, in_axes=(0, 0))
def _placed(m: jax.Array, region: jax.Array) -> dict[str, jax.Array]:
    share = metrics.relevance_rank(m, region)
    above = m > THRESHOLD
    return {
        "pointing": metrics.pointing(m, region, tolerance=0),
        "energy": metrics.energy_pointing(m, region),
        "AUC": pixel_auc(m, region),
        "area IoU": share / (2 - share),
        "IoU": (above & region).sum() / (above | region).sum(),
    }


def pixel_auc(m: jax.Array, region: jax.Array) -> jax.Array:
    """Area under the ROC curve of the map [H, W] as a classifier of pixels; ties count half.

    NaN where the region is empty or the whole picture.
    """
    ranks = jax.scipy.stats.rankdata(m.ravel(), method="average")
    inside = region.sum()
    above = (ranks * region.ravel()).sum() - inside * (inside + 1) / 2
    pairs = inside * (region.size - inside)
    return jnp.where(pairs == 0, jnp.nan, above / jnp.where(pairs == 0, 1, pairs))


def curves(
    graph: nnx.GraphDef, state, x: jax.Array, maps: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """What becomes of the probability of the class that the network predicts, by map.

    Deletion to the mean colour and insertion into a blurred picture, divided by p(picture); average
    drop and increase, in per cent, of the picture times the map. Maps are brought to its size.
    """
    some, random = _curving(graph), np.random.default_rng(0).random(x.shape[:3]).astype(np.float32)
    found = {}
    for name, m in {**maps, "random": random}.items():
        rows = [
            some(state.params, state.stats, x[i : i + BATCH], m[i : i + BATCH]) for i in _cuts(x)
        ]
        means = np.concatenate(rows).mean(0).tolist()
        found[name] = dict(zip((*CURVES, *CONFIDENCE), means, strict=True))
    return found


@cache
def _curving(graph: nnx.GraphDef):
    @jax.jit
    def some(params, stats, x, m):
        model = merge(graph, params, stats)
        score = class_score(lambda x: model(x), of=probability)
        curve = [getattr(metrics, c)(score, steps=STEPS, chunk=None) for c in CURVES]
        confidence = metrics.confidence(score)

        def one(x, m):
            label = model(x[None])[0].argmax()
            sized = heatmap.resize(m, x.shape[:2])
            left = confidence(x, heatmap.unit(sized), label)
            areas = [f(x, sized, label) / left.clean for f in curve]
            return jnp.stack([*areas, *(getattr(left, c) for c in CONFIDENCE)])

        return jax.vmap(one)(x, m)

    return some


def _cuts(x, step: int = BATCH) -> range:
    return range(0, len(x), step)


def steadiness(maps: Sequence[np.ndarray], right: Sequence[np.ndarray], pairs) -> dict[str, float]:
    """How alike the maps [N, S, S] of models are, over pairs of these, and what chance gives.

    `matched`, `pearson`, `spearman` and `IoU`, the latter also of pictures that both models get
    right; `chance` is the IoU of maps of different pictures, `row IoU` and `row chance` the same as
    the reference measures it.
    """
    rows = []
    order = np.random.default_rng(0).permutation(len(maps[0]))
    for i, j in pairs:
        a, b = maps[i], maps[j]
        same = jax.device_get(_alike(a, b))
        other = jax.device_get(_alike(a[order], b[np.roll(order, -1)]))
        both, few = right[i] & right[j], slice(200)
        rows.append(
            {
                "IoU": np.nanmean(same.iou),
                "chance": np.nanmean(other.iou),
                "IoU, both right": np.nanmean(same.iou[both]) if both.any() else np.nan,
                "matched": np.nanmean(same.matched_iou),
                "pearson": np.mean(same.pearson),
                "spearman": np.mean(same.spearman),
                "row IoU": np.mean([iou_ref(*m) for m in zip(a[few], b[few], strict=True)]),
                "row chance": np.mean(
                    [
                        iou_ref(a[k], b[l])
                        for k, l in zip(order[few], np.roll(order, -1)[few], strict=True)
                    ]
                ),
            }
        )
    return {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}


@jax.jit
@jax.vmap
def _alike(a, b):
    return metrics.stability(jnp.stack([a, b]), chunk=None)


def kinds_of_pairs(runs) -> dict[str, list[tuple[int, int]]]:
    """Pairs of runs (setting, seed) by what differs."""
    found: dict[str, list] = {kind: [] for kind in DIFFER}
    seed, setting, both = found.values()
    first = runs[0][0] if runs else None
    for (i, (s, k)), (j, (t, l)) in combinations(enumerate(runs), 2):
        if s == t and k != l and s == first:
            seed.append((i, j))
        elif s != t:
            (setting if k == l else both).append((i, j))
    return {kind: pairs for kind, pairs in found.items() if pairs}


def iou_ref(
    a: np.ndarray, b: np.ndarray, threshold: int = 100, *, wrap: bool = True, dice: bool = False
) -> float:
    """IoU of two maps [H, W] in [0, 1] as the authors of LFI-CAM computed it: a mean over rows.

    Maps go through bytes, are scaled to 0..256 and kept where above a threshold; the top value
    wraps to 0 in 8 bits (`wrap`), so that peaks drop out. Each row of the picture has an IoU of its
    own, 1 where it is empty in both, so that disjoint maps score .19 to .59. `dice` is their other
    measure, 2 (I + s) / (I + I' + s).
    """
    p, q = (_bits(m, threshold, wrap) for m in (a, b))
    both, s = 3 * (p & q).sum(1), 1e-6  # three equal channels
    if dice:
        return float(np.mean(2 * (both + s) / (3 * (p.sum(1) + q.sum(1)) + s)))
    return float(np.mean((both + s) / (3 * (p | q).sum(1) + s)))


def _bits(m: np.ndarray, threshold: int, wrap: bool) -> np.ndarray:
    pixels = np.rint(255 * np.clip(m, 0, 1))
    spread = np.ptp(pixels) or 1.0
    values = np.floor(256 * (pixels - pixels.min()) / spread)
    return (values % 256 if wrap else values) > threshold
