"""Go through the steps of a run: batches in, rows of the log and checkpoints out."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxfmi.train import attention, checkpoint
from jaxfmi.train.checkpoint import Save
from jaxfmi.train.config import Config
from jaxfmi.train.data import Data, Records, Split, batches, boxes_of, count, spaced, sweep
from jaxfmi.train.journal import Journal
from jaxfmi.train.schedule import schedule

__all__ = ["Run", "State", "means", "spread", "train", "watched", "weights", "zeros"]

PROBE = 500  #: pictures whose maps are held against their boxes
DRAWN = 8  #: of them, on a panel
TICK = 1.0  #: seconds between looks at the figures of the epoch

Measure = Callable[..., dict[str, jax.Array]]


class State(NamedTuple):
    """All that changes in a run, and so all that a checkpoint holds."""

    model: nnx.State
    optimizer: nnx.State  #: momentum and the number of steps
    average: nnx.State  #: of weights and batch statistics; empty without `ema`
    sums: dict[str, jax.Array]  #: of the figures of steps, since the last row of the log
    key: jax.Array  #: of all augmentation; a step's is folded from it


class Run(NamedTuple):
    """What does not change in a run."""

    config: Config
    data: Data
    steps: int  #: in an epoch
    step: Callable[..., State]  #: (state, images, labels, size=0), compiled
    measure: Measure  #: (weights, images, labels) -> figures [N]
    look: Callable[..., jax.Array | None]  #: (weights, images) -> maps [N, h, w], or None
    batch: NamedSharding
    out: Path

    @property
    def total(self) -> int:
        """The number of steps."""
        return self.config.epochs * self.steps

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        return self.out / "checkpoint"


class Mark(NamedTuple):
    """A step, and when it was done."""

    step: int
    time: float


def train(
    run: Run, state: State, done: int, tell: Journal, stop_at: float = np.inf
) -> tuple[int, State]:
    """Go on after `done` steps to the end, or until `stop_at` (of `time.monotonic`).

    Returns:
      The number of steps that are done, and the state.

    Raises:
      KeyboardInterrupt, SystemExit: after an interrupt, or SIGTERM; the state is saved.
      FloatingPointError: the loss or its gradient is not finite.
      OSError: a checkpoint can't be written.
    """
    c, maps, at, kept = run.config, _maps_of(run, state, done), done, done
    last = seen = Mark(done, time.monotonic())
    pictures = batches(run.data["train"], c, done) if done < run.total else iter(())
    with checkpoint.saving(run.folder, c.keep) as save, _signals() as caught:
        try:
            for at, batch in enumerate(pictures, done + 1):
                epoch, within = divmod(at - 1, run.steps)
                size = c.sizes[epoch * len(c.sizes) // c.epochs] if c.sizes else 0
                state = run.step(state, *jax.device_put(batch, run.batch), size=size)
                ends, score = within + 1 == run.steps, None
                if ends or (c.log_every and at % c.log_every == 0):
                    row, fresh = _row(run, state, last, Mark(at, time.monotonic()), size)
                    if _examined(run, at):
                        figures, maps = _examine(run, state, epoch, maps)
                        row, score = row | figures, figures[f"{watched(run)}_accuracy"]
                    tell.write(row)
                    state = fresh  # not before: what ends an evaluation leaves the sums alone
                    last = seen = Mark(at, time.monotonic())
                if time.monotonic() > seen.time + TICK:
                    seen = Mark(at, time.monotonic())
                    tell.tick(at, means(run, state, at) | {"images/s": _speed(run, last, seen)})
                stop = bool(caught) or time.monotonic() > stop_at
                if stop or score is not None or (at % c.save_every == 0 if c.save_every else ends):
                    _save(run, save, state, at, score)
                    kept = at
                if stop and at < run.total:
                    break
        except Exception:
            if not caught:
                raise
            if kept < at:  # the signal has ended the processes that read, too
                _save(run, save, state, at, None)
                kept = at
    if caught:
        _leave(caught[0], kept, tell)
    return at, state


def means(run: Run, state: State, at: int) -> dict[str, float]:
    """The figures of the steps since the last row, up to step `at`.

    Raises:
      FloatingPointError: they are not finite.
    """
    sums = {name: float(value) for name, value in jax.device_get(state.sums).items()}
    n = max(sums.pop("steps"), 1)
    for name, what in (("loss", "loss"), ("grad_norm", "norm of the gradient")):
        if not np.isfinite(sums[name]):
            last = checkpoint.latest(run.folder)
            kept = "there is no checkpoint" if last is None else f"that of step {last} is kept"
            raise FloatingPointError(
                f"the {what} is {sums[name]} in epoch {(at - 1) // run.steps}, at step {at} or "
                f"little before; {kept}; begin anew in another folder, with a learning rate below "
                f"{run.config.learning_rate}"
            )
    return {name: value / n for name, value in sums.items()}


def figures(
    measure: Measure,
    model: nnx.State,
    split: Split | Records,
    config: Config,
    sharding: NamedSharding,
) -> dict[str, float]:
    """Mean figures of weights on a split, and the number of its `images`."""
    n, size = count(split), config.batch_size
    sums: dict[str, float] = {}
    for i, batch in enumerate(sweep(split, config)):
        rows = measure(model, *jax.device_put(batch, sharding))
        for name, values in rows.items():
            part = np.asarray(values, float)[: n - i * size].sum()
            sums[name] = sums.get(name, 0.0) + float(part)
    return {name: total / n for name, total in sums.items()} | {"images": n}


def weights(state: State) -> nnx.State:
    """The model's state, with the averages where there are any."""
    return nnx.merge_state(state.model, state.average)


