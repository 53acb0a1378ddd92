"""The table of an evaluation, kept as it grows, so that a run that was killed goes on where it was.

A finished table is one Parquet file, which carries the settings that made it: it can be committed,
and other methods be added to it later. While a run goes on, its rows are parts in a folder beside.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

TABLE, PARTS = "table.parquet", "parts"
KEY = ("method", "index")
CURVE = "_curve"  # ending of the columns of curves
SHOWN = 3  # differing settings in an error

Settings = dict[str, Any]


@dataclass
class Table:
    """Rows by image and method, and what has to be known of them."""

    rows: pl.DataFrame = field(default_factory=pl.DataFrame)
    settings: Settings = field(default_factory=dict)
    fractions: dict[str, list[float]] = field(default_factory=dict)  #: of the metrics with curves
    curves: dict[str, dict[str, Any]] = field(default_factory=dict)  #: mean curves by method
    made: dict[str, Any] = field(default_factory=dict)  #: command and versions of the last run

    def done(self) -> set[tuple[str, int]]:
        """The pairs of method and index that have a row."""
        return set(self.rows.select(KEY).iter_rows()) if len(self.rows) else set()


def load(out: Path) -> Table:
    """Read what is in a folder, a finished table and parts; an empty table if there is nothing.

    Raises:
      ValueError: a file is no table of an evaluation.
    """
    found, rows, seen = Table(), [], set()
    for path in _files(out):
        part = _read(path)
        here = part.done()
        if twice := here & seen:  # the first counts; a mean curve can't be had without them
            before = pl.DataFrame(list(twice), part.rows.select(KEY).schema, orient="row")
            part.rows = part.rows.join(before, on=KEY, how="anti")
            part.curves = {k: v for k, v in part.curves.items() if k not in {m for m, _ in twice}}
        seen |= here
        rows.append(part.rows)
        found = _join(found, part)
    if rows:
        found.rows = pl.concat(rows, how="diagonal").sort(KEY)
    return found


def add(out: Path, table: Table) -> None:
    """Keep new rows: the part is written under another name first, there is never half of one."""
    folder = out / PARTS
    folder.mkdir(parents=True, exist_ok=True)
    method, index = table.rows.row(0, named=True)["method"], table.rows["index"].min()
    _write(folder / f"{index:07}.{method}.parquet", table)


def bring(out: Path, other: Path) -> None:
    """Take over what is in another folder, finished or not: as parts, with others' rows kept.

    Raises:
      ValueError: the table there was made with other settings.
    """
    here, there = load(out), load(other)
    if here.settings and there.settings:
        compare(there.settings, here.settings, other)
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    whence = hashlib.sha256(str(other.resolve()).encode()).hexdigest()[:12]
    for path in _files(other):
        shutil.copyfile(path, out / PARTS / f"{whence}.{path.name}")


def finish(out: Path, table: Table, curves: bool = False) -> Table:
    """Make everything one file, ``table.parquet``, and take the parts away.

    Args:
      out: the folder.
      table: all rows, as ``load`` gives them.
      curves: keep the curve of every image; else only their means are kept, in the file's
        metadata.
    """
    if not curves:
        table.rows = _scalars(table.rows)
    _write(out / TABLE, table)
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return table


def clear(out: Path) -> None:
    """Take away table and parts."""
    (out / TABLE).unlink(missing_ok=True)
    shutil.rmtree(out / PARTS, ignore_errors=True)


def export(table: Table, out: Path) -> None:
    """Write ``table.csv``: all rows, without curves, which are lists."""
    _scalars(table.rows).write_csv(out / "table.csv")


def mean_curves(table: Table) -> dict[str, dict[str, Any]]:
    """Mean curves ``{method: {metric: {n, fractions, scores}}}`` of the rows that have theirs."""
    found: dict[str, dict[str, Any]] = {}
    for name, fractions in table.fractions.items():
        if name + CURVE not in table.rows.columns:
            continue
        kept = table.rows.drop_nulls(name + CURVE).filter(pl.col(name).is_not_nan())
        for (method,), rows in kept.group_by("method"):
            scores = np.stack(rows[name + CURVE].to_list()).mean(0, dtype=float)
            mean = {"n": len(rows), "fractions": fractions, "scores": scores.tolist()}
            found.setdefault(str(method), {})[name] = mean
    return found


def compare(there: Settings, wanted: Settings, out: Path) -> None:
    """Hold settings against those of a table that is there.

    Methods may be others; where they are the same, their options must be.

    Raises:
      ValueError: something differs; says what.
    """
    shared = {m: wanted["methods"][m] for m in there["methods"] if m in wanted["methods"]}
    old = there | {"methods": {m: there["methods"][m] for m in shared}}
    one, two = dict(_flat(old)), dict(_flat(json.loads(json.dumps(wanted | {"methods": shared}))))
    keys = dict.fromkeys([*one, *two])
    differ = [k for k in keys if k not in one or k not in two or one[k] != two[k]]
    if differ:
        words = [_difference(k, one, two) for k in differ[:SHOWN]]
        more = f" and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
        raise ValueError(
            f"the table in '{out}' was made {', '.join(words)}{more}; choose another --out, "
            "or --overwrite"
        )


def without(table: Table, methods: Iterable[str]) -> Table:
    """Take methods out of a table, to compute them anew."""
    gone = list(methods)
    if len(table.rows):
        table.rows = table.rows.filter(~pl.col("method").is_in(gone))
    for name in gone:
        table.curves.pop(name, None)
        table.settings.get("methods", {}).pop(name, None)
    return table


def _scalars(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.drop([name for name in rows.columns if name.endswith(CURVE)])


def _files(out: Path) -> list[Path]:
    return [p for p in (out / TABLE, *sorted((out / PARTS).glob("*.parquet"))) if p.is_file()]


def _join(one: Table, two: Table) -> Table:
    """What is known of two tables' rows; mean curves too: the curves may be there no more."""
    methods = one.settings.get("methods", {}) | two.settings["methods"]
    return Table(
        pl.DataFrame(),
        two.settings | {"methods": methods},
        one.fractions | two.fractions,
        _join_curves(one.curves, two.curves or mean_curves(two)),
        two.made,
    )


def _join_curves(one: dict[str, dict[str, Any]], two: dict[str, dict[str, Any]]):
    found = {method: one.get(method, {}) | two.get(method, {}) for method in sorted({*one, *two})}
    for method in one.keys() & two.keys():
        for name in one[method].keys() & two[method].keys():
            found[method][name] = _mean(one[method][name], two[method][name])
    return found


def _mean(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """The mean of two mean curves, each of n images."""
    counts = (one["n"], two["n"])
    scores = np.average([one["scores"], two["scores"]], axis=0, weights=counts)
    return one | {"n": sum(counts), "scores": scores.tolist()}


def _write(path: Path, table: Table) -> None:
    meta = {k: v for k, v in vars(table).items() if k != "rows"}
    partial = path.with_name(f".{path.name}.partial")
    table.rows.write_parquet(partial, metadata={k: json.dumps(v) for k, v in meta.items()})
    partial.replace(path)


def _read(path: Path) -> Table:
    try:
        meta = pl.read_parquet_metadata(path)
        found = {name: json.loads(meta[name]) for name in vars(Table()) if name != "rows"}
        return Table(pl.read_parquet(path), **found)
    except (KeyError, ValueError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"'{path}' is no table of an evaluation, or broken: {error}") from error


def _difference(key: str, one: Settings, two: Settings) -> str:
    if key not in one:
        return f"without {key}"
    return f"with {key}" + (f"={one[key]} and not {two[key]}" if key in two else "")


def _flat(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, value
