"""Does FG-CAM hold from layer to layer, and beat relevance propagation at the pixels?

    python benchmarks/fg_cam_layers.py               # computes all and writes the page
    python benchmarks/fg_cam_layers.py --every       # every tagged layer: for a GPU
    python benchmarks/fg_cam_layers.py --limit 8     # to try it
    python benchmarks/fg_cam_layers.py --kept        # only how much of the CAM's total arrives
    python benchmarks/fg_cam_layers.py --page        # only writes the page, of the rows there are

Every picture with boxes has a map of FG-CAM at the last layer of each resolution and at the pixels,
with and without denoising, and one of each LRP composite. All maps have the input's size, all
layers come from one pass, and one compiled program measures all maps. A run that was stopped goes
on where it was. Needs the folder ``shared`` beside the checkout.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from fg_cam_layers_page import PIXELS, write_page
from measure import environment

import jaxfmi
from jaxfmi import class_score, metrics, taps
from jaxfmi.command import datasets, networks, tables
from jaxfmi.explainer import layer_names
from jaxfmi.modules import functional, probability

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
OUT = HERE / "fg_cam_layers"
DENOISE = 0.1  # the authors' share of the rank
MEASURE = "measure"
KEPT = 50  # pictures whose totals are compared
COMPOSITES = ("epsilon_plus_flat", "epsilon_alpha2_beta1_flat", "epsilon_gamma_box", "deep_taylor")


class Case(NamedTuple):
    """Weights, and what they expect."""

    weights: str
    options: tuple[str, ...]
    preprocess: str


CASES = {
    "squeezenet1_0": Case("squeezenet_v1.0", ("padding=1",), "caffe"),
    "mobilenet_v2": Case(
        "mobilenet_v2_1.0_224", ("num_classes=1001", "norm=false", "padding=SAME"), "tensorflow"
    ),
}


class Pictures(NamedTuple):
    """All that is measured on, in arrays."""

    inputs: np.ndarray  #: [n, H, W, 3]
    labels: np.ndarray  #: [n]
    regions: np.ndarray  #: bool [n, H, W]


def read(network, folder: Path, limit: int | None) -> Pictures:
    """All pictures with boxes, or the first so many."""
    data = datasets.open_data(folder, limit=limit)
    count = networks.outputs(network)
    data = datasets.shift(data, datasets.label_offset(None, count), count)
    samples = [s for s in data.samples if s.boxes]
    with ThreadPoolExecutor() as pool:
        inputs = np.stack(list(pool.map(lambda s: network.preprocess(s.open()), samples)))
    regions = np.stack([datasets.to_region(s.boxes, inputs.shape[1:3]) for s in samples])
    return Pictures(inputs, np.array([s.label for s in samples], np.int32), regions)


def places(network, x, every: bool) -> list[str]:
    """Layers from the last one on, of each resolution the last or every one, and the pixels."""
    score = class_score(network.model)
    (last,) = layer_names(score, "auto", x, 0)
    tags = list(taps.tags(score, x, 0))
    names = tags[: tags.index(last) + 1] if every else jaxfmi.sise_layers(score, x, 0)
    return [*reversed(names), PIXELS]


def explainers(at: list[str]) -> dict:
    """What the maps are of: ``score -> explainer``, by the names of one or several maps."""

    def lrp(score, name):  # biases are no part of Deep Taylor decomposition
        return jaxfmi.lrp(score, name, bias=name != "deep_taylor")

    fg_cam = {
        tuple(f"{kind} {place}" for place in at): partial(
            jaxfmi.fg_cam, layer=at[0], at=at, denoise=denoise
        )
        for kind, denoise in (("fg_cam", 0.0), ("fg_cam denoised", DENOISE))
    }
    return fg_cam | {(f"lrp {name}",): partial(lrp, name=name) for name in COMPOSITES}


def mapper(apply, make):
    """An explainer as a function ``(params, x, labels) -> [m, n, H, W]``, to be compiled."""

    @jax.jit
    def batch(params, x, labels):
        explain = make(class_score((apply, params)))
        maps = jax.vmap(lambda x, label: jnp.stack(jax.tree.leaves(explain(x, label))))
        return maps(x, labels).swapaxes(0, 1)

    return batch


def measurer(apply, steps: int):
    """Metrics of maps [n, H, W] by name, each [n], as a function to be compiled."""

    def measure(score, x, label, heatmap, region):
        return {
            "deletion": metrics.deletion(score, steps=steps)(x, heatmap, label),
            "insertion": metrics.insertion(score, steps=steps)(x, heatmap, label),
            "energy_pointing": metrics.energy_pointing(heatmap, region),
            "pointing": metrics.pointing(heatmap, region),
            "box_hit": metrics.box_hit(heatmap, region),
        }

    @jax.jit
    def batch(params, x, labels, maps, regions):
        score = class_score((apply, params), probability)
        return jax.vmap(partial(measure, score))(x, labels, maps, regions)

    return batch


def compiled(apply, params, pictures: Pictures, at: list[str], size: int, steps: int):
    """All programs for batches of one size, the explainers' by the names of their maps.

    Compiling takes longer than running, and several threads do it at a time.
    """
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype), pictures)
    lowered = {
        names: mapper(apply, make).lower(params, like.inputs, like.labels)
        for names, make in explainers(at).items()
    }
    maps = jax.ShapeDtypeStruct(like.regions.shape, jnp.float32)
    lowered[MEASURE] = measurer(apply, steps).lower(
        params, like.inputs, like.labels, maps, like.regions
    )
    with ThreadPoolExecutor() as pool:
        programs = list(pool.map(lambda program: program.compile(), lowered.values()))
    found = dict(zip(lowered, programs, strict=True))
    return found, found.pop(MEASURE)


def evaluate(network, pictures: Pictures, settings: dict, options) -> None:
    """Add a row per picture and method to the table of a network, unless it has them."""
    apply, params = functional(network.model)
    out, n = options.out / settings["network"], len(pictures.labels)
    have = tables.load(out)
    if have.settings:
        tables.compare(have.settings, settings, out)
    todo = sorted(set(range(n)) - {index for _, index in have.done()})
    if not todo:
        return
    size = min(options.batch, n)
    programs = compiled(apply, params, pictures, settings["places"], size, options.steps)
    print("compiled", flush=True)
    for start in range(0, len(todo), size):
        index = np.array(todo[start : start + size])
        filled = np.resize(index, size)  # the last batch is filled up
        batch = jax.device_put([a[filled] for a in pictures])
        found = measured(*programs, params, *batch)
        tables.add(out, tables.Table(rows(index, found), settings, made=environment()))
        print(f"{n - len(todo) + start + len(index)} of {n} pictures", flush=True)
    tables.finish(out, tables.load(out))


def measured(explain, measure, params, x, labels, regions) -> dict[str, dict[str, np.ndarray]]:
    """The metrics of all maps of a batch, by the map's name."""
    found = {}
    for names, program in explain.items():
        for name, maps in zip(names, program(params, x, labels), strict=True):
            found[name] = measure(params, x, labels, maps, regions)  # nothing is waited for
    return jax.device_get(found)


