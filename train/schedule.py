"""The rate of learning over a run, and the optimizer of the recipes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxfmi.train.config import Config

__all__ = ["optimizer", "schedule"]


def optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """Stochastic gradient descent as PyTorch's: momentum, and weight decay added to the gradient.

    Args:
      config: of the run.
      steps: in an epoch.

    """
    kernels = partial(jax.tree.map, lambda p: p.ndim > 1)
    decay = optax.add_decayed_weights(config.weight_decay, None if config.decay_all else kernels)
    rate = schedule(config, steps)
    return optax.chain(decay, optax.sgd(rate, config.momentum or None, nesterov=config.nesterov))


def schedule(config: Config, steps: int) -> Callable[[ArrayLike], ArrayLike]:
    """The rate of learning at a step, counted from 0.

    Steps: `config.learning_rate` times `drop` for each of `drops` that has been reached, which
    takes effect in the first step of that epoch. Cosine: down to 0. Before, a linear way up from 0.

    Args:
      config: of the run.
      steps: in an epoch.

    """
    total = config.epochs * steps
    warmup = min(round(config.warmup_epochs * steps), total - 1)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, total)
    epochs = [d * config.epochs if d < 1 else d for d in config.drops]
    at = jnp.array([round(epoch * steps) for epoch in epochs], jnp.int32)

    def rate(step: Any) -> jax.Array:
        reached = (jnp.asarray(step) >= at).sum()
        ramp = jnp.minimum(step / max(warmup, 1), 1) if warmup else 1.0
        return config.learning_rate * config.drop**reached * ramp

    return rate
