"""``jaxfmi evaluate``: hold methods against each other on a data set, and write a leaderboard."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from jaxfmi.command import job as jobs
from jaxfmi.command import networks
from jaxfmi.command.terminal import FAILED, bar, complain, is_terminal, kept, one_line, split
from jaxfmi.command.words import pick

FORMATS = ("parquet", "csv")
Words = list[str] | None


def evaluate(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Option(help="A folder with index.csv or of class folders, or a packed .npz."),
    ],
    model: Annotated[str, typer.Option(help="A name of `jaxfmi models`.")] = networks.DEMO,
    weights: Annotated[
        str | None, typer.Option(help="A .safetensors or .npz file, or owner/name on the hub.")
    ] = None,
    method: Annotated[
        Words,
        typer.Option(
            "--method",
            "--methods",
            help="Names of `jaxfmi methods`, random_map, centre_gaussian, edge_map, with commas "
            "between; else all that can explain the network.",
        ),
    ] = None,
    metric: Annotated[
        Words,
        typer.Option(
            "--metric",
            "--metrics",
            help="Names of `jaxfmi metrics`, with commas between; else the main.",
        ),
    ] = None,
    layer: Annotated[str, typer.Option(help="A name of `jaxfmi layers`, or auto.")] = "auto",
    target: Annotated[str, typer.Option(help="Explain the class: label or predicted.")] = "label",
    score: Annotated[
        str, typer.Option(help=f"What is explained: {' or '.join(jobs.SCORES)}.")
    ] = jobs.AUTO,
    option: Annotated[
        Words,
        typer.Option(
            help="[METHOD.]name=value or METRIC.name=value: deletion.steps=8; repeatable."
        ),
    ] = None,
    costly_every: Annotated[
        int,
        typer.Option(min=1, help="Deletion and the like for one picture in so many only."),
    ] = 1,
    method_every: Annotated[
        Words,
        typer.Option(help="METHOD=N: explain one picture in N only with it; repeatable."),
    ] = None,
    without: Annotated[
        Words, typer.Option(help="Methods that all leaves out, with commas between.")
    ] = None,
    label_offset: Annotated[
        int | None,
        typer.Option(help="Added to labels; else 1 for 1001 outputs (a background class), or 0."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Pictures at most.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Take one picture in so many.")] = 1,
    preprocess: Annotated[
        str | None, typer.Option(help=f"{', '.join(networks.PREPROCESS)}; else the model's own.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Input size, 192 or 192x256.")] = None,
    model_option: Annotated[
        Words, typer.Option(help="key=value for the network: num_classes=1001; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of table and leaderboard.")] = Path(
        "jaxfmi-evaluation"
    ),
    format: Annotated[
        str, typer.Option(help="parquet; csv writes table.csv beside it.")
    ] = "parquet",
    curves: Annotated[
        bool, typer.Option("--curves", help="Keep every picture's curves in the table.")
    ] = False,
    again: Annotated[
        Words, typer.Option(help="Methods to take out of OUT's table and compute anew.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew, whatever table is in OUT.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
    progress: Annotated[
        bool | None, typer.Option("--progress/--no-progress", help="Else on a terminal only.")
    ] = None,
) -> None:
    """Measure the heatmaps of a data set: a table, its summary, tests, curves, a leaderboard.

    A run that was stopped goes on where it was, by the same command without --overwrite and
    --again; so does a finished one with more methods. Metrics that ask the method again
    (max_sensitivity, random_logit, parameter_randomisation and so on) are in the library only.
    """
    with one_line():
        datasets, evaluation, execute, leaderboard, tables = _modules()
        pick("format", format, FORMATS)
        network = networks.open_network(
            model, weights, model_option or [], preprocess, networks.read_size(size)
        )
        plan = evaluation.plan_evaluation(
            network,
            datasets.open_data(data, every=every, limit=limit),
            split(method or [evaluation.ALL]),
            metrics=split(metric or []),
            layer=layer,
            options=option or [],
            score=score,
            target=target,
            offset=label_offset,
            costly_every=costly_every,
            method_every=method_every or [],
            without=split(without or []),
            batch_size=batch_size,
            seed=seed,
        )
        if overwrite:
            tables.clear(out)
        execute.resume(plan, out, split(again or []))
    for name, why in plan.left_out.items():
        print(f"left out: {name}: {why}")
    shown = is_terminal() if progress is None else progress
    total = len(plan.data.samples) * len(plan.job.steps)
    hint = f"the same command without --overwrite and --again goes on from what is in {out}"
    with kept(hint), bar(total, shown) as done:
        table, failures = execute.run(
            plan, out, curves=curves, command=context.obj, done=done, warn=complain
        )
        leaderboard.write(out, table, plan.left_out)
        if format == "csv":
            tables.export(table, out)
    print(f"{len(table.rows)} rows in {out / tables.TABLE}; {out / 'leaderboard.md'} sums them up")
    if failures:
        raise typer.Exit(FAILED)


def _modules() -> list[ModuleType]:
    """What needs the extra, imported when it is needed."""
    names = ("datasets", "evaluation", "execute", "leaderboard", "tables")
    try:
        return [import_module(f"jaxfmi.command.{name}") for name in names]
    except ImportError as error:
        hint = 'pip install "jaxfmi[evaluate]"'
        raise ImportError(f"evaluation needs {error.name}: {hint}") from error
