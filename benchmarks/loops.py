"""What `chunks.looped` saves a CPU: gradients in a loop, of networks whose pictures are NHWC.

    python benchmarks/loops.py

Integrated gradients of 16 points, 8 at a time: as the library has it, and with the convolutions
left as JAX transposes them.
"""

import argparse

import jax
from measure import alternate, report, summary

from jaxfmi import batched, chunks, integrated_gradients
from jaxfmi.models import demo_model, mobilenet_v2, resnet18, resnet50

STEPS, CHUNK = 16, 8


def program(model, side: int, loop):
    """A run of one picture without arguments, of which all loops are made by `loop`."""
    explain = batched(
        lambda score: integrated_gradients(score, steps=STEPS, chunk=CHUNK), model, batch_size=1
    )
    x = jax.random.normal(jax.random.key(0), (1, side, side, 3))

    def run():
        chunks.looped = loop  # read when the first run compiles
        return explain(x, [3])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    networks = {
        "demo": (demo_model().model, 64),
        "resnet18": (resnet18(), 224),
        "resnet50": (resnet50(), 224),
        "mobilenet_v2": (mobilenet_v2(), 224),
    }
    rows, looped = [], chunks.looped
    for name, (model, side) in networks.items():
        ways = {"left": lambda f: f, "looped": looped}
        programs = {way: program(model, side, loop) for way, loop in ways.items()}
        times = summary(alternate(programs, runs), against="looped")
        rows.append(
            {"network": name, "side": side}
            | {f"{way} s": times[way]["seconds"] for way in ways}
            | {"ratio": times["left"]["ratio"]}
        )
    report("loops", rows, runs=runs)


if __name__ == "__main__":
    main()
