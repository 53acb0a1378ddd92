"""What training costs: a step, beside PyTorch's where it is installed; reading; checkpoints.

    python benchmarks/training.py [--runs 10] [--workers 0]

LFI-CAM ResNet-20 on pictures of 32×32, 128 at a time, one device. Ours draws a shift and a mirror
image of every picture inside the step; "without augmentation" does not, as PyTorch's does not.
PyTorch computes channels last. Where the time of a step goes, the table `training_where` says: its
convolutions one by one, forward, into their input and into their kernel. Reading is measured alone:
an epoch of 50,000 pictures out of memory. A checkpoint holds weights, momentum and averages; what
is quoted is how much longer steps take during which one is written, as a share of an epoch of 390
steps, and how long the loop waits for it to begin.
"""

import argparse
import tempfile
import time
from dataclasses import replace

import jax
import numpy as np
from flax import nnx
from measure import alternate, report, summary

from jaxfmi.models.layers import ConvNorm
from jaxfmi.train import checkpoint, classifier, networks
from jaxfmi.train.config import Config
from jaxfmi.train.data import Split, batches

BATCH, EPOCH, STEPS = 128, 390, 10
CONVOLUTIONS = (  # of the network: side of the input, window, channels in and out, stride, how many
    (32, 3, 3, 16, 1, 1),
    (32, 3, 16, 16, 1, 6),
    (32, 3, 16, 32, 2, 1),
    (32, 1, 16, 32, 2, 1),
    (16, 3, 32, 32, 1, 5),
    (16, 3, 32, 64, 2, 1),
    (16, 1, 32, 64, 2, 1),
    (8, 3, 64, 64, 1, 9),
)
CONFIG = Config(
    data="random pictures",
    out="",
    model="lfi_cam_resnet20",
    epochs=1,
    batch_size=BATCH,
    learning_rate=0.1,
    weight_decay=1e-4,
    pad=4,
    flip=True,
    devices=1,
)


def pictures(n: int) -> Split:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, n, np.int32)
    return Split(images, labels, None, tuple("0123456789"), ())


def stepper(config: Config, split: Split):
    """``n -> state`` after n more steps of training on one batch."""
    model = networks.build(config.model, 10, precision=config.precision)
    run, state = classifier._begin(config, model, {"train": split})
    batch = jax.device_put((split.images[:BATCH], split.labels[:BATCH]), run.batch)
    holder = [state]

    def go(steps: int = 1):
        for _ in range(steps):
            holder[0] = run.step(holder[0], *batch, size=0)
        return holder[0]

    return go


def peers(gpu: bool) -> dict:
    try:
        import torch
        from torch_lfi_cam import step
    except ImportError:
        return {}
    if gpu and not torch.cuda.is_available():
        return {}
    run, parameters = step(BATCH, "cuda" if gpu else "cpu")
    assert parameters == 420_442
    return {"PyTorch": run}


def reading(split: Split, workers: int, seconds: float) -> float:
    """Pictures per second that come when nothing else is done, after the first batch."""
    config = replace(CONFIG, workers=workers)
    stream = batches(split, config)
    next(stream)
    start, n = time.perf_counter(), 0
    for batch in stream:
        n += len(batch.labels)
        if time.perf_counter() - start > seconds:
            break
    return n / (time.perf_counter() - start)


def saving(go, runs: int) -> dict[str, float]:
    """Seconds that STEPS steps take longer while a checkpoint is written."""
    with tempfile.TemporaryDirectory() as folder, checkpoint.saving(folder) as save:
        counter = iter(range(1, 10**6))

        def with_checkpoint():
            state = jax.block_until_ready(go(STEPS))
            start = time.perf_counter()
            save(next(counter), state)
            blocked.append(time.perf_counter() - start)
            return go(STEPS)

        blocked: list[float] = []
        times = alternate({"without": lambda: go(2 * STEPS), "with": with_checkpoint}, runs)
    longer = [b - a for a, b in zip(times["without"], times["with"], strict=True)]
    return {"longer": float(np.median(longer)), "blocked": float(np.median(blocked))}


def where(runs: int, step: float) -> list[dict]:
    """Seconds of all convolutions of a kind, by direction, and their share of a step."""
    rows, total = [], dict.fromkeys(("forward", "input", "kernel"), 0.0)
    for side, window, inputs, outputs, stride, count in CONVOLUTIONS:
        conv = ConvNorm(inputs, outputs, window, stride=stride, norm=False, rngs=nnx.Rngs(0)).conv
        graph, state = nnx.split(conv)
        x = jax.random.normal(jax.random.key(0), (BATCH, side, side, inputs))
        forward = jax.jit(lambda s, x: nnx.merge(graph, s)(x))
        y = forward(state, x)
        into_x = jax.jit(lambda s, x, y: jax.vjp(lambda x: forward(s, x), x)[1](y)[0])
        into_w = jax.jit(lambda s, x, y: jax.vjp(lambda s: forward(s, x), s)[1](y)[0])
        programs = {
            "forward": lambda: forward(state, x),
            "input": lambda: into_x(state, x, y),
            "kernel": lambda: into_w(state, x, y),
        }
        times = summary(alternate(programs, runs), against="forward")
        seconds = {name: count * t["seconds"] for name, t in times.items()}
        total = {name: total[name] + seconds[name] for name in total}
        kind = f"{count} × {window}×{window}, {inputs} to {outputs}, {side}×{side}, stride {stride}"
        rows.append({"convolutions": kind} | seconds)
    rows.append({"convolutions": "all"} | total)
    rows.append({"convolutions": "of a step"} | {k: v / step for k, v in total.items()})
    return rows


def _name() -> str:
    return "training" if jax.default_backend() == "cpu" else f"training_{jax.default_backend()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0, help="of reading")
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    split = pictures(50_000)
    config = replace(CONFIG, precision=options.precision)
    go = stepper(config, split)
    plain = stepper(replace(config, pad=0, flip=False), split)
    contestants = {"jaxfmi": go, "jaxfmi without augmentation": plain}
    contestants |= peers(jax.default_backend() == "gpu")
    times = summary(alternate(contestants, options.runs), against="jaxfmi")
    second = times["jaxfmi"]["seconds"]
    rows = [
        {"what": f"step, {n}", "value": t["seconds"], "unit": "s", "of": t["ratio"]}
        for n, t in times.items()
    ]
    report(f"{_name()}_where", where(options.runs, second))
    speed = reading(split, options.workers, options.seconds)
    consumed = BATCH / second
    name = f"reading, {options.workers} workers"
    rows += [{"what": name, "value": speed, "unit": "images/s", "of": speed / consumed}]
    cost = saving(go, max(options.runs // 2, 3))
    for what in ("blocked", "longer"):
        share = cost[what] / (EPOCH * second)
        name = f"checkpoint, {what}"
        rows += [{"what": name, "value": cost[what], "unit": "s", "of": share}]
    meanings = "step: of ours; reading: of what a step consumes; checkpoint: of an epoch"
    report(_name(), rows, of=meanings, precision=options.precision)


if __name__ == "__main__":
    main()