def rows(index: np.ndarray, found: dict[str, dict[str, np.ndarray]]) -> pl.DataFrame:
    """One row per picture and method."""
    parts = []
    for name, values in found.items():
        columns = {k: v[: len(index)].astype(np.float32) for k, v in values.items()}
        parts.append(pl.DataFrame({"method": [name] * len(index), "index": index, **columns}))
    return pl.concat(parts)


def kept(network, pictures: Pictures, at: list[str]) -> dict[str, float]:
    """The total of FG-CAM's map at every place, as a share of the CAM's: medians of pictures."""
    apply, params = functional(network.model)

    @jax.jit
    def totals(params, x, label):
        explain = jaxfmi.fg_cam(class_score((apply, params)), at[0], at=at, size=None)
        sums = jnp.stack([m.sum() for m in explain(x, label)])
        return sums / sums[0]

    pairs = zip(pictures.inputs, pictures.labels, strict=True)
    shares = np.median([totals(params, x, label) for x, label in pairs], 0)
    return dict(zip(at, shares.tolist(), strict=True))


def compute(name: str, options) -> None:
    """Measure one network and write the page anew."""
    case = CASES[name]
    weights = options.data / "weights" / f"{case.weights}.npz"
    network = networks.open_network(name, str(weights), case.options, case.preprocess)
    pictures = read(network, options.data / "imagenet_val", options.limit)
    at = places(network, pictures.inputs[0], options.every)
    (options.out / name).mkdir(parents=True, exist_ok=True)
    few = Pictures(*(a[:KEPT] for a in pictures))
    found = {"pictures": len(few.labels), "shares": kept(network, few, at)}
    (options.out / name / "kept.json").write_text(json.dumps(found, indent=1) + "\n")
    if options.kept:
        return
    print(f"{name}: {len(pictures.labels)} pictures", flush=True)
    methods = {method: {} for names in explainers(at) for method in names}
    settings = {"network": name, "places": at, "pictures": len(pictures.labels)}
    settings |= {"steps": options.steps, "denoise": DENOISE, "precision": options.precision}
    evaluate(network, pictures, settings | {"methods": methods}, options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--limit", type=int, help="pictures, to try it")
    parser.add_argument("--every", action="store_true", help="every tagged layer")
    parser.add_argument("--steps", type=int, default=8, help="of the curves")
    parser.add_argument("--batch", type=int, default=4 if jax.default_backend() == "cpu" else 50)
    parser.add_argument("--precision", default="highest", choices=("highest", "default"))
    parser.add_argument("--kept", action="store_true", help="only how much of the CAM arrives")
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    options = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", options.precision)
    if options.page:
        write_page(options.out)
    else:
        for name in options.networks:
            compute(name, options)
        write_page(options.out)
