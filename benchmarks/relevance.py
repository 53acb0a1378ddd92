"""What relevance costs, against the network's own forward pass, zennit and plain PyTorch.

    python benchmarks/relevance.py                     # the ratios to the forward pass
    python benchmarks/relevance.py --peers             # also zennit, and FG-CAM layer by layer
    python benchmarks/relevance.py --compile           # instead, tracing and compiling ResNet-50

Weights are random, which changes no cost, and are arguments of all programs. Relevance divides by
sums that nearly cancel, so that everything is computed in full float32 unless ``--precision`` says
otherwise; both sides of a comparison have the same. Before times are compared, maps are.
"""

import argparse
import os
import time
from importlib.metadata import PackageNotFoundError, version

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory, too

import jax
import numpy as np
from explain import torch_twin
from measure import alternate, report, summary

import jaxfmi
from jaxfmi import class_score, models
from jaxfmi.modules import functional

LAST = {"vgg16_bn": "relu5_3", "resnet50": "stage4"}
METHODS = {
    "lrp, epsilon_plus_flat": lambda score, layer: jaxfmi.lrp(score, "epsilon_plus_flat"),
    "fg_cam to the pixels": jaxfmi.fg_cam,
}


def programs(model, layer: str):
    """Arrays of the model, and compiled ``f(params, images, labels)`` for all contestants."""
    apply, params = functional(model)

    def explain(method):
        def batch(params, images, labels):
            return jax.vmap(method(class_score((apply, params)), layer))(images, labels)

        return jax.jit(batch)

    forward = jax.jit(lambda params, images, labels: apply(params, images))
    return params, {"forward": forward} | {k: explain(m) for k, m in METHODS.items()}


def draw(options):
    """Images of noise, and labels."""
    rng = np.random.default_rng(0)
    shape = (options.batch, options.side, options.side, 3)
    return rng.normal(size=shape).astype(np.float32), rng.integers(0, 1000, options.batch)


def speed(name: str, options) -> list[dict]:
    """One row per contestant for one network."""
    twin, model = torch_twin(name) if options.peers else (None, getattr(models, name)())
    images, labels = draw(options)
    params, compiled = programs(model, LAST[name])
    device = jax.device_put((params, images, labels))
    runs = {key: lambda f=f: f(*device) for key, f in compiled.items()}
    pairs = peers(twin, images, labels) if options.peers else []
    for ours, theirs, run in pairs:
        difference(f"{name}, {ours} against {theirs}", runs[ours](), run())
        runs[theirs] = run
    seconds = alternate(runs, options.runs)
    found = summary(seconds, "forward")
    against = {theirs: summary(seconds, ours)[theirs]["ratio"] for ours, theirs, _ in pairs}
    return [
        {
            "network": name,
            "what": what,
            "seconds": row["seconds"],
            "× forward": row["ratio"],
            "× ours": against.get(what, ""),
        }
        for what, row in found.items()
    ]


def difference(what: str, ours, theirs) -> None:
    """Print how far maps [N, H, W] are apart, which is to be little before times mean anything."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    worst = np.abs(ours - theirs).max((1, 2)) / np.abs(theirs).max((1, 2))
    print(f"{what}: largest difference / largest value {worst.max():.1e}", flush=True)


def peers(twin, images, labels) -> list[tuple]:
    """What ours are compared with: our method, the other's name, a function without arguments."""
    from relevance_in_torch import fg_cam_program, short_fg_cam_program, zennit_program

    found = [
        ("fg_cam to the pixels", "PyTorch, layer by layer", fg_cam_program),
        ("fg_cam to the pixels", "PyTorch, only for inputs >= 0", short_fg_cam_program),
    ]
    try:
        found += [("lrp, epsilon_plus_flat", f"zennit {version('zennit')}", zennit_program)]
    except PackageNotFoundError as error:
        print(f"not compared: {error}")
    return [(ours, theirs, make(twin, images, labels)) for ours, theirs, make in found]


def compiling(options) -> list[dict]:
    """Seconds to trace and to compile ResNet-50's programs, in the order of the table."""
    model = models.resnet50()
    params, compiled = programs(model, LAST["resnet50"])
    images, labels = draw(options)
    rows = []
    for what, f in compiled.items():
        start = time.perf_counter()
        lowered = f.lower(params, images, labels)
        traced = time.perf_counter()
        lowered.compile()
        done = time.perf_counter()
        rows.append(
            {"network": "resnet50", "what": what, "trace": traced - start, "compile": done - traced}
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(LAST), choices=list(LAST))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--precision", default="highest", choices=("highest", "default"))
    parser.add_argument("--name", help="of the file in benchmarks/results")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    more = {"precision": options.precision, "images": options.batch, "side": options.side}
    jax.config.update("jax_default_matmul_precision", options.precision)
    if options.compile:
        report(options.name or "relevance_compile", compiling(options), **more)
    else:
        rows = [row for name in options.networks for row in speed(name, options)]
        name = "relevance_peers" if options.peers else "relevance"
        report(options.name or name, rows, **more)
