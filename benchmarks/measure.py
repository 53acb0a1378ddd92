"""What all benchmarks share: alternating runs, medians and ratios, a table and JSON beside it.

Machines are noisy, so nothing here is a limit: contestants run in turn, A B A B ..., and what is
quoted is the median of each and the median of the ratios, pair by pair.
"""

import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxfmi

RESULTS = Path(__file__).parent / "results"

jax.config.update("jax_default_matmul_precision", "highest")  # a GPU would take TF32 for float32


def torch_device() -> str:
    """Where PyTorch is to compute: where JAX does, and in full float32 too."""
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def torch_pixels(images):
    """Images [N, H, W, C] as PyTorch has them, [N, C, H, W] on its device."""
    import torch

    pixels = np.ascontiguousarray(np.moveaxis(np.asarray(images), -1, 1))
    return torch.from_numpy(pixels).to(torch_device())


def alternate(contestants: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Seconds of every run of every contestant, in turn, after one run that is not counted."""
    for run in contestants.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(runs):
        for name, run in contestants.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: Mapping[str, list[float]], against: str) -> dict[str, dict[str, float]]:
    """Median seconds, and the median of the ratios to one contestant, pair by pair."""
    base = seconds[against]
    return {
        name: {
            "seconds": statistics.median(runs),
            "ratio": statistics.median(a / b for a, b in zip(runs, base, strict=True)),
        }
        for name, runs in seconds.items()
    }


def environment() -> dict[str, Any]:
    """Where and with what a figure was measured."""
    return {
        "command": f"python {shlex.join(sys.argv)}",
        "jaxfmi": jaxfmi.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "python": platform.python_version(),
        "devices": [d.device_kind for d in jax.devices()],
        "processors": os.cpu_count(),
    }


def report(name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Print rows as a table and write them to ``results/<name>.json``."""
    table = Table(*rows[0], title=name)
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    content = {"environment": environment(), "rows": rows} | more
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to benchmarks/results/{path.name}")
