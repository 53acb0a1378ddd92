"""What the commands of ``jaxfmi`` share on a terminal: errors of one line, exit codes, a bar."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


@contextmanager
def one_line() -> Iterator[None]:
    """What is wrong with the words of a command is one line, and exit code 2."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        complain(str(error))
        raise typer.Exit(MISUSED) from error


@contextmanager
def kept(hint: str) -> Iterator[None]:
    """What stops the computation is one line too; ``hint`` says what is done."""
    try:
        yield
    except KeyboardInterrupt as error:
        complain(f"interrupted; {hint}")
        raise typer.Exit(INTERRUPTED) from error
    except (jax.errors.JaxRuntimeError, OSError) as error:
        complain(f"{error}; {hint}")
        raise typer.Exit(FAILED) from error


def complain(message: str) -> None:
    """One line on stderr, whatever the message's layout."""
    line = re.sub(r":\s*\n\s*", ": ", message.strip())
    print("error: " + re.sub(r"\s*\n\s*", "; ", line), file=sys.stderr)


@contextmanager
def bar(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr; yields what moves it on."""
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        task = progress.add_task("explaining", total=total)
        yield lambda n: progress.advance(task, n)


def is_terminal() -> bool:
    """Whether somebody may be watching."""
    return sys.stderr.isatty()


def split(words: list[str]) -> list[str]:
    """Split words at their commas."""
    return [part.strip() for word in words for part in word.split(",") if part.strip()]
