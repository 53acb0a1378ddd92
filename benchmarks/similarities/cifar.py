"""C. SimCLR on CIFAR-10: a network that was trained without labels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.scipy.ndimage import map_coordinates

from jaxfmi.bilinear import resize
from jaxfmi.metrics.similarity import spearman
from jaxfmi.models import Conv4
from jaxfmi.similarities import corpus as contrast
from jaxfmi.similarity import fam_terms
from jaxfmi.train import contrastive
from jaxfmi.train.pictures import Pictures
from similarities import protocol
from similarities.maps import NAMES, Network, explain, heatmaps, occlude, pooled, take_apart
from similarities.measures import chunked, interval, pointing
from similarities.protocol import embedded
from similarities.retrieval import another_of, tile_mask, unit

EPOCHS = 12
SIDE = 32
POINTS = 16  # of a grid on what two crops have in common, in each direction


def run(options) -> dict:
    """Train, and test the features, the maps of two crops, and those of mosaics."""
    quick, data = options.quick, options.data
    config = contrastive.Config(
        data=str(data / "cifar10_jpeg_train.npz"),
        val=str(data / "cifar10_jpeg_test.npz"),
        out=str(options.runs / "C"),
        pictures=600 if quick else 10_000,
        val_pictures=200 if quick else 2000,
        epochs=1 if quick else EPOCHS,
    )
    train, val = contrastive.load_data(config)
    model = contrastive.main(config, data=(train, val)).backbone
    rngs = nnx.Rngs(config.seed)
    untrained = Conv4(config.widths, config.pools, rngs=rngs)
    network, before = (take_apart(m, mean=config.mean, std=config.std) for m in (model, untrained))
    gallery = Pictures(train.images[:8000], train.labels[:8000])
    e, g = embedded(network, val.images), embedded(network, gallery.images)
    rng, count = np.random.default_rng(0), 8 if quick else 1000
    return {
        "network": {
            "trained": figures(g, gallery.labels, e, val.labels),
            "untrained": figures(
                embedded(before, gallery.images),
                gallery.labels,
                embedded(before, val.images),
                val.labels,
            ),
        },
        "two crops": two_crops(rng, network, g.mean(0), val, e, 8 if quick else 500),
        "curves": both_sides(
            rng, network, val, e, gallery, g, options.curves or (2 if quick else 100)
        ),
    } | mosaics(rng, network, val, e, gallery, g, count)


def figures(gallery, labels, queries, answers) -> dict[str, list[float]]:
    """Accuracy of a linear probe and of 20 nearest neighbours, on the same features."""
    found = contrastive.neighbours(gallery, labels, queries, 20)
    return {
        "linear probe": interval(probe(gallery, labels, queries) == answers),
        "20 nearest": interval(np.asarray(found) == answers),
    }


def probe(gallery, labels, queries, steps: int = 500, decay: float = 1e-4) -> np.ndarray:
    """Classes [Q] by logistic regression on standardised features, all pictures in every step."""
    mean, std = gallery.mean(0), gallery.std(0) + 1e-6
    a, b = (gallery - mean) / std, (queries - mean) / std
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))

    def loss(w):
        logits = a @ w[:-1] + w[-1:]
        crossed = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels))
        return crossed.mean() + decay * jnp.square(w[:-1]).sum()

    @jax.jit
    def fit(w):
        def step(carry, _):
            w, state = carry
            updates, state = optimizer.update(jax.grad(loss)(w), state)
            return (optax.apply_updates(w, updates), state), None

        return jax.lax.scan(step, (w, optimizer.init(w)), None, steps)[0][0]

    w = np.asarray(fit(jnp.zeros((a.shape[1] + 1, int(np.max(labels)) + 1))))
    return (b @ w[:-1] + w[-1:]).argmax(1)


def two_crops(rng, network: Network, mean, val: Pictures, e, count: int) -> dict:
    """Two crops of a picture are each other's partner: do their maps agree on what they share?

    Each has 0.5 to 1 of the area. Maps are read on a grid of the common part; the figure is
    Spearman's correlation. The margin is to a random picture. `same random` is the correlation of
    the first crop's maps for the second and for that random picture; `same same` and `same other`
    those for another picture of its class, and of another class.
    """
    at = rng.permutation(len(e))[:count]
    random = e[(at + rng.integers(1, len(e), len(at))) % len(e)]
    free = np.random.default_rng(1)
    foreign = [free.choice(np.flatnonzero(val.labels != label)) for label in val.labels[at]]
    swaps = np.stack([random, e[another_of(val.labels, free)[at]], e[foreign]], 1)
    sides = np.sqrt(rng.uniform(0.5, 1, (len(at), 2)))
    starts = rng.uniform(0, 1, (len(at), 2, 2)) * (1 - sides[..., None])
    starts, sides = starts.astype(np.float32), sides.astype(np.float32)

    def one(explainer, state, image, swaps, start, side, seed):
        other = swaps[0]
        x, embed = network.net.input(image), network.net.embed(state)
        crops = [crop(x, start[i], side[i]) for i in (0, 1)]
        partners = [embed(crops[1 - i]) for i in (0, 1)]
        keys = jax.random.split(jax.random.key(seed), 3)
        found = [
            explainer(network.net, state, mean, crops[i], partners[i], other, keys[i])
            for i in (0, 1)
        ]
        away = {
            kind: explainer(network.net, state, mean, crops[0], swap, partners[0], keys[2])
            for kind, swap in zip(("random", "same", "other"), swaps, strict=True)
        }
        shown = [heatmaps(f, (SIDE, SIDE)) for f in found]
        low, high = start.max(0), (start + side[:, None]).min(0)
        points = low[None] + (jnp.arange(POINTS)[:, None] + 0.5) / POINTS * (high - low)[None]
        return {
            name: {
                "agreement": spearman(
                    *(read(shown[i][name], points, start[i], side[i]) for i in (0, 1))
                ),
            }
            | {f"same {k}": spearman(found[0][name].map, a[name].map) for k, a in away.items()}
            for name in found[0]
        }

    values = {}
    for explainer, few in ((explain, len(at)), (occlude, 100)):
        parts = (a[:few] for a in (val.images[at], swaps, starts, sides, at))
        values |= chunked(partial(one, explainer), 20)(network.state, *parts)
    found = {n: {k: interval(v) for k, v in each.items()} for n, each in values.items()}
    return {"maps": {name: found[name] for name in NAMES}, "pictures": len(at)}


def crop(x: jax.Array, start: jax.Array, side: jax.Array) -> jax.Array:
    """A square part of a picture [H, W, C], in fractions, resized to its size."""
    scale = jnp.full(2, 1 / side)
    shift = -start * jnp.array(x.shape[:2]) * scale
    return jax.image.scale_and_translate(x, x.shape, (0, 1), scale, shift, "linear")


def read(heatmap: jax.Array, points: jax.Array, start: jax.Array, side: jax.Array) -> jax.Array:
    """A crop's map at a grid of points [P, 2] (row, column), fractions of the whole picture."""
    at = (points - start[None]) / side * jnp.array(heatmap.shape)[None] - 0.5
    rows, columns = jnp.meshgrid(at[:, 0], at[:, 1], indexing="ij")
    return map_coordinates(heatmap, [rows, columns], 1, mode="nearest")


