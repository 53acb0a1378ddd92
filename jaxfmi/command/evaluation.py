"""What an evaluation computes: many methods on a data set, and metrics of every map.

Everything that can be wrong with a command is found by ``plan_evaluation``, before the first
picture is read; ``execute.run`` computes what is planned.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jaxfmi import probability
from jaxfmi.command import job as jobs
from jaxfmi.command import tables
from jaxfmi.command.datasets import Data, label_offset, shift
from jaxfmi.command.job import Job
from jaxfmi.command.methods import CONTROLS, METHODS
from jaxfmi.command.metrics import METRICS, check_metrics, main_metrics, metric_settings
from jaxfmi.command.networks import Network
from jaxfmi.command.words import assignment, pick
from jaxfmi.modules import class_score

ALL = "all"
CURVES = ("deletion", "insertion")  # say little where values are tied: that is measured with them
TIED = "tied"
EXPLAINERS = METHODS | CONTROLS
TARGETS = ("label", "predicted")


@dataclass
class Evaluation:
    """What to compute: methods (in ``job``) and metrics, of which the costly on fewer images."""

    job: Job
    data: Data
    metrics: dict[str, dict[str, Any]]
    target: str
    costly_every: int
    method_every: dict[str, int]  #: methods that explain one image in so many only
    offset: int
    left_out: dict[str, str]  #: methods that can't explain this network, and why

    @cached_property
    def settings(self) -> tables.Settings:
        """All that a row depends on, as JSON has it; chunks are how, not what."""
        card = self.job.network.card
        methods = {s.method: {"layer": s.layer} | _lasting(s.options) for s in self.job.steps}
        found = {
            "network": card | {"weights": card["weights"]["sha256"]},
            "data": self.data.card | {"label_offset": self.offset},
            "score": self.job.score,
            "target": self.target,
            "seed": self.job.seed,
            "costly_every": self.costly_every,
            "metrics": {name: _lasting(options) for name, options in self.metrics.items()},
            "methods": methods,
        }
        return json.loads(json.dumps(found))

    def places(self, method: str, among: Iterable[int]) -> list[int]:
        """Those of some samples that a method explains."""
        return [i for i in among if i % self.method_every.get(method, 1) == 0]

    def at_most(self, method: str, size: int) -> int:
        """How many of so many samples in a row a method explains at the most."""
        return -(-size // self.method_every.get(method, 1))

    def settings_of(self, method: str) -> tables.Settings:
        """The settings with a single method."""
        found = self.settings
        return found | {"methods": {method: found["methods"][method]}}


def plan_evaluation(
    network: Network,
    data: Data,
    methods: Iterable[str] = (ALL,),
    *,
    metrics: Iterable[str] = (),
    layer: str = "auto",
    options: Iterable[str] = (),
    score: str = jobs.AUTO,
    target: str = "label",
    offset: int | None = None,
    costly_every: int = 1,
    method_every: Iterable[str] = (),
    without: Collection[str] = (),
    batch_size: int = 16,
    seed: int = 0,
) -> Evaluation:
    """Turn the words of a command into an evaluation.

    Args:
      network: from ``open_network``.
      data: from ``open_data``.
      methods: names of methods and controls; ``all`` are all that can explain the network, and
        those that are named or have an option of their own have to.
      metrics: names of metrics; none for the main ones, those of localisation only if there are
        boxes. ``tied`` comes with deletion and insertion.
      layer: for the methods that explain one.
      options: words ``[METHOD.]name=value`` and ``METRIC.name=value``.
      score: what methods explain, ``auto`` what each asks for; metrics always take the
        probability.
      target: the class that is explained: the data set's ``label``, or the ``predicted`` one.
      offset: added to labels; None for that of ``label_offset``.
      costly_every: metrics that need many forward passes are computed for every so-manyth sample,
        beginning with the first, and NaN for the others.
      method_every: words ``METHOD=N``: a method that explains every N-th sample only.
      without: methods that ``all`` leaves out.
      batch_size: images at a time.
      seed: of all that is random.

    Raises:
      ValueError: an unknown name, a label that the network doesn't have, a metric of regions for
        data without, or an option that does not fit, each with what there is.
    """
    pick("target", target, TARGETS)
    names = [pick("method", name, [ALL, *EXPLAINERS]) for name in methods]
    without = [pick("method", name, EXPLAINERS) for name in without]
    asked = [n for n in (EXPLAINERS if ALL in names else names) if n not in without]
    turns = _turns(method_every, asked)
    offset = label_offset(offset, len(network.classes))
    data = shift(data, offset, len(network.classes))
    chosen = _metrics(list(metrics), data)
    of_metrics = [text for text in options if text.partition(".")[0] in METRICS]
    others = [text for text in options if text not in of_metrics]
    job = jobs.plan(
        network,
        asked,
        layer=[layer],
        options=others,
        score=score,
        batch_size=batch_size,
        seed=seed,
        table=EXPLAINERS,
    )
    job, left_out = _able(job, {*names, *(text.partition(".")[0] for text in others)})
    settings = metric_settings(chosen, of_metrics)
    check_metrics(settings, class_score(network.model, probability), network.preprocess.size)
    turns = {name: turn for name, turn in turns.items() if name not in left_out}
    return Evaluation(job, data, settings, target, costly_every, turns, offset, left_out)


def _turns(words: Iterable[str], methods: Iterable[str]) -> dict[str, int]:
    """``METHOD=N`` as a table of the methods that are chosen."""
    found = {}
    for text in words:
        name, turn = assignment(text)
        if not (isinstance(turn, int) and turn > 0):
            raise ValueError(f"expected METHOD=N with a count of at least 1, got {text!r}")
        found[pick("chosen method", name, methods)] = turn
    return {name: turn for name, turn in found.items() if turn > 1}


def _lasting(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k != "chunk"}


def _metrics(wanted: list[str], data: Data) -> list[str]:
    annotated = any(sample.boxes for sample in data.samples)
    regional = {name for name, row in METRICS.items() if row.takes == "region"}
    chosen = [pick("metric", name, METRICS) for name in dict.fromkeys(wanted)]
    if not annotated and (lost := [name for name in chosen if name in regional]):
        raise ValueError(f"{', '.join(lost)} need boxes; no picture of {data.name} has any")
    chosen = chosen or [n for n in main_metrics() if annotated or n not in regional]
    return list(dict.fromkeys([*chosen, *[TIED] * any(name in CURVES for name in chosen)]))


def _able(job: Job, named: Collection[str]) -> tuple[Job, dict[str, str]]:
    """The job without methods that can't explain its network, and why; none that is named."""
    steps, left_out = [], {}
    for step in job.steps:
        try:
            jobs.check(replace(job, steps=[step]))
            steps.append(step)
        except ValueError as error:
            if step.method in named:
                raise
            left_out[step.method] = str(error).removeprefix(f"{step.method}: ")
    return replace(job, steps=steps), left_out
