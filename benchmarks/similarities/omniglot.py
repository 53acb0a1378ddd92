"""A. Prototypical networks on Omniglot: characters that were not trained on.

Training: `small1`, every character in four orientations as four classes. Test: the 106 characters
of `small2` that are not in `small1`, and the 20 official one-shot runs of 20 characters.
"""

import zipfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxfmi.metrics.ranking import ranks
from jaxfmi.similarity import support_shares
from jaxfmi.train import few_shot
from jaxfmi.train.pictures import Pictures, drawing
from similarities import protocol
from similarities.maps import NAMES, Network, explain_all, heatmaps, take_apart
from similarities.measures import chunked, interval, share_of_range
from similarities.protocol import embedded

FRACTIONS = np.arange(0, 11, dtype=np.float32) / 10
EPISODES = 800
MEASURED = "deletion accuracy,insertion accuracy,deletion,insertion,whole,filled".split(",")


def run(options) -> dict:
    """Train, and test the maps of two-character canvases and of single drawings."""
    data, quick = options.data, options.quick
    config = few_shot.Config(
        data=str(data / "omniglot_images_background_small1.zip"),
        novel=str(data / "omniglot_images_background_small2.zip"),
        out=str(options.runs / "A"),
        rotations=True,
        episodes=20 if quick else EPISODES,
        every=10 if quick else 200,
        test_episodes=10 if quick else 100,
    )
    pictures = few_shot.load_data(config)
    network = take_apart(few_shot.main(config, data=pictures))
    train, novel = pictures
    embeddings = embedded(network, novel.images)
    mean = embedded(network, train.images).mean(0)
    rng, count = np.random.default_rng(0), 40 if quick else 1000
    few = Pictures(embeddings, novel.labels)
    result = {
        "network": accuracies(rng, few, 60 if quick else 600)
        | official(network, data / "omniglot_all_runs.zip"),
        "two characters": canvases(rng, network, mean, novel, embeddings, count),
        "support shares": shares(rng, network, novel, 40 if quick else 600),
    }
    queries = draw_queries(rng, novel.labels, options.curves or (8 if quick else 200))
    return result | {"ink": ink(network, mean, novel, embeddings, queries)}


def accuracies(rng, few: Pictures, episodes: int) -> dict[str, list[float]]:
    """Accuracy of episodes over embeddings, by way and shot."""
    found = {}
    for way, shot, query in ((5, 1, 15), (5, 5, 15), (20, 1, 10)):
        if way > len(np.unique(few.labels)):
            continue
        hits = []
        for _ in range(episodes):
            e = few.images[few_shot.draw(rng, few.labels, way, shot + query)]
            d = np.square(e[:, shot:, None] - e[:, :shot].mean(1)).sum(-1)
            hits.append((d.argmin(-1) == np.arange(way)[:, None]).mean())
        found[f"{way}-way {shot}-shot"] = interval(hits)
    return found


def official(network: Network, path: Path) -> dict[str, list[float]]:
    """Accuracy on the 20 official runs: the nearest training drawing wins."""
    hits, runs = [], []
    with zipfile.ZipFile(path) as archive:
        for number in range(1, 21):
            text = archive.read(f"run{number:02}/class_labels.txt").decode().split()
            pairs = list(zip(text[::2], text[1::2], strict=True))
            names = sorted({b for _, b in pairs})
            read = [
                np.stack([drawing(archive.read(n), 28) for n in of])
                for of in ([a for a, _ in pairs], names)
            ]
            tests, training = (embedded(network, images, 20) for images in read)
            nearest = np.square(tests[:, None] - training).sum(-1).argmin(1)
            hits += [names[n] == b for n, (_, b) in zip(nearest, pairs, strict=True)]
            runs += [number] * len(pairs)
    return {"20 official runs, 20-way 1-shot": interval(hits, runs)}


def canvases(rng, network: Network, mean, novel: Pictures, embeddings, count: int) -> dict:
    """Two unseen characters side by side; the partner is the prototype of one of them.

    Prototypes are of 5 drawings that are not shown. `same other` is the correlation with the map
    for the other character's prototype, `same same` with that for 5 more drawings of the same,
    `same random` with that for any drawing.
    """
    chosen = np.stack([few_shot.draw(rng, novel.labels, 2, 11) for _ in range(count)])
    shown = np.pad(novel.images[chosen[:, :, 0]], ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)))
    images = np.concatenate([shown[:, 0], shown[:, 1]], 2)
    first, second = (embeddings[chosen[:, :, a : a + 5]].mean(2) for a in (1, 6))
    side, rows = rng.integers(0, 2, count), np.arange(count)
    own, other, again = first[rows, side], first[rows, 1 - side], second[rows, side]
    halves = np.arange(64) // 32 == side[:, None]
    regions = np.broadcast_to(halves[:, None], (count, 32, 64))
    random = embeddings[np.random.default_rng(1).integers(0, len(embeddings), count)]
    partners = {"other": (other, own), "same": (again, other), "random": (random, other)}
    table, maps = protocol.map_test(
        network, mean, images, own, other, regions, partners=partners, batch=50, size=(32, 64)
    )
    found = protocol.summary(protocol.heavier(table))
    figure = {"images": images[:4], "maps": {name: m[:4] for name, m in maps.items()}}
    figure["titles"] = [f"partner: {'left' if s == 0 else 'right'}" for s in side[:4]]
    return {
        "maps": found,
        "peak of complete, less that of": protocol.differences(table["peak"]),
        "completeness": protocol.completeness(found),
        "canvases": count,
        "figure": figure,
    }