def watched(run: Run) -> str:
    """The split that is evaluated while the run goes on."""
    if run.config.select != "last":
        return run.config.select
    return "val" if "val" in run.data else "test"


def zeros(names: Any) -> dict[str, jax.Array]:
    """Sums to begin with."""
    return {name: jnp.zeros(()) for name in names}


def spread(config: Config) -> tuple[NamedSharding, NamedSharding]:
    """How the state lies on the devices, whole on each, and how a batch does, in parts.

    Raises:
      ValueError: there are not so many devices, or a batch can't be spread evenly.
    """
    there = jax.devices()
    if not 0 <= config.devices <= len(there):
        raise ValueError(f"--devices {config.devices}, but there are {len(there)}: {there}")
    used = np.array(there[: config.devices or None])
    if config.batch_size % len(used):
        raise ValueError(
            f"a batch of {config.batch_size} can't be spread evenly over {len(used)} devices: "
            "give a multiple, or fewer with --devices"
        )
    mesh = Mesh(used, ("data",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def _row(
    run: Run, state: State, last: Mark, now: Mark, size: int
) -> tuple[dict[str, float], State]:
    """The figures since the last row, and the state that counts anew."""
    found = means(run, state, now.step)  # waits for the step
    now = Mark(now.step, time.monotonic())
    row = {"epoch": (now.step - 1) // run.steps, "step": now.step, "seconds": now.time - last.time}
    row |= {"size": size} if size else {}
    row |= {"images_per_second": _speed(run, last, now)}
    row |= {"learning_rate": float(np.asarray(schedule(run.config, run.steps)(now.step - 1)))}
    fresh = jax.device_put(zeros(state.sums), state.key.sharding)
    return row | found, state._replace(sums=fresh)


def _examined(run: Run, at: int) -> bool:
    """Whether step `at` is followed by an evaluation."""
    epoch, within = divmod(at, run.steps)
    return within == 0 and (epoch % run.config.evaluate_every == 0 or at == run.total)


def _maps_of(run: Run, state: State, done: int) -> np.ndarray | None:
    """The maps of the evaluation before, where a run goes on from one."""
    if not (0 < done < run.total and _examined(run, done)):
        return None
    seen = _maps(run, weights(state), run.data[watched(run)])
    return None if seen is None else seen[0]


def _examine(
    run: Run, state: State, epoch: int, before: np.ndarray | None
) -> tuple[dict[str, float], np.ndarray | None]:
    """Evaluate, and look at the maps of some pictures, if the model makes any.

    `before` are those of the evaluation before, None where they are not known: in the first one,
    and in the next after a start from a step that was not evaluated.
    """
    c, name, model = run.config, watched(run), weights(state)
    split = run.data[name]
    found = figures(run.measure, model, split, c, run.batch)
    maps = None
    if seen := _maps(run, model, split):
        maps, images, labels = seen
        found |= attention.steadiness(maps, before)
        boxes = boxes_of(split, c.size)
        if boxes is not None:
            found |= attention.localise(maps, boxes[spaced(count(split), PROBE)], images.shape[1:3])
        if c.panel_every and (epoch + 1) // c.evaluate_every % c.panel_every == 0:
            few = spaced(len(maps), DRAWN)
            captions = [split.names[label].split(",")[0] for label in labels[few]]
            path = run.out / "attention" / f"epoch_{epoch:04}.png"
            attention.draw(path, images[few], maps[few], captions)
    return {f"{name}_{key}": value for key, value in found.items() if key != "images"}, maps


def _maps(run: Run, model: nnx.State, split: Split | Records) -> list[np.ndarray] | None:
    """Maps [n, h, w] of some pictures, these and their labels; None where there is no map."""
    found = []
    for images, labels in sweep(split, run.config, PROBE):
        maps = run.look(model, jax.device_put(images, run.batch))
        if maps is None:
            return None
        found.append((np.asarray(maps, np.float32), images, labels))
    n = min(PROBE, count(split))
    return [np.concatenate(parts)[:n] for parts in zip(*found, strict=True)]


def _save(run: Run, save: Save, state: State, at: int, score: float | None) -> None:
    means(run, state, at)  # what is not finite is never saved
    meta = {"config": asdict(run.config)}
    save(at, state, meta | {"classes": run.data["train"].names}, score)


def _speed(run: Run, last: Mark, now: Mark) -> float:
    return run.config.batch_size * (now.step - last.step) / max(now.time - last.time, 1e-9)


def _leave(number: int, at: int, tell: Journal) -> None:
    """After a signal: say so, and go."""
    kept = f"step {at} is saved" if at else "nothing is saved, as no step was done"
    tell.say(f"stopped by {signal.Signals(number).name}: {kept}")
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT are put in a list; a second one interrupts."""
    caught: list[int] = []

    def catch(number: int, _: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {s: signal.signal(s, catch) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
