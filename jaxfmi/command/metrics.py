"""The metrics by name: one table that ``jaxfmi evaluate`` and the leaderboard share.

All metrics of a heatmap are computed together, in one program per network that serves every
method, so that nothing compiles once per method. A new metric is one row. Metrics that ask the
explainer again (max_sensitivity, random_logit, parameter_randomisation and so on) have none: they
are in the library only.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxfmi import metrics
from jaxfmi.command.methods import read, settings
from jaxfmi.command.words import Words, defaults
from jaxfmi.explainer import Score
from jaxfmi.heatmap import unit
from jaxfmi.references import blur

Measure = Callable[..., Any]
"""``(x [H, W, C], label, heatmap [H, W], region [H, W], key) -> value`` or ``Curve``."""


class Metric(NamedTuple):
    """A row: the function, what it is given, and how its values read."""

    function: Callable[..., Any]
    takes: Literal["map", "region", "score"]
    better: Literal["higher", "lower"] | None  #: None: it says how maps are, not how good
    range: str
    main: bool = False  #: computed unless others are asked for
    costly: bool = False  #: many forward passes per map
    unit: bool = False  #: asks for maps in [0, 1]: they are scaled by minimum and maximum
    words: Mapping[str, Words] = {}

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Everything that the function takes beside heatmap and region, or score."""
        given = {"map": 1, "region": 2, "score": 1}[self.takes]
        return dict(list(inspect.signature(self.function).parameters.items())[given:])

    @property
    def options(self) -> dict[str, Any]:
        """Its options with their defaults."""
        return defaults(self.parameters)


BASELINE = {"baseline": Words({"rise_blur": metrics.rise_blur, "blur": blur()})}
CURVE = BASELINE | {"ties": Words({"first": "first", "last": "last"})}

METRICS: dict[str, Metric] = {
    "energy_pointing": Metric(metrics.energy_pointing, "region", "higher", "0 to 1", main=True),
    "pointing": Metric(
        metrics.pointing,
        "region",
        "higher",
        "0 or 1",
        main=True,
        words={"ties": Words({"first": "first", "any": "any"})},
    ),
    "iou": Metric(metrics.iou, "region", "higher", "0 to 1", main=True),
    "box_hit": Metric(metrics.box_hit, "region", "higher", "0 to 1", main=True),
    "relevance_mass": Metric(metrics.relevance_mass, "region", "higher", "any, 1 is all inside"),
    "top_k_intersection": Metric(metrics.top_k_intersection, "region", "higher", "0 to 1"),
    "drop": Metric(
        metrics.drop, "score", "lower", "0 to 100 %", main=True, unit=True, words=BASELINE
    ),
    "increase": Metric(
        metrics.increase, "score", "higher", "0 or 100 %", main=True, unit=True, words=BASELINE
    ),
    "gain": Metric(metrics.gain, "score", "higher", "0 to 100 %", unit=True, words=BASELINE),
    "deletion": Metric(
        metrics.deletion_curve, "score", "lower", "0 to 1", main=True, costly=True, words=CURVE
    ),
    "insertion": Metric(
        metrics.insertion_curve, "score", "higher", "0 to 1", main=True, costly=True, words=CURVE
    ),
    "region_perturbation": Metric(
        metrics.region_perturbation, "score", "higher", "-1 to 1", costly=True, words=BASELINE
    ),
    "road": Metric(metrics.road, "score", "higher", "-1 to 1", costly=True),
    "sensitivity_n": Metric(
        metrics.sensitivity_n, "score", "higher", "-1 to 1", costly=True, words=BASELINE
    ),
    "mu_fidelity": Metric(
        metrics.mu_fidelity, "score", "higher", "-1 to 1", costly=True, words=BASELINE
    ),
    # Maps of different methods have different units, which must not decide the order.
    "infidelity": Metric(
        functools.partial(metrics.infidelity, normalize=True),
        "score",
        "lower",
        "from 0",
        costly=True,
    ),
    "sparseness": Metric(metrics.sparseness, "map", None, "0 to 1", main=True),
    "complexity": Metric(metrics.complexity, "map", None, "0 to log(H W)"),
    "effective_complexity": Metric(metrics.effective_complexity, "map", None, "0 to H W"),
    "tied": Metric(metrics.tied_share, "map", None, "0 to 1", main=True),
}


ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}


def main_metrics() -> list[str]:
    """The names of the metrics that are computed unless others are asked for."""
    return [name for name, row in METRICS.items() if row.main]


def metric_settings(chosen: Iterable[str], options: Iterable[str]) -> dict[str, dict[str, Any]]:
    """All options of the chosen metrics, from words ``METRIC.name=value``; see ``settings``."""
    return settings(chosen, options, METRICS, "metric")


def check_metrics(
    chosen: Mapping[str, Mapping[str, Any]], score: Score, size: tuple[int, int]
) -> None:
    """Trace metrics for pictures of a size without computing.

    Raises:
      ValueError: an option that is impossible.
    """
    x = jax.ShapeDtypeStruct((*size, 3), jnp.float32)
    heatmap, region = (jax.ShapeDtypeStruct(size, dtype) for dtype in (jnp.float32, bool))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    for name, options in chosen.items():
        try:
            jax.eval_shape(suite({name: options})(score), x, number, heatmap, region, number)
        except Exception as error:  # an impossible option can fail anywhere in a metric
            raise ValueError(f"{name}: {error}") from error


def suite(chosen: Mapping[str, Mapping[str, Any]], seed: int = 0) -> Callable[[Score], Measure]:
    """Make ``score -> (x, label, heatmap, region, place) -> {name: value}``: all metrics at once.

    The score comes from ``jaxfmi.batched`` and should be a probability. A sample's place seeds the
    random metrics, so that a value does not depend on the batch around it. Where a map is not
    finite, or a metric undefined, a value is NaN.

    Args:
      chosen: options by metric, from ``metric_settings``.
      seed: of random metrics.
    """

    def measure_all(score):
        measures = {name: _measure(name, options, score) for name, options in chosen.items()}

        def measure(x, label, heatmap, region, place):
            sound = jnp.isfinite(heatmap).all()
            heatmap = jnp.where(sound, heatmap, 0)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), place), 1)
            found = {n: m(x, label, heatmap, region, key) for n, m in measures.items()}
            return jax.tree.map(lambda v: jnp.where(sound, v, jnp.nan), found)

        return measure

    return measure_all


def _measure(name: str, options: Mapping[str, Any], score: Score) -> Measure:
    row = METRICS[name]
    values = {k: read(name, k, v, METRICS) for k, v in options.items()}
    if row.takes == "map":
        return lambda x, label, heatmap, region, key: row.function(heatmap, **values)
    if row.takes == "region":
        return lambda x, label, heatmap, region, key: row.function(heatmap, region, **values)
    ask = row.function(score, **values)
    keyed = "key" in inspect.signature(ask).parameters

    def measure(x, label, heatmap, region, key):
        scaled = unit(heatmap) if row.unit else heatmap
        return ask(x, scaled, label, **({"key": key} if keyed else {}))

    return measure
