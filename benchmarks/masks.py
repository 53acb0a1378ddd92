"""What scoring masks costs, against the network's own forward pass and against pytorch-grad-cam.

    python benchmarks/masks.py                # masks/s over plain images/s at the same chunk
    python benchmarks/masks.py --rows         # instead, rows computed for 8 images by SISE
    python benchmarks/masks.py --peers        # instead, Score-CAM beside pytorch-grad-cam's
    python benchmarks/masks.py --gpu          # instead, ResNet-50, 2048 maps, float32 and bfloat16

Weights and pixels are random, which changes no cost. On a CPU a smaller chunk is as fast and takes
less memory.
"""

import argparse
import functools
import inspect
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measure import alternate, report, summary, torch_device, torch_pixels

import jaxfmi
from jaxfmi import class_score, log_odds, logit, models, probability
from jaxfmi.modules import functional

# Of ResNet-50 shallow layers: deeper ones have thousands of maps, at the same cost each.
LAYERS = {
    "resnet18": ("stage4", "auto"),
    "resnet50": ("stage1", ("stem", "stage1", "stage2")),
    "squeezenet1_0": ("fire9", "auto"),
}
SAMPLES = 256  # of RISE


def image(side: int, count: int = 1) -> np.ndarray:
    """Random images [count, side, side, 3]."""
    return np.random.default_rng(0).normal(size=(count, side, side, 3)).astype(np.float32)


def compiled(model, of, make):
    """``make(score)`` of class 3 as a compiled function of weights and an image."""
    apply, params = functional(model)

    @jax.jit
    def run(params, x, key):
        explain = make(class_score((apply, params), of))
        takes_key = "key" in inspect.signature(explain).parameters
        return explain(x, 3, **({"key": key} if takes_key else {}))

    return functools.partial(run, params)


