"""Keep the state of a run on disk, so that it can stop and go on as if it had not."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

__all__ = ["restore", "save"]


def save(folder: str | Path, epoch: int, state: Any) -> None:
    """Write a tree of arrays as the folder's only checkpoint."""
    with _manager(folder) as manager:
        manager.save(epoch, args=ocp.args.StandardSave(state))


def restore(folder: str | Path, state: Any) -> tuple[int, Any]:
    """Read the latest checkpoint: (epoch, a tree like `state`), or (-1, `state`) without one.

    Raises ValueError where the checkpoint holds another tree or other shapes.
    """
    with _manager(folder) as manager:
        epoch = manager.latest_step()
        if epoch is None:
            return -1, state
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        return epoch, manager.restore(epoch, args=ocp.args.StandardRestore(like))


def _manager(folder: str | Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)
