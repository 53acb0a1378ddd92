"""What `max_pool` saves by differentiating shifted slices instead of XLA's windowed maximum.

    python benchmarks/max_pool.py

The windowed maximum's gradient is a select-and-scatter. The pools are those of a ResNet's stem
(3×3 at stride 2, padded by 1), of SqueezeNet (the same, unpadded) and of VGG (2×2).
"""

import argparse

import jax
import jax.numpy as jnp
from flax import nnx
from measure import alternate, report, summary

from jaxfmi.models.layers import max_pool

POOLS = {  # shape, window, stride, padding
    "ResNet": ((16, 112, 112, 64), 3, 2, 1),
    "SqueezeNet": ((16, 111, 111, 96), 3, 2, 0),
    "VGG": ((4, 224, 224, 64), 2, 2, 0),
}


def windowed(x: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
    """The maximum that flax's `max_pool` leaves to XLA."""
    return nnx.max_pool(x, (window, window), (stride, stride), ((padding, padding),) * 2)


def contestant(pool, transform, x: jax.Array, *settings: int):
    """A compiled run of `pool` alone ("forward") or of its gradient, without arguments."""
    program = jax.jit(transform(lambda x: jnp.sum(pool(x, *settings) ** 2)))
    return lambda: program(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    rows = []
    for name, (shape, *settings) in POOLS.items():
        x = jax.nn.relu(jax.random.normal(jax.random.key(0), shape))
        for what, transform in (("forward", lambda f: f), ("and gradient", jax.grad)):
            pools = {"windowed": windowed, "max_pool": max_pool}
            programs = {n: contestant(pool, transform, x, *settings) for n, pool in pools.items()}
            times = summary(alternate(programs, runs), against="max_pool")
            seconds = {f"{n} s": times[n]["seconds"] for n in pools}
            size = "×".join(map(str, shape))
            ratio = times["windowed"]["ratio"]
            rows.append({"pool": name, "input": size, "what": what, **seconds, "ratio": ratio})
    report("max_pool", rows, runs=runs)


if __name__ == "__main__":
    main()
