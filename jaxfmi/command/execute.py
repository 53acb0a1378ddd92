"""Run an evaluation: one row per image and method, kept as they come.

A run can be killed, and goes on where it was.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from jaxfmi import probability
from jaxfmi.batched import batched
from jaxfmi.command import batches, tables
from jaxfmi.command import job as jobs
from jaxfmi.command.batches import Batch
from jaxfmi.command.evaluation import Evaluation
from jaxfmi.command.metrics import METRICS, suite
from jaxfmi.command.tables import Table
from jaxfmi.metrics import Curve

PACKAGES = ("jaxfmi", "jax", "flax", "numpy", "polars")

Measured = tuple[dict[str, pl.Series], dict[str, list[float]]]  # columns, fractions of curves


def resume(evaluation: Evaluation, out: Path, again: Sequence[str] = ()) -> Table:
    """What is in ``out`` already.

    Args:
      evaluation: from ``plan_evaluation``.
      out: a folder, or none yet.
      again: methods to take out of the table there, if it has them, for ``run`` to compute them
        anew.

    Raises:
      ValueError: the table was made with other settings, or ``run`` would not compute a method.
    """
    planned = [step.method for step in evaluation.job.steps]
    if lost := [name for name in again if name not in planned]:
        raise ValueError(f"--again {', '.join(lost)}: --method has to name it")
    table = tables.load(out)
    gone = [name for name in again if name in table.settings.get("methods", ())]
    table = tables.without(table, gone)
    if table.settings:
        tables.compare(table.settings, evaluation.settings, out)
    if gone:
        tables.finish(out, table, curves=True)
    return table


def run(
    evaluation: Evaluation,
    out: Path,
    *,
    curves: bool = False,
    command: Sequence[str] = (),
    done: Callable[[int], None] = lambda maps: None,
    warn: Callable[[str], None] = lambda why: None,
) -> tuple[Table, list[str]]:
    """Compute what is not there yet, and keep it in ``out``.

    Args:
      evaluation: from ``plan_evaluation``.
      out: a folder; a table in it is added to.
      curves: keep the curves of all images in the table, as lists.
      command: how this was asked for, for the table's metadata.
      done: called with a number of maps that are measured, or were there.
      warn: called with a line for each picture that can't be read.

    Returns:
      The table, which is ``table.parquet`` too, and the names of pictures that can't be read.

    Raises:
      ValueError: the table in ``out`` was made with other settings.
      OSError: no picture can be read, now or before.
    """
    have = resume(evaluation, out).done()
    made = {"command": list(command), "versions": {name: version(name) for name in PACKAGES}}
    failures: list[str] = []

    def fail(name, why):
        failures.append(name)
        warn(why)

    load, explainers, measure = _programs(evaluation, fail)
    for places in _batches(evaluation):
        todo = {
            s.method: [i for i in evaluation.places(s.method, places) if (s.method, i) not in have]
            for s in evaluation.job.steps
        }
        done(sum(len(places) - len(missing) for missing in todo.values()))
        batch = load(sorted(set().union(*todo.values())))
        for step, explain in zip(evaluation.job.steps, explainers, strict=True):
            if batch and (part := batches.select(batch, todo[step.method])):
                heatmaps = explain(part.inputs, part.targets, part.places)
                columns, fractions = measure(step.method, part, heatmaps)
                rows = batches.rows(part, step.method).with_columns(**columns)
                settings = evaluation.settings_of(step.method)
                tables.add(out, Table(rows, settings, fractions, made=made))
            done(len(todo[step.method]))
    table = tables.load(out)
    if not len(table.rows):
        raise OSError(f"no picture of {evaluation.data.name} could be read")
    return tables.finish(out, table, curves), failures


def _programs(evaluation: Evaluation, fail: Callable[[str, str], None]):
    """What is compiled, each at its first use: ``load``, an explainer per step, ``measure``."""
    job, size = evaluation.job, min(evaluation.job.batch_size, len(evaluation.data.samples))
    load = functools.partial(
        batches.load,
        evaluation.data,
        preprocess=job.network.preprocess,
        classify=jobs.logits(job, size),
        of_predicted=evaluation.target == "predicted",
        fail=fail,
    )
    explainers = [
        jobs.explainer(job, step, evaluation.at_most(step.method, size)) for step in job.steps
    ]
    return load, explainers, _measure(evaluation, size)


def _measure(evaluation: Evaluation, size: int) -> Callable[[str, Batch, np.ndarray], Measured]:
    """``(method, batch, heatmaps [n, H, W]) -> columns, fractions``: few programs for all methods.

    Those of the costly metrics, which are for some of the samples only, have smaller batches; so
    have those of methods that explain few.
    """
    every, groups = evaluation.costly_every, {}
    for name, options in evaluation.metrics.items():
        turn = every if METRICS[name].costly else 1
        groups.setdefault(turn, {})[name] = options

    @functools.cache
    def program(turn, most):
        return _suite(evaluation, groups[turn], most)

    def measure(method, batch, heatmaps):
        columns, fractions = {}, {}
        for turn, group in groups.items():
            at = np.flatnonzero(batch.places % turn == 0)
            found = dict.fromkeys(group)
            if at.size:
                most = min(-(-size // turn), evaluation.at_most(method, size))
                given = (batch.inputs, batch.targets, heatmaps, batch.regions, batch.places)
                found = program(turn, most)(*(a[at] for a in given))
            for name, value in found.items():
                columns |= batches.columns(name, value, at, len(heatmaps))
                if isinstance(value, Curve) and (known := np.isfinite(value.auc)).any():
                    fractions[name] = value.fractions[known][0].tolist()
        return columns, fractions

    return measure


def _suite(evaluation: Evaluation, chosen: Mapping[str, Mapping[str, Any]], size: int):
    method = suite(chosen, evaluation.job.seed)
    return batched(method, evaluation.job.network.model, batch_size=size, of=probability)


def _batches(evaluation: Evaluation) -> Iterator[range]:
    n, size = len(evaluation.data.samples), evaluation.job.batch_size
    return (range(start, min(start + size, n)) for start in range(0, n, size))
