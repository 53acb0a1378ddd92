"""Keep the state of a run on disk, so that it can stop and go on as if it had not."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

__all__ = ["best", "latest", "named", "read", "read_meta", "restore", "save", "saving"]

Save = Callable[..., None]


@contextmanager
def saving(folder: str | Path, keep: int = 1) -> Iterator[Save]:
    """Yield `save(step, state, meta={}, score=None)`, which writes in the background.

    The latest `keep` checkpoints stay, and the one of the highest score. A checkpoint appears under
    its name when it is complete, and those that have to go are removed after that: whatever stops
    the run, the one before is there. Arrays are copied before `save` returns, so that they may be
    given away. On leaving, what is being written is waited for.

    Raises:
      OSError: it can't be written, from the next `save` or on leaving; says what is there.
    """
    folder = Path(folder).absolute()
    policies = [
        policy.LatestN(keep),
        policy.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
    ]
    options = ocp.CheckpointManagerOptions(
        best_fn=_score,  # without it, scores are not kept on disk
        preservation_policy=policy.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=True,  # of what was stopped while it was written
    )
    manager = ocp.CheckpointManager(folder, options=options)

    def save(step: int, state: Any, meta: Mapping[str, Any] | None = None, score=None) -> None:
        with _telling(folder, step):
            manager.wait_until_finished()
            arrays = {name: _to_host(leaf) for name, leaf in named(state).items()}
            items = {
                "state": ocp.args.StandardSave(arrays),
                "meta": ocp.args.JsonSave({**(meta or {}), "score": score}),
            }
            metrics = {"score": -math.inf if score is None else float(score)}
            manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)

    try:
        yield save
        with _telling(folder):
            manager.wait_until_finished()
    finally:
        manager.close()


def save(folder: str | Path, step: int, state: Any) -> None:
    """Write a tree of arrays as the folder's only checkpoint, and wait until it is there."""
    with saving(folder) as write:
        write(step, state)


def restore(folder: str | Path, state: Any, step: int | None = None) -> tuple[int, Any]:
    """Read a checkpoint, the latest unless `step` says which: (step, a tree like `state`).

    Arrays go where those of `state` are, whatever devices they came from. Without a checkpoint this
    gives (-1, `state`).

    Raises:
      ValueError: the checkpoint holds another tree, or it can't be read.
    """
    found = latest(folder) if step is None else step
    if found is None:
        return -1, state
    like, there = named(state), read(folder, found)
    here = {name: np.shape(_to_host(leaf)) for name, leaf in like.items()}
    shapes = {name: array.shape for name, array in there.items()}
    if wrong := sorted(n for n in here.keys() | there.keys() if here.get(n) != shapes.get(n)):
        name = wrong[0]
        raise ValueError(
            f"{_place(folder, found)} is of another network or recipe: {len(wrong)} arrays differ, "
            f"such as {name}, which has shape {shapes.get(name, 'none')} there and "
            f"{here.get(name, 'none')} here"
        )
    leaves = [_from_host(there[name], leaf) for name, leaf in like.items()]
    return found, jax.tree.unflatten(jax.tree.structure(state), leaves)


def read(folder: str | Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by their paths. Raises ValueError where it can't be read."""
    with _reading(folder, step) as manager:
        there = manager.item_metadata(step)["state"]
        empty = {name: np.zeros(array.shape, array.dtype) for name, array in there.items()}
        items = ocp.args.Composite(state=ocp.args.StandardRestore(empty))
        return manager.restore(step, args=items)["state"]


def read_meta(folder: str | Path, step: int) -> dict[str, Any]:
    """What was saved beside the arrays. Raises ValueError where it can't be read."""
    with _reading(folder, step) as manager:
        items = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return manager.restore(step, args=items)["meta"]


def latest(folder: str | Path) -> int | None:
    """The step of the latest checkpoint."""
    return max(_steps(folder), default=None)


def best(folder: str | Path) -> int | None:
    """The step of the checkpoint of the highest score, the latest among equals."""
    scores = {step: read_meta(folder, step).get("score") for step in _steps(folder)}
    there = {step: score for step, score in scores.items() if score is not None}
    return max(reversed(there), key=lambda step: there[step], default=None)


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, such as `model.head.kernel`."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in paths}


def _score(metrics: Mapping[str, float]) -> float:
    return metrics["score"]


def _steps(folder: str | Path) -> list[int]:
    folder = Path(folder)
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal() and p.is_dir())


def _place(folder: str | Path, step: int) -> str:
    return f"the checkpoint '{Path(folder) / str(step)}'"


def _to_host(leaf: Any) -> np.ndarray:
    """A copy of an array, or of the numbers of a random key."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.array(leaf)


def _from_host(array: np.ndarray, leaf: Any) -> Any:
    """The array where `leaf` is, or the random key of its kind."""
    if not isinstance(leaf, jax.Array):
        return array
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
        return jax.device_put(key, leaf.sharding)
    return jax.device_put(array, leaf.sharding)


@contextmanager
def _reading(folder: str | Path, step: int) -> Iterator[ocp.CheckpointManager]:
    """A manager; what goes wrong while it reads is a ValueError that names the checkpoint."""
    handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    try:
        with ocp.CheckpointManager(Path(folder).absolute(), item_handlers=handlers) as manager:
            yield manager
    except Exception as error:  # readers raise whatever they trip over in broken files
        others = [s for s in _steps(folder) if s != step]
        rest = f"there are also those of steps {others}" if others else "there is no other"
        raise ValueError(
            f"{_place(folder, step)} can't be read, it may be half-written "
            f"({_first(error)}): remove its folder; {rest}"
        ) from error


@contextmanager
def _telling(folder: Path, step: int | None = None) -> Iterator[None]:
    """What goes wrong while a checkpoint is written is an OSError that says what is there."""
    try:
        yield
    except Exception as error:
        which = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        there = _steps(folder)
        rest = f"that of step {there[-1]} is there" if there else "there is none yet"
        raise OSError(f"cannot write {which} in '{folder}': {_first(error)}; {rest}") from error


def _first(error: BaseException) -> str:
    """The first line of a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