def both_sides(rng, network: Network, val: Pictures, e, gallery: Pictures, g, count: int) -> dict:
    """Deletion and insertion in a test picture and in the training picture nearest to it."""
    at = rng.permutation(len(e))[:count]
    nearest = nearest_of(e[at], g)
    random = g[rng.integers(0, len(g), len(at))]
    sides = {
        "query": (val.images[at], g[nearest]),
        "neighbour": (gallery.images[nearest], e[at]),
    }
    found = {
        side: protocol.curve_test(network, g.mean(0), images, own, random)
        for side, (images, own) in sides.items()
    }
    return {"maps": found, "pictures": len(at)}


def nearest_of(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """The nearest of a gallery [N, E] to each query [Q, E], by the cosine of centred features."""
    mean = gallery.mean(0)
    return (unit(queries - mean) @ unit(gallery - mean).T).argmax(1)


def mosaics(rng, network: Network, val: Pictures, e, gallery: Pictures, g, count: int) -> dict:
    """Four test pictures of four classes in one; partners of three kinds of one of them.

    Its mirror image, the nearest training picture, the mean of its class. The margin is to the
    same of another tile, and `same other` is the correlation with the map for that; `same same`
    that with the map for another picture of the tile's class, `same random` for any. `corpus` is
    the map for the mean of the tile's class against that of the other tile's class.
    """
    classes = [np.flatnonzero(val.labels == c) for c in range(10)]
    shown = np.array(
        [[rng.choice(classes[c]) for c in rng.permutation(10)[:4]] for _ in range(count)]
    )
    images = np.concatenate(
        [np.concatenate([val.images[shown[:, r]], val.images[shown[:, r + 1]]], 2) for r in (0, 2)],
        1,
    )
    tiles, rows = rng.integers(0, 4, count), np.arange(count)
    target, rival = shown[rows, tiles], shown[rows, (tiles + 1) % 4]
    means = np.stack([g[gallery.labels == c].mean(0) for c in range(10)])
    flipped = embedded(network, val.images[:, :, ::-1])
    partners = {
        "mirrored tile": (flipped[target], flipped[rival]),
        "nearest picture": (g[nearest_of(e[target], g)], g[nearest_of(e[rival], g)]),
        "class mean": (means[val.labels[target]], means[val.labels[rival]]),
    }
    free = np.random.default_rng(1)
    kin = e[another_of(val.labels, free)[target]]
    random = e[free.integers(0, len(e), count)]
    regions = np.stack([tile_mask(t, (2 * SIDE, 2 * SIDE)) for t in tiles])
    found = {}
    for kind, (own, other) in partners.items():
        table, maps = protocol.map_test(
            network,
            g.mean(0),
            images,
            own,
            other,
            regions,
            partners={"other": (other, own), "same": (kin, other), "random": (random, other)},
            occluded=60,
            batch=25,
            size=(2 * SIDE, 2 * SIDE),
        )
        found[f"mosaic, {kind}"] = {
            "maps": protocol.summary(table),
            "peak of complete, less that of": protocol.differences(table["peak"]),
            "completeness": protocol.completeness(protocol.summary(table)),
            "mosaics": count,
        }
        if kind == "mirrored tile":
            found[f"mosaic, {kind}"]["figure"] = {
                "images": images[:4],
                "maps": {name: m[:4] for name, m in maps.items()},
                "titles": [f"partner of tile {t + 1}" for t in tiles[:4]],
            }
    own, other = partners["class mean"]
    return found | {"mosaic, corpus against foil": corpus(network, images, own, other, regions)}


def corpus(network: Network, images, own, foil, regions) -> dict[str, list[float]]:
    """The map of the similarity to one class's corpus less that to another's."""

    def one(state, image, own, foil, region):
        x = network.net.input(image)
        a = network.net.activation(state, x)
        terms = fam_terms(pooled, "maps", similarity=contrast(own, foil), size=None)(a)
        return pointing(resize(terms.map, x.shape[:2]), region)

    values = chunked(one, 25)(network.state, images, own, foil, regions)
    return {name: interval(v) for name, v in values.items()}
