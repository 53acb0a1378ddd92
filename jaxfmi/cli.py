"""The command ``jaxfmi``: explain pictures without writing Python.

What a user can get wrong is one line, ``error: ...``, on stderr, and exit code 2; a picture that
can't be read is such a line and exit code 1 after the others have been explained.
"""

import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import jax
import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from jaxfmi.command import job as jobs
from jaxfmi.command import networks
from jaxfmi.command.compare import compare
from jaxfmi.command.evaluate import evaluate
from jaxfmi.command.files import MANIFEST, check_paths
from jaxfmi.command.methods import METHODS
from jaxfmi.command.metrics import METRICS
from jaxfmi.command.terminal import (
    FAILED,
    MISUSED,
    bar,
    complain,
    is_terminal,
    kept,
    one_line,
    split,
)
from jaxfmi.command.train import evaluate_classifier, train
from jaxfmi.models import MODELS
from jaxfmi.report import panel

PHOTOS = ("chelsea", "coffee")
# A demo is short: without the methods that need thousands of evaluations, and near relatives of
# others.
HIDDEN = (
    "ss_cam is_cam extremal_perturbation",
    "fd_cam group_cam ada_sise clrp sglrp excitation_backprop relevance_cam",
)
SHOWN = [name for name in METHODS if name not in " ".join(HIDDEN).split()]
COMPILERS = 2  # compiling is most of the time, and keeps one core busy
# On a CPU: compiles in a fourth of the time; the programs run a fifth longer, which is little.
BRIEFLY = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
SHORT = ("occlusion.stride=4", "rise.samples=200")


class Group(TyperGroup):
    """Commands whose errors of usage are one line; keeps the words for the manifest."""

    def main(self, args=None, prog_name=None, **extra):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run a command and exit."""
        words = list(sys.argv[1:] if args is None else args)
        try:
            extra |= {"standalone_mode": False, "obj": ["jaxfmi", *words]}
            code = super().main(words, prog_name, **extra)
        except Exception as error:
            message = getattr(error, "format_message", None)
            if message is None:  # not one of typer's own
                raise
            complain(message())
            code = MISUSED
        sys.exit(code or 0)


app = typer.Typer(
    cls=Group,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Words = list[str] | None
Model = Annotated[str, typer.Option(help="A name of `jaxfmi models`.")]
ModelOption = Annotated[
    Words,
    typer.Option(help="key=value for the network: num_classes=1001, padding=SAME; repeatable."),
]
Size = Annotated[
    str | None, typer.Option(help="Input size, 192 or 192x256; else that of the preprocessing.")
]


@app.callback()
def main(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Show what an image network looks at."""
    if show_version:
        print(f"jaxfmi {version('jaxfmi')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the panel.")] = Path("jaxfmi-demo"),
) -> None:
    """Explain two pictures with the embedded network and all but the slowest methods."""
    with one_line():
        photos = [Image.fromarray(getattr(_sample_data(), name)()) for name in PHOTOS]
        job = jobs.plan(networks.open_network(), SHOWN, options=SHORT)
        out.mkdir(parents=True, exist_ok=True)
    x = np.stack([job.network.preprocess(photo) for photo in photos])
    briefly = _known(BRIEFLY) if jax.default_backend() == "cpu" else {}
    logits = jobs.logits(job, len(x), compiler_options=briefly)(x)
    labels = logits.argmax(-1).astype(np.int32)
    chances = np.exp(logits.max(-1) - np.logaddexp.reduce(logits, -1))
    names = [str(job.network.classes[label]).split(",")[0] for label in labels]

    def heatmaps(step: jobs.Step) -> list[np.ndarray]:
        explain = jobs.explainer(job, step, len(x), compiler_options=briefly)
        return list(explain(x, labels, np.arange(len(x), dtype=np.int32)))

    maps: dict[str, list[np.ndarray]] = {}
    with bar(len(job.steps), is_terminal()) as done, ThreadPoolExecutor(COMPILERS) as pool:
        last_first = job.steps[::-1]  # those that take longest are the last
        for step, found in zip(last_first, pool.map(heatmaps, last_first), strict=True):
            maps[step.method] = found
            done(1)
    maps = {name: maps[name] for name in SHOWN}
    captions = [f"{name} {chance:.0%}" for name, chance in zip(names, chances, strict=True)]
    path = out / "demo.png"
    panel([np.asarray(photo) / 255 for photo in photos], maps, captions=captions, path=path)
    for photo, name, chance in zip(PHOTOS, names, chances, strict=True):
        print(f"{photo}: {name}, probability {chance:.3f}")
    print(path)


