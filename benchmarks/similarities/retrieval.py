"""D. Retrieval with MobileNetV1 0.75 at 192 pixels, which knows the classes: nothing is trained."""

import csv
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxfmi.metrics.ranking import top
from jaxfmi.models import load, mobilenet_v1
from jaxfmi.references import blur
from jaxfmi.train.data import load_split
from similarities import protocol
from similarities.maps import NAMES, Network, explain, heatmaps, occlude, take_apart
from similarities.measures import COVER, box_mask, chunked, interval
from similarities.protocol import embedded
from similarities.tiny import boxes_by_map, fractions

SIDE, GRID = 192, 64  # of the pictures, and of the maps that boxes are found in
SHARES = (0.1, 0.2, 0.4)
OCCLUDED = 30  # pictures that SBSM explains


def run(options) -> dict:
    """Test the maps of queries and of their nearest neighbours in two sets, and of mosaics."""
    quick, data = options.quick, options.data
    model = mobilenet_v1(width=0.75, padding="SAME", norm=False, num_classes=1001)
    load(model, data / "weights/mobilenet_v1_0.75_192.npz").eval()
    network = take_apart(model, mean=(0.5,), std=(0.5,))
    rng = np.random.default_rng(0)
    tiny, imagenet = tiny_imagenet(data), imagenet_val(data)
    if quick:
        tiny = tiny.part(np.arange(0, 1000, 50))
        paired = np.bincount(imagenet.labels)[imagenet.labels] > 1
        imagenet = imagenet.part(np.flatnonzero(paired)[:40])
    curves = options.curves or (1 if quick else 12)
    found = {}
    for name, collection in (("Tiny-ImageNet", tiny), ("ImageNet", imagenet)):
        e = embedded(network, collection.images, 50)
        found[name] = in_boxes(rng, network, collection, e)
        if name == "Tiny-ImageNet":
            found["curves"] = both_sides(network, collection, e, rng, curves)
            found["deleting"] = deleting(
                network, collection, e, rng, options.curves or (4 if quick else 300)
            )
    return found | {"mosaic": mosaics(rng, network, imagenet, e, 4 if quick else 300)}


class Collection:
    """Pictures uint8 [N, 192, 192, 3], labels [N], and boxes of fractions [n, 4] of each."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, boxes: list[np.ndarray]):
        self.images, self.labels, self.boxes = images, labels, boxes

    def part(self, at: np.ndarray) -> "Collection":
        """Those with these indices."""
        return Collection(self.images[at], self.labels[at], [self.boxes[i] for i in at])


def squared(image: Image.Image) -> np.ndarray:
    """A picture at the network's size."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def tiny_imagenet(data) -> Collection:
    """The 1,000 pictures of 20 classes of the validation part."""
    split = load_split(data / "tiny_imagenet20_val.npz")
    images = np.stack([squared(Image.fromarray(image)) for image in split.images])
    return Collection(images, split.labels, list(fractions(split.boxes, 64)))


def imagenet_val(data) -> Collection:
    """The 400 pictures of 325 classes."""
    with (data / "imagenet_val/index.csv").open() as file:
        rows = list(csv.DictReader(file))
    images = np.stack([squared(Image.open(data / "imagenet_val" / r["file"])) for r in rows])
    boxes = [np.array([b.split(":") for b in r["boxes"].split()], float) for r in rows]
    return Collection(images, np.array([int(r["class_index"]) for r in rows]), boxes)


def unit(e: np.ndarray) -> np.ndarray:
    """Embeddings [N, E] divided by their norms."""
    return e / np.maximum(np.linalg.norm(e, axis=1, keepdims=True), 1e-12)


def neighbours(e: np.ndarray) -> np.ndarray:
    """The nearest other picture by the cosine, [N]."""
    cosines = unit(e) @ unit(e).T
    np.fill_diagonal(cosines, -np.inf)
    return cosines.argmax(1)


