"""What deletion and insertion cost, against the network's own forward pass and against Quantus.

    python benchmarks/metrics.py                       # against the forward pass, same batch
    python benchmarks/metrics.py --peers               # instead Quantus' PixelFlipping, same curve

SqueezeNet 1.0 with random weights, which change no cost. Every run takes the next images, in turn
with the forward pass on as many; what is compared is the rate of model evaluations.
"""

import argparse
import os
import sys
from itertools import cycle
from pathlib import Path

import jax
import numpy as np
from explain import torch_twin
from measure import alternate, report, summary, torch_device, torch_pixels

from jaxfmi import class_score, models
from jaxfmi.metrics import deletion, deletion_curve, insertion
from jaxfmi.modules import functional, probability


def compiled(model, method):
    """Give ``f(images, maps, labels)`` and ``forward(images)``, compiled, weights as arguments."""
    apply, params = functional(model)

    @jax.jit
    def batch(params, images, maps, labels):
        return jax.vmap(method(class_score((apply, params), probability)))(images, maps, labels)

    forward = jax.jit(apply)
    return lambda *args: batch(params, *args), lambda images: forward(params, images)


def draw(count: int, side: int):
    """Images, heatmaps and labels."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, side, side, 3)).astype(np.float32)
    maps = rng.random((count, side, side), np.float32)
    return jax.device_put((images, maps, rng.integers(0, 1000, count)))


def repeated(forward, images, evaluations: int):
    """Run the forward pass on batches of these images until there are as many evaluations."""

    def run():
        for _ in range(evaluations // len(images)):
            out = jax.block_until_ready(forward(images))
        return out

    return run


def rows(seconds, evaluations: dict[str, int], against: str) -> list[dict]:
    """One row per contestant; rates are evaluations per second."""
    found = []
    for what, row in summary(seconds, against).items():
        faster = evaluations[what] / evaluations[against] / row["ratio"]
        rate = evaluations[what] / row["seconds"]
        found.append({"what": what, "evaluations": evaluations[what], "seconds": row["seconds"]})
        found[-1] |= {"rate": rate, f"rate / {against}": faster}
    return found


def against_forward(options) -> list[dict]:
    """Deletion and insertion of all images, ``batch`` at a time, and forward passes in turn."""
    settings = {"steps": options.steps, "chunk": options.chunk}

    def method(score):
        parts = deletion(score, **settings), insertion(score, **settings)
        return lambda *args: [part(*args) for part in parts]

    measure, forward = compiled(models.squeezenet1_0(padding=1), method)
    data = draw(options.images, options.side)
    starts = cycle(range(0, options.images, options.batch))
    together = options.batch * options.chunk
    many, _, _ = draw(together, options.side)
    points = len(np.arange(0, options.side**2, -(-(options.side**2) // options.steps))) + 1
    evaluations = {"deletion + insertion": 2 * points * options.batch}
    evaluations["forward"] = evaluations["deletion + insertion"] // together * together

    def run():
        start = next(starts)
        return measure(*(a[start : start + options.batch] for a in data))

    contestants = {
        "deletion + insertion": run,
        "forward": repeated(forward, many, evaluations["forward"]),
    }
    seconds = alternate(contestants, options.images // options.batch)
    return rows(seconds, evaluations, "forward")


def against_quantus(options) -> list[dict]:
    """The same deletion curve by both, on one image after the other, and both forward passes."""
    twin, model = torch_twin("squeezenet1_0")
    side = step = 225  # Quantus asks for a step, in channels' values, that divides the image
    measure, forward = compiled(
        model, lambda score: deletion_curve(score, step=step, chunk=options.chunk)
    )
    images, maps, labels = draw(1, side)
    flip = pixel_flipping(twin, images, maps, labels, step)
    contestants = {
        "deletion": lambda: measure(images, maps, labels),
        "Quantus' PixelFlipping": flip,
        "forward": repeated(forward, draw(options.chunk, side)[0], step),
        "PyTorch's forward": torch_forward(twin, images, step),
    }
    check_same(contestants["deletion"]().scores[:, 1:], flip())
    seconds = alternate(contestants, options.runs)
    evaluations = dict.fromkeys(contestants, step) | {"deletion": step + 1}
    evaluations["forward"] = step // options.chunk * options.chunk
    return rows(seconds, evaluations, "Quantus' PixelFlipping")


def pixel_flipping(twin, images, maps, labels, step: int):
    """Quantus' curve, of all three channels of a pixel together, as a function."""
    import quantus

    metric = quantus.PixelFlipping(
        features_in_step=3 * step, perturb_baseline=0.0, disable_warnings=True
    )
    pixels = np.moveaxis(np.asarray(images), -1, 1).copy()
    maps, labels = np.asarray(maps)[:, None], np.asarray(labels)
    options = {"channel_first": True, "softmax": True, "device": torch_device()}
    return lambda: metric(twin, pixels, labels, maps.copy(), **options)


def torch_forward(twin, images, evaluations: int):
    """PyTorch's forward pass, in the batches in which Quantus asks for it."""
    import torch

    pixels = torch_pixels(images)

    def run():
        with torch.inference_mode():
            return [twin(pixels).cpu().numpy() for _ in range(evaluations)][-1]

    return run


def check_same(ours, theirs) -> None:
    """Both programs draw the same curve."""
    print(f"largest difference of the curves: {np.abs(ours - np.asarray(theirs)).max():.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=224)
    parser.add_argument("--side", type=int, default=227)
    parser.add_argument("--batch", type=int, default=1, help="images at a time")
    parser.add_argument("--chunk", type=int, default=32, help="edits of an image at a time")
    parser.add_argument("--runs", type=int, default=3, help="with --peers")
    parser.add_argument("--name", help="of the file in benchmarks/results")
    parser.add_argument("--peers", action="store_true")
    options, cores = parser.parse_args(), len(os.sched_getaffinity(0))
    if options.peers:
        sys.path.append(str(Path(__file__).parents[1] / "tests"))
        report(options.name or "metrics_peers", against_quantus(options), cores=cores)
    else:
        report(options.name or "metrics", against_forward(options), cores=cores)
