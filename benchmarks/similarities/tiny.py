"""B. Prototypical networks on Tiny-ImageNet: eight classes that were not trained on, with boxes.

Pictures of the new classes come from the training file, whose twelve other classes train.
"""

from typing import Any

import numpy as np

from jaxfmi.train import few_shot
from jaxfmi.train.data import load_split
from jaxfmi.train.pictures import Pictures, choose
from similarities import protocol
from similarities.maps import NAMES, Network, take_apart
from similarities.measures import COVER, box_accuracy, box_mask
from similarities.omniglot import accuracies, nearest_other
from similarities.protocol import embedded

NOVEL = (1, 3, 6, 8, 11, 13, 16, 18)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EPISODES = 600
SIDE = 64


def run(options) -> dict:
    """Train, and test the maps of single objects in boxes and of two pictures side by side."""
    quick = options.quick
    config = few_shot.Config(
        data=str(options.data / "tiny_imagenet20_train.npz"),
        out=str(options.runs / "B"),
        held_out=NOVEL,
        mirror=True,
        way=5,
        query=10,
        test_shot=5,
        episodes=4 if quick else EPISODES,
        every=2 if quick else 200,
        test_episodes=4 if quick else 100,
        learning_rate=2e-3,
        widths=(32, 32, 64, 64),
        pools=(1, 2, 3),
        mean=MEAN,
        std=STD,
    )
    split = load_split(config.data)
    train, novel = new_classes(Pictures(split.images, split.labels, split.names))
    boxes = fractions(split.boxes[np.isin(split.labels, NOVEL)], SIDE)
    model = few_shot.main(config, data=(train, novel))
    network = take_apart(model, mean=MEAN, std=STD)
    embeddings = embedded(network, novel.images)
    mean = embedded(network, train.images).mean(0)
    rng, few = np.random.default_rng(0), Pictures(embeddings, novel.labels)
    chosen = np.stack([few_shot.draw(rng, few.labels, 5, 11) for _ in range(6 if quick else 600)])
    curves = options.curves or (4 if quick else 100)
    return {
        "network": accuracies(rng, few, 60 if quick else 600),
        "boxes": in_boxes(rng, network, mean, novel, embeddings, boxes, chosen),
        "two objects": canvases(rng, network, mean, novel, embeddings, 20 if quick else 1000),
        "curves": both_sides(network, mean, novel, embeddings, chosen[:curves]),
    }


def new_classes(pictures: Pictures) -> tuple[Pictures, Pictures]:
    """The twelve classes to train on, and the eight new ones."""
    return choose(pictures, [c for c in range(20) if c not in NOVEL]), choose(pictures, NOVEL)


def fractions(boxes: np.ndarray, side: int) -> np.ndarray:
    """Boxes in pixels, both ends included, as fractions of the side."""
    return (boxes + np.array([0, 0, 1, 1])) / side


def in_boxes(rng, network: Network, mean, novel: Pictures, embeddings, boxes, chosen) -> dict:
    """Episodes of 5 classes, 5 supports and one query of each: indices [episodes, 5, 11].

    The partner is the prototype of the query's class; the margin is to the nearest other class.
    `same other` is the correlation with the map for that class, `same same` with the map for five
    other supports of the right class, `same random` with that for any picture.
    """
    episodes = len(chosen)
    prototypes, again = (embeddings[chosen[:, :, a : a + 5]].mean(2) for a in (0, 5))
    queries = chosen[:, :, 10]
    groups = np.repeat(np.arange(episodes), 5)
    own, at = prototypes.reshape(episodes * 5, -1), queries.ravel()
    turned = np.stack([np.roll(prototypes, -i, 1) for i in range(5)], 1)  # its own class first
    turned = turned.reshape(episodes * 5, 5, -1)
    other = nearest_other(embeddings[at], turned)
    right = np.square(embeddings[at][:, None] - turned).sum(-1).argmin(1) == 0
    regions = np.stack([box_mask(box, (SIDE, SIDE)) for box in boxes[at]])
    second = again.reshape(episodes * 5, -1)
    random = embeddings[np.random.default_rng(1).integers(0, len(embeddings), len(at))]
    partners = {"other": (other, own), "same": (second, other), "random": (random, other)}
    table, maps = protocol.map_test(
        network,
        mean,
        novel.images[at],
        own,
        other,
        regions,
        partners=partners,
        batch=25,
        size=(SIDE, SIDE),
    )
    small = regions.mean((1, 2)) < COVER
    hidden = {m: {n: np.where(small, v, np.nan) for n, v in t.items()} for m, t in table.items()}
    found = protocol.summary(hidden | {k: table[k] for k in ("missing", "score")}, groups)
    return {
        "maps": found,
        "peak of complete, less that of": protocol.differences(hidden["peak"], groups),
        "completeness": protocol.completeness(found),
        "localisation": boxes_by_map(maps, boxes[at], 1000, right, groups),
        "episodes": episodes,
        "small boxes": int(small.sum()),
        "figure": {
            "images": novel.images[at[:4]],
            "maps": {name: m[:4] for name, m in maps.items()},
            "titles": [novel.names[c].split(",")[0] for c in novel.labels[at[:4]]],
        },
    }