def another_of(labels: np.ndarray, rng) -> np.ndarray:
    """For each picture another of its class, [N]; itself where there is none."""
    found = np.arange(len(labels))
    for i, label in enumerate(labels):
        others = np.setdiff1d(np.flatnonzero(labels == label), [i])
        if len(others):
            found[i] = rng.choice(others)
    return found


def recall(nearest: np.ndarray, labels: np.ndarray) -> list[float]:
    """How often the nearest other picture is of the same class."""
    return interval(labels[nearest] == labels)


def in_boxes(rng, network: Network, c: Collection, e: np.ndarray) -> dict:
    """Every picture as the query, the nearest other as its partner; maps of both.

    The margin is to a picture drawn at random, `same random` is the correlation with the map for
    it, `same other` with that for a random picture of another class, `same same` with that for one
    of the same class, where there is another.
    """
    nearest, count = neighbours(e), len(e)
    random = (np.arange(count) + rng.integers(1, count, count)) % count
    foreign = np.array([rng.choice(np.flatnonzero(c.labels != label)) for label in c.labels])
    kin = another_of(c.labels, np.random.default_rng(1))
    regions = np.stack([box_mask(b, (SIDE, SIDE)) for b in c.boxes])
    small = regions.mean((1, 2)) < COVER
    result = {"recall@1": recall(nearest, c.labels), "small boxes": int(small.sum())}
    result["recall@1, centred"] = recall(neighbours(e - e.mean(0)), c.labels)
    for side, at, partner in (
        ("query", np.arange(count), nearest),
        ("neighbour", nearest, np.arange(count)),
    ):
        pairs = {"random": (e[random], e[partner]), "other": (e[foreign], e[partner])}
        pairs["same"] = (e[kin[at]], e[random])
        table, maps = protocol.map_test(
            network,
            e.mean(0),
            c.images[at],
            e[partner],
            e[random],
            regions[at],
            partners=pairs,
            batch=20,
            size=(GRID, GRID),
            occluded=OCCLUDED,
        )
        for values in table["same same"].values():
            values[kin[at] == at] = np.nan
        shown = small[at]
        hidden = {
            m: {n: np.where(shown, v, np.nan) for n, v in t.items()} for m, t in table.items()
        }
        found = protocol.summary(hidden | {k: table[k] for k in ("missing", "score")})
        result[f"maps, {side}"] = found
        if side == "query":
            result["peak of complete, less that of"] = protocol.differences(hidden["peak"])
            result["completeness"] = protocol.completeness(found)
            result["localisation"] = boxes_by_map(maps, c.boxes, count)
            result["figure"] = {
                "images": c.images[:4],
                "maps": {name: m[:4] for name, m in maps.items()},
                "titles": [f"cosine {v:.2f}" for v in (unit(e) * unit(e[nearest])).sum(1)[:4]],
            }
    return result


def both_sides(network: Network, c: Collection, e, rng, count: int) -> dict:
    """Deletion and insertion in the query and in its nearest neighbour."""
    nearest = neighbours(e)
    at = rng.permutation(len(e))[:count]
    random = (at + rng.integers(1, len(e), count)) % len(e)
    sides = {"query": (at, nearest[at]), "neighbour": (nearest[at], at)}
    found = {
        side: protocol.curve_test(network, e.mean(0), c.images[a], e[b], e[random], batch=1)
        for side, (a, b) in sides.items()
    }
    return {"maps": found, "pictures": count}


