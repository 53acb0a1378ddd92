"""What a table of an evaluation says: means, how sure they are, and which differences are real."""

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
from scipy.stats import wilcoxon

RESAMPLES = 2000
AT_A_TIME = 1 << 22  # values that are drawn at once
LEVEL = 0.95
ENOUGH = 0.1  # of the images, for a method to compete
PAIRED = {
    "metric": pl.String,
    "against": pl.String,
    "method": pl.String,
    "n": pl.Int64,
    "difference": pl.Float64,
    "p": pl.Float64,
}


def summary(rows: pl.DataFrame, metrics: Iterable[str]) -> pl.DataFrame:
    """Mean of every metric by method: ``method, metric, n, missing, mean, low, high``.

    NaN, an undefined value, is left out and counted in ``missing``. ``low`` and ``high`` are the
    bootstrap interval of the mean.
    """
    found = []
    for (method,), part in rows.sort("method").group_by("method", maintain_order=True):
        for metric in metrics:
            values = _known(part[metric].to_numpy())
            low, high = interval(values)
            mean = float(values.mean()) if values.size else np.nan
            found.append((method, metric, values.size, len(part) - values.size, mean, low, high))
    names = ["method", "metric", "n", "missing", "mean", "low", "high"]
    return pl.DataFrame(found, schema=names, orient="row")


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval (95 %, 2000 resamples) of the mean; NaN below two values."""
    if len(values) < 2:
        return np.nan, np.nan
    rng, n = np.random.default_rng(seed), len(values)
    at_a_time = max(1, AT_A_TIME // n)
    means = [
        values[rng.integers(0, n, (min(at_a_time, RESAMPLES - done), n))].mean(1)
        for done in range(0, RESAMPLES, at_a_time)
    ]
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)


def best(means: pl.DataFrame, metric: str, better: str, methods: Sequence[str]) -> str | None:
    """The method with the best mean, of those with a tenth of the images; None if there is none."""
    found = means.filter(
        pl.col("metric") == metric, pl.col("method").is_in(methods), pl.col("mean").is_not_nan()
    )
    found = found.filter(pl.col("n") >= ENOUGH * pl.col("n").max()).sort(
        "mean", descending=better == "higher", maintain_order=True
    )
    return found["method"][0] if len(found) else None


def enough(means: pl.DataFrame) -> pl.DataFrame:
    """Those rows of a ``summary`` whose method explained a tenth of the images at least."""
    images = pl.col("n") + pl.col("missing")
    return means.filter(images >= ENOUGH * images.max().over("metric"))


def paired(rows: pl.DataFrame, metric: str, against: str, methods: Sequence[str]) -> pl.DataFrame:
    """Compare methods with one of them on the same images, by Wilcoxon's signed-rank test.

    Two-sided, on the images where both values are known; where all are equal, p is 1. Pairs
    without a difference are left out, as Wilcoxon did. ``p_holm`` is corrected for the number of
    methods in this table.

    Returns:
      ``metric, against, method, n, difference, p, p_holm``; the difference is the mean of the
      method's value minus the other's.
    """
    wide = rows.pivot(on="method", index="index", values=metric)
    reference = wide[against].to_numpy()
    found = []
    for method in methods:
        if method != against and method in wide.columns:
            differences = _known(wide[method].to_numpy() - reference)
            found.append((metric, against, method, *_compare(differences)))
    table = pl.DataFrame(found, schema=PAIRED, orient="row")
    return table.with_columns(p_holm=pl.Series(holm(table["p"].to_numpy()), dtype=pl.Float64))


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p-values for their number, as Holm (1979) does; NaN stays NaN and is not counted."""
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN is sorted last
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted


def _compare(differences: np.ndarray) -> tuple[int, float, float]:
    n = len(differences)
    if not n:
        return 0, np.nan, np.nan
    if not differences.any():
        return n, 0.0, 1.0
    _, p = wilcoxon(differences)
    return n, float(differences.mean()), float(p)  # pyright: ignore[reportArgumentType]


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)].astype(float)