def boxes_by_map(maps, boxes, count: int, right=None, groups=None) -> dict[str, dict[str, Any]]:
    """Box accuracies of the first pictures that have a map, `count` at the most, by map."""
    found = {}
    for name in NAMES:
        at = np.flatnonzero(np.isfinite(maps[name]).all((1, 2)))[:count]
        rest = (None if v is None else v[at] for v in (right, groups))
        found[name] = box_accuracy(maps[name][at], [boxes[i] for i in at], *rest)
    return found


def canvases(rng, network: Network, mean, novel: Pictures, embeddings, count: int) -> dict:
    """Pictures of two new classes side by side; the partner is the 5-shot prototype of one."""
    chosen = np.stack([few_shot.draw(rng, novel.labels, 2, 6) for _ in range(count)])
    images = np.concatenate([novel.images[chosen[:, 0, 0]], novel.images[chosen[:, 1, 0]]], 2)
    prototypes = embeddings[chosen[:, :, 1:]].mean(2)
    side, rows = rng.integers(0, 2, count), np.arange(count)
    own, other = prototypes[rows, side], prototypes[rows, 1 - side]
    free = np.random.default_rng(1)
    again = np.stack(
        [
            embeddings[free.choice(np.flatnonzero(novel.labels == c), 5, replace=False)].mean(0)
            for c in novel.labels[chosen[rows, side, 0]]
        ]
    )
    random = embeddings[free.integers(0, len(embeddings), count)]
    halves = np.arange(2 * SIDE) // SIDE == side[:, None]
    regions = np.broadcast_to(halves[:, None], (count, SIDE, 2 * SIDE))
    table, maps = protocol.map_test(
        network,
        mean,
        images,
        own,
        other,
        regions,
        partners={"other": (other, own), "same": (again, other), "random": (random, other)},
        batch=20,
        size=(SIDE, 2 * SIDE),
    )
    found = protocol.summary(protocol.heavier(table))
    return {
        "maps": found,
        "peak of complete, less that of": protocol.differences(table["peak"]),
        "completeness": protocol.completeness(found),
        "canvases": count,
        "figure": {
            "images": images[:4],
            "maps": {name: m[:4] for name, m in maps.items()},
            "titles": [f"partner: {'left' if s == 0 else 'right'}" for s in side[:4]],
        },
    }


def both_sides(network: Network, mean, novel: Pictures, embeddings, chosen) -> dict:
    """Deletion and insertion in the query, and in a support with the query as its partner."""
    prototypes = embeddings[chosen[:, :, :5]].mean(2)
    queries, supports = chosen[:, 0, 10], chosen[:, 0, 0]
    runner_up = nearest_other(embeddings[queries], prototypes)
    sides = {
        "query": (novel.images[queries], prototypes[:, 0]),
        "support": (novel.images[supports], embeddings[queries]),
    }
    found = {
        side: protocol.curve_test(network, mean, images, own, runner_up, protocol.negative_distance)
        for side, (images, own) in sides.items()
    }
    return {"maps": found, "pictures": len(chosen)}