def shares(rng, network: Network, novel: Pictures, count: int) -> dict[str, list[float]]:
    """Of five supports one is of another character: how often is its share the smallest?"""
    chosen = np.stack([few_shot.draw(rng, novel.labels, 2, 6) for _ in range(count)])
    supports = np.concatenate([chosen[:, 0, 1:5], chosen[:, 1, :1]], 1)

    def one(state, query, supports):
        embed, x = network.net.embed(state), network.net.input
        _, share = support_shares(embed, size=None)(x(query), jax.vmap(x)(supports))
        total = protocol.cosine(embed(x(query)), jax.vmap(lambda s: embed(x(s)))(supports).mean(0))
        return share, total

    share, total = chunked(one, 20)(
        network.state, novel.images[chosen[:, 0, 0]], novel.images[supports]
    )
    return {
        "intruder has the smallest share": interval(share.argmin(1) == 4),
        "share of the intruder": interval(share[:, 4] / total),
        "mean share of the others": interval(share[:, :4].mean(1) / total),
        "|sum of shares - cosine|": interval(abs(share.sum(1) - total)),
    }


def draw_queries(rng, labels: np.ndarray, count: int) -> np.ndarray:
    """Episodes of 20 characters, five supports and one query each, of which the first is explained.

    Indices [count, 20, 6], queries last.
    """
    return np.stack([few_shot.draw(rng, labels, 20, 6) for _ in range(count)])


def ink(network: Network, mean, novel: Pictures, embeddings, chosen) -> dict:
    """Ink goes, or comes, in the order of the map: 20-way 5-shot accuracy and similarity.

    Both sides: the query with its prototype as the partner, and a support with the query. Areas
    are over the share of the ink; those of the similarity, -d2, as shares of its range.
    """
    prototypes = embeddings[chosen[:, :, :5]].mean(2)
    queries, supports = chosen[:, 0, 5], chosen[:, 0, 0]
    own, runner_up = prototypes[:, 0], nearest_other(embeddings[queries], prototypes)
    sides = {
        "query": (novel.images[queries], own),
        "support": (novel.images[supports], embeddings[queries]),
    }
    curve = chunked(partial(ink_curves, network, mean), 4)
    found = {}
    for side, (images, partner) in sides.items():
        values = curve(
            network.state, images, partner, runner_up, prototypes, np.arange(len(images))
        )
        ends = values["whole"][:, 0], values["filled"][:, 0]
        found[side] = {
            name: {w: share_of_range(values[w][:, i], *ends) for w in ("deletion", "insertion")}
            for i, name in enumerate(NAMES)
        }
        if side == "query":  # a support decides together with four others
            for i, name in enumerate(NAMES):
                for what in ("deletion accuracy", "insertion accuracy"):
                    found[side][name][what] = interval(values[what][:, i])
    return {"maps": found, "drawings": len(chosen)}


def nearest_other(queries: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """Of the prototypes [n, N, E] but the first, the one that is nearest to each query [n, E]."""
    d = np.square(queries[:, None] - prototypes).sum(-1)
    d[:, 0] = np.inf
    return prototypes[np.arange(len(d)), d.argmin(1)]


def ink_curves(network: Network, mean, state, image, own, other, prototypes, seed) -> dict:
    """Areas under the accuracy and the similarity, by map, [methods] each."""
    x, embed = network.net.input(image), network.net.embed(state)
    found = explain_all(network.net, state, mean, x, own, other, jax.random.key(seed))
    inked = image[..., 0] > 0

    def areas(heatmap):
        place = ranks(jnp.where(inked, heatmap, heatmap.min() - 1))
        gone = place[None] < jnp.round(FRACTIONS * inked.sum())[:, None, None]
        e = jax.vmap(embed)(
            jnp.concatenate([x[None] * ~gone[..., None], x[None] * gone[..., None]])
        )
        d = jnp.square(e[:, None] - prototypes[None]).sum(-1)
        right = (d.argmin(1) == 0).reshape(2, -1).mean(1)
        likeness = protocol.negative_distance(e, own[None]).reshape(2, -1)
        values = [*right, *jnp.trapezoid(likeness, FRACTIONS), likeness[0, 0], likeness[1, 0]]
        return dict(zip(MEASURED, values, strict=True))

    return jax.vmap(areas)(jnp.stack(list(heatmaps(found, inked.shape).values())))