@app.command()
def explain(
    context: typer.Context,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files.")],
    model: Model = networks.DEMO,
    weights: Annotated[
        str | None, typer.Option(help="A .safetensors or .npz file, or owner/name on the hub.")
    ] = None,
    method: Annotated[
        Words, typer.Option(help="Names of `jaxfmi methods`, with commas between; else grad_cam.")
    ] = None,
    layer: Annotated[
        Words, typer.Option(help="Names of `jaxfmi layers`, with commas between; else auto.")
    ] = None,
    target: Annotated[
        Words,
        typer.Option(help="Index or name of a class; repeatable. Else the predicted class."),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Explain this many of the best classes.")] = 1,
    score: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(jobs.SCORES)}; auto is what a method asks for, mostly the logit."
        ),
    ] = jobs.AUTO,
    preprocess: Annotated[
        str | None, typer.Option(help=f"{', '.join(networks.PREPROCESS)}; else the model's own.")
    ] = None,
    size: Size = None,
    classes: Annotated[
        Path | None, typer.Option(help="Names of the classes: JSON (as Keras has it too) or lines.")
    ] = None,
    model_option: ModelOption = None,
    option: Annotated[
        Words,
        typer.Option(
            help="[METHOD.]name=value: multiplier=path(steps=64), relu=false; repeatable."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for maps and manifest.")] = Path("jaxfmi-out"),
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of methods that draw noise.")] = 0,
    progress: Annotated[
        bool | None, typer.Option("--progress/--no-progress", help="Else on a terminal only.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write to OUT as it is.")] = False,
) -> None:
    """Explain pictures: an overlay and a raw map for each of them, and a manifest.

    Files are called PICTURE.CLASS.METHOD.png and .npy, in OUT.
    """
    with one_line():
        check_paths(images, out, overwrite)
        if target and top_k != 1:
            raise ValueError("--target and --top-k exclude each other")
        network = networks.open_network(
            model, weights, model_option or [], preprocess, networks.read_size(size), classes
        )
        job = jobs.plan(
            network,
            split(method or ["grad_cam"]),
            layer=split(layer or ["auto"]),
            options=option or [],
            score=score,
            targets=target or [],
            top_k=top_k,
            batch_size=batch_size,
            seed=seed,
        )
        jobs.check(job)
        out.mkdir(parents=True, exist_ok=True)
    shown = is_terminal() if progress is None else progress
    with (
        kept(f"{out / MANIFEST} lists what is done"),
        bar(len(images) * len(job.steps), shown) as done,
    ):
        results = jobs.run(job, images, out, command=context.obj, done=done, warn=complain)
    print(f"{len(results.entries)} maps in {out}; {out / MANIFEST} says what they are")
    if results.failures:
        raise typer.Exit(FAILED)


app.command()(evaluate)
app.command()(train)
app.command()(evaluate_classifier)
app.command()(compare)


@app.command()
def methods() -> None:
    """List the methods."""
    rows = [
        (n, m.paper, "yes" if m.layered else "several" if m.fused else "", m.cost)
        for n, m in METHODS.items()
    ]
    _table(("name", "paper", "layer", "cost per map"), rows)


@app.command()
def metrics() -> None:
    """List the metrics; those marked are computed unless others are asked for."""
    rows = [
        (name, row.takes, row.better or "", row.range, "main" if row.main else "")
        for name, row in METRICS.items()
    ]
    _table(("name", "needs", "better", "range", ""), rows)


@app.command()
def models() -> None:
    """List the networks, with their parameters and the size of their input."""
    embedded = networks.open_network()
    rows = [(networks.DEMO, networks.count(embedded.model), embedded.preprocess)]
    rows += [(name, networks.PARAMETERS[name], e.preprocess) for name, e in MODELS.items()]
    lines = [(n, f"{c:,}", "x".join(map(str, p.size))) for n, c, p in rows]
    _table(("name", "parameters", "input"), lines)


@app.command()
def layers(
    model: Model = networks.DEMO,
    model_option: ModelOption = None,
    size: Size = None,
) -> None:
    """List a network's layers in order, with their shapes, and mark the one that is "auto"."""
    with one_line():
        network, preprocess = networks.blank(model, model_option or [])
        found, auto = networks.layers(network, networks.read_size(size) or preprocess.size)
    rows = [(n, "x".join(map(str, s)), "auto" if n == auto else "") for n, s in found.items()]
    _table(("layer", "shape", ""), rows)


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(*titles, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """These options of the compiler; none if it does not know one: other versions have others."""
    try:
        jax.jit(lambda x: x, compiler_options=options)(0)
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def _sample_data() -> ModuleType:
    try:
        return import_module("skimage.data")
    except ImportError as error:
        hint = 'pip install "jaxfmi[demo]"'
        raise ImportError(f"the demo's pictures are in scikit-image: {hint}") from error
