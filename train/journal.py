"""What a run tells: lines of JSON, TensorBoard files, and a bar on the terminal."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Journal", "journal", "read_log", "rounds"]

LOG = "log.jsonl"


class Journal(NamedTuple):
    """Functions that tell about a run."""

    write: Callable[[Mapping[str, float]], None]  #: a row, which has a `step`
    tick: Callable[[int, Mapping[str, float]], None]  #: the bar's step, and figures beside it
    say: Callable[[str], None]  #: a line on the terminal


@contextmanager
def journal(out: Path, step: int, total: int, shown: bool | None = None) -> Iterator[Journal]:
    """Open the log of a run that goes on at `step` of `total`; what it says of later steps goes.

    Rows are appended to `log.jsonl`, where what is undefined is null, and to TensorBoard files in
    `tensorboard`. `shown` is whether there is a bar; None for on a terminal only.
    """
    from tensorboardX import SummaryWriter

    _cut(out / LOG, step)
    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    hidden = not (sys.stderr.isatty() if shown is None else shown)
    board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=hidden)
    with bar, board, (out / LOG).open("a") as log:
        task = bar.add_task("training", total=total, completed=step, figures="")

        def write(row: Mapping[str, float]) -> None:
            numbers = {k: v if math.isfinite(v) else None for k, v in row.items()}
            print(json.dumps(numbers), file=log, flush=True)
            for name, value in row.items():
                if name != "step":
                    board.add_scalar(_group(name), value, int(row["step"]))
            board.flush()
            console.print(_figures(row))

        def tick(at: int, figures: Mapping[str, float]) -> None:
            bar.update(task, completed=at, figures=_figures(figures))

        yield Journal(write, tick, console.print)


@contextmanager
def rounds(out: Path, numbers: range) -> Iterator[tuple[Iterable[int], Callable]]:
    """The log and the bar, on a terminal only, of a run that goes by rounds.

    Gives the numbers, which move the bar on, and a function that appends a row to `log.jsonl` and
    says it. Rows of rounds that will come again go.
    """
    _keep(out / LOG, read_log(out / LOG)[: numbers.start])
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    bar = Progress(console=console, disable=not sys.stderr.isatty())
    with bar, (out / LOG).open("a") as log:

        def write(row: Mapping[str, float]) -> None:
            print(json.dumps(row), file=log, flush=True)
            console.print(_figures(row))

        yield bar.track(numbers, description="training"), write


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a log; a last line that was not written to its end is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _cut(path: Path, step: int) -> None:
    """Take out the rows of steps that will come again."""
    _keep(path, [row for row in read_log(path) if row.get("step", math.inf) <= step])


def _keep(path: Path, rows: list[dict[str, float]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _figures(row: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in row.items())


def _group(name: str) -> str:
    split, _, rest = name.partition("_")
    return f"{split}/{rest}" if split in ("val", "test") else f"train/{name}"
