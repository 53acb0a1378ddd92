"""Gradients at the input: saliency and what was made to see more in it.

Every method returns an explainer ``(x [H, W, C], *args) -> heatmap [H, W]``. Attributions per
channel are brought to one number per pixel by ``reduce``, any function [H, W, C] -> [H, W]. The
papers' texts were not available to us; the formulas are common knowledge.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxfmi.cam import grad_cam
from jaxfmi.chunks import chunk_mean
from jaxfmi.explainer import Explainer, Layers, Score, check_image, check_key, explainer, wide
from jaxfmi.taps import Op, rewrite

Reduce = Callable[[jax.Array], jax.Array]


def absolute_maximum(attribution: jax.Array) -> jax.Array:
    """The largest absolute value over channels, [H, W, C] -> [H, W]."""
    return jnp.abs(attribution).max(-1)


def channel_sum(attribution: jax.Array) -> jax.Array:
    """The sum over channels, [H, W, C] -> [H, W]: keeps signs and totals."""
    return attribution.sum(-1)


@explainer
def saliency(score: Score, *, reduce: Reduce = absolute_maximum) -> Explainer:
    """Saliency (Simonyan, Vedaldi and Zisserman, 2013): max over channels of |d score / d x|."""
    return lambda x, *args: reduce(_gradient(score, x, *args))


@explainer
def input_x_gradient(score: Score, *, reduce: Reduce = channel_sum) -> Explainer:
    """Input times gradient (Shrikumar, Greenside, Shcherbina and Kundaje, 2016), signed."""
    return lambda x, *args: reduce(x * _gradient(score, x, *args))


@explainer
def integrated_gradients(
    score: Score,
    *,
    baseline: jax.Array | float = 0.0,
    steps: int = 32,
    reduce: Reduce = channel_sum,
    chunk: int | None = 8,
) -> Explainer:
    """Integrated gradients (Sundararajan, Taly and Yan, 2017, equation 1), signed.

    (x - b) times the mean gradient on the straight path from b to x, by the midpoint rule. The sum
    over pixels is score(x) - score(b), up to the error of the rule.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``.
      baseline: b, in the units of x; anything that broadcasts to [H, W, C]. For normalised images
        0 is the mean colour, not black.
      steps: gradients on the path.
      reduce: [H, W, C] -> [H, W].
      chunk: gradients at a time.
    """

    def explain(x, *args):
        b = jnp.broadcast_to(jnp.asarray(baseline, x.dtype), x.shape)
        times = (jnp.arange(steps) + 0.5) / steps
        mean = chunk_mean(lambda t: _gradient(score, b + t * (x - b), *args), times, chunk)
        return reduce((x - b) * mean)

    return explain


def smooth_grad(
    explain: Explainer, *, noise: float = 0.15, samples: int = 16, chunk: int | None = 4
) -> Explainer:
    """SmoothGrad (Smilkov, Thorat, Kim, Viégas and Wattenberg, 2017), around any explainer.

    The mean map over copies of the image with Gaussian noise, as in
    ``smooth_grad(saliency(score))(x, label, key=key)``.

    Args:
      explain: an explainer, ``(x, *args) -> heatmap`` or any tree of arrays, that takes no key.
      noise: standard deviation, as a share of max(x) - min(x).
      samples: noisy copies.
      chunk: copies at a time; neither it nor a batch around it changes the noise.

    Returns:
      ``(x, *args, key) -> heatmap``.

    Raises:
      ValueError: the explainer is called without a key.
    """

    def smoothed(x, *args, key=None):
        key, x = check_key(key, "smooth_grad"), check_image(x)
        scale = noise * (x.max() - x.min())

        def one(i):
            added = scale * jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
            return explain(x + added, *args)

        return chunk_mean(one, jnp.arange(samples), chunk)

    return smoothed


@explainer
def guided_backprop(score: Score, *, reduce: Reduce = channel_sum) -> Explainer:
    """Guided backpropagation (Springenberg, Dosovitskiy, Brox and Riedmiller, 2014), signed.

    The input gradient with every ReLU passing back only what is positive, where it was active.
    Functions called ``relu`` and ``relu6`` count, and any maximum with the constant 0, in a module
    or not; ``where(x > 0, x, 0)`` does not.

    Raises:
      ValueError: the score has no ReLU.
    """
    return _with_relu(score, _guided, reduce)


@explainer
def deconvnet(score: Score, *, reduce: Reduce = channel_sum) -> Explainer:
    """DeconvNet (Zeiler and Fergus, 2013), signed: ReLU applied to what is passed back.

    As ``guided_backprop``, but whether the ReLU was active does not matter.
    """
    return _with_relu(score, _deconv, reduce)


@explainer
def guided_grad_cam(
    score: Score, layer: Layers = "auto", *, reduce: Reduce = channel_sum
) -> Explainer:
    """Guided Grad-CAM (Selvaraju et al., 2017): guided backpropagation times resized Grad-CAM."""
    guided, coarse = guided_backprop(score, reduce=reduce), grad_cam(score, layer)

    def explain(x, *args):
        fine = guided(x, *args)
        return jax.tree.map(lambda m: fine * m, coarse(x, *args))

    return explain


def _gradient(score: Score, x: jax.Array, *args) -> jax.Array:
    """D score / d x, at least float32."""
    return jax.grad(lambda v: score(v.astype(x.dtype), *args))(wide(x))


def _with_relu(score: Score, backward: Callable[..., jax.Array], reduce: Reduce) -> Explainer:
    """The input gradient with ``backward(relu's input and output, gradient)`` at every ReLU."""

    def explain(x, *args):
        met = []

        def rule(op: Op, *operands) -> Any:
            if not is_relu(op, *operands):
                return NotImplemented
            met.append(op.name)
            return _regrade(op, backward, operands)

        def ruled(x, *args):
            out = rewrite(score, rule)(x, *args)
            if not met:
                raise ValueError("this score has no ReLU, so its gradient cannot be guided")
            return out

        return reduce(_gradient(ruled, x, *args))

    return explain


def is_relu(op: Op, *operands) -> bool:
    """Whether an operation is a ReLU: a function of that name, or a maximum with constant 0."""
    if op.name in ("relu", "relu6"):
        return op.dynamic == (True,)
    if op.name != "max" or sum(op.dynamic) != 1:
        return False
    constant = operands[op.dynamic.index(False)]
    return not isinstance(constant, Tracer) and not np.asarray(constant).any()


def _regrade(op: Op, backward, operands):
    """The operation's value, with another gradient for its one operand that matters."""
    at = op.dynamic.index(True)

    @jax.custom_vjp
    def f(x):
        out = op(*operands[:at], x, *operands[at + 1 :])
        return out[0] if isinstance(out, list | tuple) else out

    def forward(x):
        y = f(x)
        return y, (x, y)

    f.defvjp(forward, lambda residuals, g: (backward(*residuals, g),))
    return f(operands[at])


def _guided(x, y, g):
    active = (y > 0) & (x == y)  # the second is false where relu6 clips
    return jnp.where(active & (g > 0), g, 0)


def _deconv(x, y, g):
    return jax.nn.relu(g)
