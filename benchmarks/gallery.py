"""What a query against a gallery of embeddings costs, and how much memory embedding one takes.

    python benchmarks/gallery.py

The first part compares the maps for the ten best of 1,000 embeddings with one forward pass of the
query, the second embeds a stream of images in chunks, each count in a process of its own. Weights
and images are random: they change no cost. All programs take the weights as arguments.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measure import alternate, report, summary

import jaxfmi
from jaxfmi import models


def parts(name: str):
    """A network's weights, and ``weights -> (x [H, W, C] -> embedding [E])``."""
    graph, state = nnx.split(getattr(models, name)())
    return state, lambda state: lambda x: nnx.merge(graph, state).features(x[None])[0].mean((0, 1))


def speed(name: str, options) -> list[dict]:
    """A row per contestant for one network."""
    state, embedding = parts(name)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(options.side, options.side, 3)), jnp.float32)
    forward = jax.jit(lambda state, x: embedding(state)(x))
    partners = jnp.asarray(rng.random((options.partners, forward(state, x).size)), jnp.float32)
    explain = {
        f"maps for the top {options.top}": jax.jit(
            lambda state, x, e: jaxfmi.gallery(embedding(state), top=options.top)(x, e)
        ),
        "a map for one": jax.jit(lambda state, x, e: jaxfmi.fam(embedding(state))(x, e[0])),
    }
    runs = {"forward": lambda: forward(state, x)}
    runs |= {what: lambda f=f: f(state, x, partners) for what, f in explain.items()}
    found = summary(alternate(runs, options.runs), "forward")
    return [
        {"network": name, "what": what, "seconds": row["seconds"], "× forward": row["ratio"]}
        for what, row in found.items()
    ]


def embed_stream(name: str, images: int, chunk: int, side: int) -> None:
    """Embed a stream of random images and print the peak of resident memory, in MiB."""
    state, embedding = parts(name)
    rng = np.random.default_rng(0)
    stream = (rng.random((side, side, 3), np.float32) for _ in range(images))
    jaxfmi.embed_images(embedding(state), stream, chunk=chunk)
    print(peak())


def peak() -> float:
    """The most memory this process has had, in MiB. What `getrusage` says is its parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024


def memory(options) -> list[dict]:
    """Peaks for growing galleries."""
    rows = []
    for images in options.images:
        words = [
            "--stream",
            str(images),
            "--chunk",
            str(options.chunk),
            "--side",
            str(options.side),
        ]
        words += ["--networks", options.networks[-1]]
        program = [sys.executable, __file__, *words]
        out = subprocess.run(program, check=True, capture_output=True, text=True).stdout
        whole = images * options.side**2 * 3 * 4 / 2**20
        rows.append(
            {
                "network": options.networks[-1],
                "images": images,
                "chunk": options.chunk,
                "peak MiB": float(out.split()[-1]),
                "MiB of all images": whole,
            }
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet18", "squeezenet1_1"])
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--partners", type=int, default=1000)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--images", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--stream", type=int, help="only embed this many images, print the peak")
    options = parser.parse_args()
    if options.stream:
        embed_stream(options.networks[0], options.stream, options.chunk, options.side)
    else:
        rows = [row for name in options.networks for row in speed(name, options)]
        report("gallery", rows, memory=memory(options), runs=options.runs)
