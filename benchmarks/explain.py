"""What explaining costs, against the network's own forward pass and against pytorch-grad-cam.

    python benchmarks/explain.py                       # the ratios to the forward pass
    python benchmarks/explain.py --peers               # also pytorch-grad-cam, same weights, pixels
    python benchmarks/explain.py --memory              # instead, the memory of every explainer

Weights are random: they change no cost. All programs take them as arguments.
"""

import argparse
import inspect
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from measure import alternate, report, summary, torch_device, torch_pixels

import jaxfmi
from jaxfmi import class_score, models
from jaxfmi.command import networks
from jaxfmi.command.methods import METHODS
from jaxfmi.modules import functional

STAGES = [f"stage{s}" for s in (1, 2, 3, 4)]


def programs(model):
    """Compiled ``f(params, images, labels)`` for the forward pass and what it is compared with."""
    apply, params = functional(model)

    def explain(method):
        def batch(params, images, labels):
            score = class_score((apply, params))
            return jax.vmap(method(score))(images, labels)

        return jax.jit(batch)

    def backward(score):
        return jax.value_and_grad(score)

    return params, {
        "forward": jax.jit(lambda params, images, labels: apply(params, images)),
        "full backward": explain(backward),
        "grad_cam": explain(lambda s: jaxfmi.grad_cam(s, "stage4")),
        "grad_cam, all stages": explain(lambda s: jaxfmi.grad_cam(s, STAGES)),
        "afmi, path(32)": explain(lambda s: jaxfmi.afmi(s, "stage4")),
    }


def torch_twin(name: str):
    """Torchvision's network on the device of ours, and ours with its weights."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from peers import import_torchvision
    from safetensors.torch import save_file

    twin = getattr(import_torchvision().models, name)(weights=None).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file(twin.state_dict(), path)
        model = models.load(networks.blank(name)[0], path)
    return twin.to(torch_device()), model


def pytorch_grad_cam(twin, images, labels):
    """pytorch-grad-cam's Grad-CAM of the last block, as a function without arguments."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    explainer = GradCAM(twin, [twin.layer4[-1]])
    pixels = torch_pixels(images)
    targets = [ClassifierOutputTarget(int(label)) for label in labels]
    return lambda: explainer(pixels, targets)


def speed(name: str, options) -> list[dict]:
    """One row per contestant for one network."""
    twin, model = torch_twin(name) if options.peers else (None, getattr(models, name)())
    rng = np.random.default_rng(0)
    images = rng.normal(size=(options.batch, options.side, options.side, 3)).astype(np.float32)
    labels = rng.integers(0, 1000, options.batch)
    params, compiled = programs(model)
    device = jax.device_put((params, images, labels))
    runs = {key: lambda f=f: f(*device) for key, f in compiled.items()}
    if options.peers:
        runs["pytorch-grad-cam"] = pytorch_grad_cam(twin, images, labels)
        check_same(compiled["grad_cam"](*device), runs["pytorch-grad-cam"]())
    found = summary(alternate(runs, options.runs), "forward")
    return [
        {"network": name, "what": what, "seconds": row["seconds"], "× forward": row["ratio"]}
        for what, row in found.items()
    ]


def check_same(ours, theirs) -> None:
    """Both programs explain the same thing: the maps agree after scaling to [0, 1]."""
    ours = np.asarray(jax.vmap(jaxfmi.heatmap.unit)(ours))
    print(f"largest difference of unit maps: {np.abs(ours - theirs).max():.1e}")


def memory(name: str, options) -> list[dict]:
    """Peak memory of every explainer's compiled program, without running it."""
    apply, params = functional(getattr(models, name)())
    images = jnp.zeros((options.batch, options.side, options.side, 3))
    labels = jnp.zeros(options.batch, int)
    rows = []
    for method_name, method in METHODS.items():
        if method_name == "lfi_cam":  # of networks that make a map of their own
            continue
        place = {"layer": "stage4"} if method.layered else {}

        def batch(params, images, labels, method=method, place=place):
            explain = method.make(class_score((apply, params), None), **place)
            random = "key" in inspect.signature(explain).parameters
            key = {"key": jax.random.key(0)} if random else {}
            return jax.vmap(lambda x, label: explain(x, label, **key))(images, labels)

        analysis = jax.jit(batch).lower(params, images, labels).compile().memory_analysis()
        mib = (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / 2**20
        rows.append({"network": name, "explainer": method_name, "MiB beyond weights": mib})
        print(*rows[-1].values(), flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--name", default="explain", help="of the file in benchmarks/results")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    if options.memory:
        report("memory", [row for name in options.networks for row in memory(name, options)])
    else:
        report(options.name, [row for name in options.networks for row in speed(name, options)])
