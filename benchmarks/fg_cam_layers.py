"""Does FG-CAM hold from layer to layer, and beat relevance propagation at the pixels?

    python benchmarks/fg_cam_layers.py               # computes all and writes the page
    python benchmarks/fg_cam_layers.py --limit 8     # to try it on a CPU
    python benchmarks/fg_cam_layers.py --page        # only writes the page, of the rows there are

Every picture with boxes has a map of FG-CAM at every tagged layer, from the last down to the
pixels, with and without denoising, and one of each LRP composite. All maps have the input's size,
all layers come from one pass, and one compiled program measures all maps. Needs the folder
``shared`` beside the checkout.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import polars as pl
from fg_cam_layers_page import PIXELS, write_page
from measure import environment

import jaxfmi
from jaxfmi import class_score, metrics, taps
from jaxfmi.command import datasets, networks
from jaxfmi.explainer import layer_names
from jaxfmi.modules import functional, probability

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
OUT = HERE / "fg_cam_layers"
DENOISE = 0.1  # the authors' share of the rank
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
    return Pictures(inputs, np.array([s.label for s in samples]), regions)


def places(network, x) -> list[str]:
    """The last layer, those before it, and the pixels."""
    score = class_score(network.model)
    (last,) = layer_names(score, "auto", x, 0)
    names = list(taps.tags(score, x, 0))
    return [*reversed(names[: names.index(last) + 1]), PIXELS]


def methods(at: list[str]) -> list[str]:
    """What the maps of ``explainer`` are called, in their order."""
    fg_cam = [f"{kind} {place}" for kind in ("fg_cam", "fg_cam denoised") for place in at]
    return [*fg_cam, *(f"lrp {name}" for name in COMPOSITES)]


def explainer(apply, at: list[str]):
    """All maps of a batch as a compiled function: ``(params, x, labels) -> [m, n, H, W]``."""

    def explain(score, x, label):
        maps = jaxfmi.fg_cam(score, at[0], at=at)(x, label)
        maps += jaxfmi.fg_cam(score, at[0], at=at, denoise=DENOISE)(x, label)
        for name in COMPOSITES:  # biases are no part of Deep Taylor decomposition
            maps.append(jaxfmi.lrp(score, name, bias=name != "deep_taylor")(x, label))
        return jax.numpy.stack(maps)

    @jax.jit
    def batch(params, x, labels):
        return jax.vmap(partial(explain, class_score((apply, params))), out_axes=1)(x, labels)

    return batch


def measurer(apply, steps: int):
    """Metrics of maps [n, H, W] as a compiled function, by name, each [n]."""

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


def evaluate(network, pictures: Pictures, at: list[str], options) -> pl.DataFrame:
    """One row per picture and method."""
    apply, params = functional(network.model)
    explain, measure = explainer(apply, at), measurer(apply, options.steps)
    n, size = len(pictures.labels), min(options.batch, len(pictures.labels))
    parts = []
    for start in range(0, n, size):
        index = np.minimum(np.arange(start, start + size), n - 1)  # the last batch is filled up
        x, labels, regions = jax.device_put([a[index] for a in pictures])
        maps = explain(params, x, labels)
        found = [measure(params, x, labels, m, regions) for m in maps]  # nothing is waited for
        for method, values in zip(methods(at), jax.device_get(found), strict=True):
            columns = {k: v[: n - start].astype(np.float32) for k, v in values.items()}
            parts.append(pl.DataFrame({"index": index[: n - start], **columns}))
            parts[-1].insert_column(0, pl.Series("method", [method] * len(parts[-1])))
        print(f"{min(start + size, n)} of {n} pictures", flush=True)
    return pl.concat(parts).sort("method", "index")


def compute(name: str, options) -> None:
    """Measure one network and keep its rows."""
    case = CASES[name]
    weights = options.data / "weights" / f"{case.weights}.npz"
    network = networks.open_network(name, str(weights), case.options, case.preprocess)
    pictures = read(network, options.data / "imagenet_val", options.limit)
    at = places(network, pictures.inputs[0])
    print(f"{name}: {len(pictures.labels)} pictures, {len(methods(at))} maps of each", flush=True)
    rows = evaluate(network, pictures, at, options)
    options.out.mkdir(parents=True, exist_ok=True)
    rows.write_parquet(options.out / f"{name}.parquet")
    setting = {"network": name, "places": at, "composites": list(COMPOSITES)}
    setting |= {"pictures": len(pictures.labels), "steps": options.steps, "denoise": DENOISE}
    setting |= {"precision": options.precision, "environment": environment()}
    write_page(options.out, setting)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--limit", type=int, help="pictures, to try it")
    parser.add_argument("--steps", type=int, default=10, help="of the curves")
    parser.add_argument("--batch", type=int, default=4 if jax.default_backend() == "cpu" else 50)
    parser.add_argument("--precision", default="highest", choices=("highest", "default"))
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    options = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", options.precision)
    if options.page:
        write_page(options.out)
    else:
        for name in options.networks:
            compute(name, options)