def speed(name: str, options) -> list[dict]:
    """Masks per second of three methods over the plain forward rate, pair by pair."""
    model, (layer, layers) = getattr(models, name)(), LAYERS[name]
    apply, params = functional(model)
    x, chunk, key = image(options.side)[0], options.chunk, jax.random.key(0)
    batch = image(options.side, chunk)
    forward = jax.jit(apply)
    makes = {
        "score_cam": (probability, lambda s: jaxfmi.score_cam(s, layer, chunk=chunk)),
        "sise": (log_odds, lambda s: jaxfmi.sise(s, layers, chunk=chunk)),
        "rise": (probability, lambda s: jaxfmi.rise(s, samples=SAMPLES, chunk=chunk)),
    }
    counts = {
        "score_cam": channels(model, x, layer),
        "sise": selected(model, layers, x),
        "rise": SAMPLES,
    }
    rows = []
    for what, (of, make) in makes.items():
        run = compiled(model, of, make)
        passes = -(-counts[what] // chunk)  # as many plain passes as there are chunks
        contestants = {
            "forward": lambda n=passes: [forward(params, batch) for _ in range(n)],
            what: lambda run=run: run(x, key),
        }
        found = summary(alternate(contestants, options.runs), against=what)
        share = found["forward"]["ratio"] * counts[what] / (passes * chunk)
        rows.append(
            {
                "network": name,
                "method": what,
                "masks": counts[what],
                "masks/s": counts[what] / found[what]["seconds"],
                "plain images/s": passes * chunk / found["forward"]["seconds"],
                "share": share,
            }
        )
        print(*rows[-1].values(), flush=True)
    return rows


def channels(model, x, layer) -> int:
    """How many maps of a layer are not constant."""
    a = jax.jit(jaxfmi.capture(class_score(model), layer))(x, 3)[1][layer][0]
    return int((a.max((0, 1)) > a.min((0, 1))).sum())


def selected(model, layers, x) -> int:
    """How many maps SISE scores, by the definition: positive mean gradient, not constant."""
    score = class_score(model, log_odds)
    names = jaxfmi.sise_layers(score, x, 3) if layers == "auto" else layers

    def shifted(deltas):
        edits = {n: functools.partial(jnp.add, d) for n, d in deltas.items()}
        return jaxfmi.edit(score, edits)(x, 3)

    values = jax.jit(jaxfmi.capture(score, *names))(x, 3)[1]
    slopes = jax.jit(jax.grad(shifted))({n: jnp.zeros_like(v) for n, v in values.items()})
    return sum(
        int(((slopes[n].mean((0, 1, 2)) > 0) & (np.ptp(values[n], axis=(0, 1, 2)) > 0)).sum())
        for n in names
    )


def rows_of_a_batch(options) -> list[dict]:
    """Rows that SISE computes for 8 images, over the maps that it selects in them."""
    rows: list[int] = []
    model = models.squeezenet1_0()

    def apply(params, x):
        jax.debug.callback(lambda _: rows.append(1), x[0, 0, 0, 0])
        return functional(model)[0](params, x)

    explain = jaxfmi.sise_terms(
        class_score((apply, functional(model)[1]), log_odds), chunk=options.chunk
    )
    images = image(options.side, 8) * np.linspace(0, 2, 8, dtype=np.float32)[:, None, None, None]
    terms = jax.jit(jax.vmap(explain))(images, jnp.arange(8))
    jax.effects_barrier()
    wanted = sum(
        int((np.asarray(layer.selected) & (np.ptp(layer.masks, axis=(2, 3)) > 0)).sum())
        for layer in terms.layers.values()
    )
    computed = len(rows) - len(images)  # but for the forward passes of the gradients
    return [
        {
            "network": "squeezenet1_0",
            "images": 8,
            "chunk": options.chunk,
            "selected": wanted,
            "computed": computed,
            "ratio": computed / wanted,
        }
    ]


def peers(options) -> list[dict]:
    """Score-CAM of ResNet-18's 512 maps in both programs: times in turn, memory each by itself."""
    from explain import torch_twin

    twin, model = torch_twin("resnet18")
    x = image(options.side)
    run = compiled(model, logit, functools.partial(as_theirs, options.chunk))
    apply, params = functional(model)
    forward = jax.jit(apply)
    theirs, plain = torch_score_cam(twin, x)
    batch = np.repeat(x, 16, 0)
    contestants = {
        "jaxfmi": lambda: run(x[0], None),
        "pytorch-grad-cam": theirs,
        "jaxfmi, plain": lambda: forward(params, batch),
        "PyTorch, plain": plain,
    }
    ours = np.asarray(jaxfmi.heatmap.unit(run(x[0], None)))
    print(f"largest difference of unit maps: {np.abs(ours - theirs()[0]).max():.1e}")
    found = summary(alternate(contestants, options.runs), against="jaxfmi")
    memory = {who: peak(who, options) for who in ("jaxfmi", "pytorch-grad-cam")}
    memory["jaxfmi"] = max(memory["jaxfmi"], planned(run, x[0], None))  # if it was held already
    frameworks = found["PyTorch, plain"]["seconds"] / found["jaxfmi, plain"]["seconds"]
    ratio = found["pytorch-grad-cam"]["ratio"]
    rows = [
        {"what": who, "seconds": found[who]["seconds"], "MiB at most": memory.get(who)}
        for who in contestants
    ]
    return [
        *rows,
        {"what": "theirs / ours, all", "seconds": ratio},
        {"what": "theirs / ours, plain forward", "seconds": frameworks},
        {"what": "theirs / ours, the rest", "seconds": ratio / frameworks},
    ]


def as_theirs(chunk: int, score):
    """Score-CAM as pytorch-grad-cam has it."""
    return jaxfmi.score_cam(score, "stage4", convention="pytorch-grad-cam", chunk=chunk)


def torch_score_cam(twin, x, chunk: int = 16):
    """pytorch-grad-cam's Score-CAM, and ``chunk`` images' forward pass, without arguments."""
    import torch
    from pytorch_grad_cam import ScoreCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    pixels, bare, layer = torch_pixels(x), deepcopy(twin), twin.layer4[-1]
    layer.register_forward_hook(lambda layer, given, out: out.float())  # it knows no bfloat16
    explainer = ScoreCAM(twin, [layer])
    explainer.batch_size = chunk

    def plain():
        with torch.no_grad():
            return bare(pixels.repeat(chunk, 1, 1, 1)).float().cpu().numpy()

    return lambda: explainer(pixels, [ClassifierOutputTarget(3)]), plain


def peak(who: str, options) -> float:
    """MiB that one explanation adds at most to a process of its own, after a first one."""
    command = [sys.executable, __file__, "--peak", who, "--chunk", str(options.chunk)]
    command += ["--side", str(options.side)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def planned(run, *args) -> float:
    """MiB that a compiled program needs beside its arguments."""
    found = run.func.lower(*run.args, *args).compile().memory_analysis()
    return (found.temp_size_in_bytes + found.output_size_in_bytes) / 2**20


def measure_peak(who: str, options) -> None:
    """Print the growth of this process's resident memory during a second explanation."""
    from explain import torch_twin

    x = image(options.side)
    twin, model = torch_twin("resnet18")
    if who == "jaxfmi":
        make = functools.partial(as_theirs, options.chunk)
        run = functools.partial(compiled(model, logit, make), x[0], None)
    else:
        run, _ = torch_score_cam(twin, x)
    jax.block_until_ready(run())
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    jax.block_until_ready(run())
    print((resident("VmHWM") - before) / 1024)


def resident(field: str) -> int:
    """A line of this process's status, in KiB."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def gpu(options) -> list[dict]:
    """ResNet-50's 2048 maps by Score-CAM in two precisions, with pytorch-grad-cam's beside it."""
    import torch
    from explain import torch_twin

    rows, x = [], image(options.side)
    twin, model = torch_twin("resnet50")
    weights = functional(model)[1]
    for kind in (jnp.float32, jnp.bfloat16):
        model = nnx.eval_shape(functools.partial(models.resnet50, dtype=kind))
        nnx.update(model, weights)
        maps = channels(model, x[0], "stage4")
        apply, params = functional(model)
        batch = jnp.asarray(image(options.side, options.chunk))
        run = compiled(model, logit, functools.partial(as_theirs, options.chunk))
        forward, passes = functools.partial(jax.jit(apply), params), -(-maps // options.chunk)
        theirs, plain = torch_score_cam(twin, x, options.chunk)
        contestants = {
            "jaxfmi": lambda run=run: run(x[0], None),
            "pytorch-grad-cam": theirs,
            "jaxfmi, plain": lambda f=forward, b=batch, n=passes: [f(b) for _ in range(n)],
            "PyTorch, plain": lambda p=plain, n=passes: [p() for _ in range(n)],
        }
        with torch.autocast(torch_device(), torch.bfloat16, enabled=kind == jnp.bfloat16):
            seconds = alternate(contestants, options.runs)
        for what, row in summary(seconds, against="jaxfmi").items():
            images = passes * options.chunk if "plain" in what else maps
            rows.append({"precision": jnp.dtype(kind).name, "what": what, "images": images})
            rows[-1] |= {"images/s": images / row["seconds"], "time / jaxfmi": row["ratio"]}
            print(*rows[-1].values(), flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--name", default="masks", help="of the file in benchmarks/results")
    for other in ("rows", "peers", "gpu"):
        parser.add_argument(f"--{other}", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        measure_peak(options.peak, options)
    elif options.rows:
        report("masks_rows", rows_of_a_batch(options))
    elif options.peers:
        report("masks_peers", peers(options))
    elif options.gpu:
        report("masks_gpu", gpu(options))
    else:
        report(options.name, [row for name in options.networks for row in speed(name, options)])