def deleting(network: Network, c: Collection, e, rng, count: int) -> dict:
    """Recall@1 of queries whose highest 10, 20, 40 % by the map for the neighbour are blurred."""
    nearest = neighbours(e)
    at = rng.permutation(len(e))[:count]
    random = (at + rng.integers(1, len(e), len(at))) % len(e)
    mean = e.mean(0)

    def one(explainer, state, image, own, other, seed):
        x, embed = network.net.input(image), network.net.embed(state)
        found = explainer(network.net, state, mean, x, own, other, jax.random.key(seed))
        fill = blur(SIDE / 8)(x)

        def deleted(heatmap, share):
            return embed(jnp.where(top(heatmap, share * heatmap.size)[..., None], fill, x))

        shares = jax.vmap(deleted, (None, 0))
        return {n: shares(h, jnp.array(SHARES)) for n, h in heatmaps(found, x.shape[:2]).items()}

    changed = {}
    for explainer, few in ((explain, count), (occlude, OCCLUDED)):
        parts = (a[:few] for a in (c.images[at], e[nearest[at]], e[random], at))
        changed |= chunked(partial(one, explainer), 2)(network.state, *parts)
    found = {name: {} for name in NAMES}
    for name, embeddings in changed.items():  # [n, shares, E]
        own = at[: len(embeddings)]
        for j, share in enumerate(SHARES):
            cosines = unit(embeddings[:, j]) @ unit(e).T
            cosines[np.arange(len(own)), own] = -np.inf
            hits = c.labels[cosines.argmax(1)] == c.labels[own]
            found[name][f"{share:.0%}"] = interval(hits)
    whole = c.labels[nearest[at]] == c.labels[at]
    return {
        "recall@1, whole": interval(whole),
        "recall@1, whole, of those that SBSM explains": interval(whole[:OCCLUDED]),
        "maps": found,
    }


def mosaics(rng, network: Network, c: Collection, e, count: int) -> dict:
    """Four pictures of different classes in one; the partner is another picture of one's class.

    The margin is to the embedding of another of the four, by itself; `same other` is the
    correlation with the map for that, `same random` with that for any picture. (Most classes have
    two pictures, so that there is no third for `same same`.)
    """
    paired = [i for i, label in enumerate(c.labels) if (c.labels == label).sum() > 1]
    half, images, own, other, tiles = SIDE // 2, [], [], [], rng.integers(0, 4, count)
    for tile in tiles:
        target = rng.choice(paired)
        partner = rng.choice(np.setdiff1d(np.flatnonzero(c.labels == c.labels[target]), [target]))
        shown = [target]
        while len(shown) < 4:
            candidate = rng.integers(len(c.labels))
            if c.labels[candidate] not in c.labels[shown]:
                shown.append(candidate)
        order = np.roll(shown, tile)  # the target comes to be at `tile`
        small = [
            np.asarray(Image.fromarray(c.images[i]).resize((half, half), Image.Resampling.BOX))
            for i in order
        ]
        images.append(np.block([[[small[0]], [small[1]]], [[small[2]], [small[3]]]]))
        own.append(e[partner])
        other.append(e[shown[1]])
    images = np.stack(images)
    regions = np.stack([tile_mask(tile, (SIDE, SIDE)) for tile in tiles])
    own, other = np.stack(own), np.stack(other)
    random = e[np.random.default_rng(1).integers(0, len(e), count)]
    table, maps = protocol.map_test(
        network,
        e.mean(0),
        images,
        own,
        other,
        regions,
        partners={"other": (other, own), "random": (random, other)},
        batch=20,
        size=(GRID, GRID),
        occluded=OCCLUDED,
    )
    found = protocol.summary(table)
    return {
        "maps": found,
        "peak of complete, less that of": protocol.differences(table["peak"]),
        "completeness": protocol.completeness(found),
        "mosaics": count,
        "figure": {
            "images": images[:4],
            "maps": {name: m[:4] for name, m in maps.items()},
            "titles": [f"partner of tile {tile + 1}" for tile in tiles[:4]],
        },
    }


def tile_mask(tile: int, size: tuple[int, int]) -> np.ndarray:
    """Mark a quarter of the picture, counted by rows."""
    mask = np.zeros(size, bool)
    row, column = divmod(int(tile), 2)
    height, width = size[0] // 2, size[1] // 2
    mask[row * height : (row + 1) * height, column * width : (column + 1) * width] = True
    return mask
