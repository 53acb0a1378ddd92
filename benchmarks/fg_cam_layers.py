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
import jax.numpy as jnp
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
MEASURE = "measure"
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


def places(network, x) -> list[str]:
    """The last layer, those before it, and the pixels."""
    score = class_score(network.model)
    (last,) = layer_names(score, "auto", x, 0)
    names = list(taps.tags(score, x, 0))
    return [*reversed(names[: names.index(last) + 1]), PIXELS]


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


def evaluate(network, pictures: Pictures, at: list[str], options) -> pl.DataFrame:
    """One row per picture and method."""
    apply, params = functional(network.model)
    n, size = len(pictures.labels), min(options.batch, len(pictures.labels))
    explain, measure = compiled(apply, params, pictures, at, size, options.steps)
    print("compiled", flush=True)
    parts = []
    for start in range(0, n, size):
        index = np.minimum(np.arange(start, start + size), n - 1)  # the last batch is filled up
        x, labels, regions = jax.device_put([a[index] for a in pictures])
        found = {}
        for names, program in explain.items():
            for name, maps in zip(names, program(params, x, labels), strict=True):
                found[name] = measure(params, x, labels, maps, regions)  # nothing is waited for
        for name, values in jax.device_get(found).items():
            columns = {k: v[: n - start].astype(np.float32) for k, v in values.items()}
            parts.append(pl.DataFrame({"index": index[: n - start], **columns}))
            parts[-1].insert_column(0, pl.Series("method", [name] * len(parts[-1])))
        print(f"{min(start + size, n)} of {n} pictures", flush=True)
    return pl.concat(parts).sort("method", "index")


def compute(name: str, options) -> None:
    """Measure one network and keep its rows."""
    case = CASES[name]
    weights = options.data / "weights" / f"{case.weights}.npz"
    network = networks.open_network(name, str(weights), case.options, case.preprocess)
    pictures = read(network, options.data / "imagenet_val", options.limit)
    at = places(network, pictures.inputs[0])
    print(f"{name}: {len(pictures.labels)} pictures", flush=True)
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
