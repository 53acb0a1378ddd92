"""``jaxfmi train`` and ``jaxfmi evaluate-classifier``: the training loop on the command line."""

import inspect
import json
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import jax
import typer

from jaxfmi.command.terminal import FAILED, INTERRUPTED, MISUSED, complain, one_line
from jaxfmi.train.config import Config, read_file
from jaxfmi.train.options import explanations, from_text, make

Progress = Annotated[
    bool | None, typer.Option("--progress/--no-progress", help="Else on a terminal only.")
]
NEEDS = 'training needs more packages: pip install "jaxfmi[train]"'


def _kind(kind: Any) -> Any:
    """What typer takes for a field: words of a list have commas between, those of names repeat."""
    if get_origin(kind) is not tuple:
        return kind | None
    return list[str] | None if get_args(kind)[0] is str else str | None


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return str(default) if default != "" else "none"


def options_of_a_run(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of a run's ``Config``, instead of ``**given``."""
    texts, parameters = explanations(Config), []
    for field in fields(Config):
        about = texts[field.name]
        if field.default is not MISSING:
            about += f" [{_shown(field.default)}]"
        annotation = Annotated[_kind(field.type), typer.Option(help=about)]
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(field.name, kind, default=None, annotation=annotation))
    signature = inspect.signature(command)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    own = [p.replace(kind=p.KEYWORD_ONLY) for p in own]
    command.__signature__ = signature.replace(parameters=[*own, *parameters])
    command.__annotations__ = {p.name: p.annotation for p in [*own, *parameters]}
    return command


@options_of_a_run
def train(
    config: Annotated[
        str | None,
        typer.Option(
            help="TOML or JSON file of these options, or the recipe cifar, imagenet, "
            "digits or demo; options given here overrule it."
        ),
    ] = None,
    progress: Progress = None,
    **given: Any,
) -> None:
    """Train a classifier: checkpoints, a log, and pictures of its attention, in OUT.

    The same command goes on with a run that was stopped. Lists have commas between.
    """
    with one_line():
        values = read_file(config) if config else {}
        words = {k: v for k, v in given.items() if v is not None and v != []}
        run = make(Config, values | {k: from_text(Config, k, v) for k, v in words.items()})
        main = _classifier().main
    try:
        main(run, shown=progress)
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error
    except SystemExit as stopped:
        raise typer.Exit(int(stopped.code or 0)) from stopped
    except (ValueError, ImportError, FileNotFoundError) as error:
        complain(str(error))
        raise typer.Exit(MISUSED) from error
    except (OSError, FloatingPointError) as error:
        complain(str(error))
        raise typer.Exit(FAILED) from error
    report = Path(run.out) / "model.json"
    if report.is_file():
        print(_summary(json.loads(report.read_text()), report))


def evaluate_classifier(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="OUT of `jaxfmi train`.")],
    data: Annotated[str | None, typer.Option(help="As of `jaxfmi train`; else the run's.")] = None,
    split: Annotated[str | None, typer.Option(help="val or test; else test, or val.")] = None,
    weights: Annotated[
        str, typer.Option(help="last or best, of checkpoints; else what the run chose.")
    ] = "",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures at a time.")] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Else the run's, or all where there are fewer.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read; else the run's.")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Where data sets are; else the run's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Measure a trained classifier: loss, accuracy, and what its attention is like."""
    with one_line():
        classifier = _classifier()
        from jaxfmi.train import finished

        opened = finished.open_run(run, weights)
        given = {"data": data, "batch_size": batch_size, "workers": workers, "data_dir": data_dir}
        given |= {"devices": devices or min(opened.config.devices, jax.device_count())}
        config = replace(opened.config, **{k: v for k, v in given.items() if v is not None})
        there = finished.open_data(config, own=data is None)
        name = split or next(n for n in ("test", "val", *there) if n in there)
        if name not in there:
            raise ValueError(f"no split {name!r}; {config.data} has {[*there]}")
        opened.check_classes(there[name], f"{config.data}, {name}")
        figures = classifier.evaluate(opened.model, there[name], config)
        if out:
            out.write_text(json.dumps({"split": name, "figures": figures}, indent=1) + "\n")
    print("  ".join(f"{name}_{key} {value:.4g}" for key, value in figures.items()))


def _classifier() -> Any:
    try:
        from jaxfmi.train import classifier
    except ImportError as error:
        raise ImportError(f"{error}: {NEEDS}") from error
    return classifier


def _summary(card: dict[str, Any], path: Path) -> str:
    figures = {k: v for k, v in card["figures"].items() if k.endswith(("accuracy", "loss"))}
    shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    return f"{shown} (weights: {card['selected']}); {path}"
