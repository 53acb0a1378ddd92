"""The CAM family: activations of a layer, weighted by what the score makes of them.

A member is one line, its weights. What differs between libraries is not that line but the
conventions around it, which are fixed here for all of them: the score as it is given, ReLU at the
layer's resolution, then a half-pixel bilinear resize, and no scaling. Every method takes

* ``score``: ``(x [H, W, C], *args) -> scalar``, usually a class logit;
* ``layer``: a tag; several tags, for which the explainer returns a list of maps from one backward
  pass; or ``"auto"``, the last spatial activation. Put tags after the ReLU: Grad-CAM++, XGrad-CAM
  and Ablation-CAM assume activations that are not negative;
* ``relu``: keep the positive part; False for the signed map;
* ``size``: of the heatmap; None for the layer's [h, w];

and returns an explainer ``(x, *args) -> heatmap [H, W]``. A layer that is not there, or that is not
[h, w, K], raises a ValueError that lists the tags. The papers' texts were not available to us;
formulas are those of ``pytorch-grad-cam`` where it has them, which the tests meet.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxfmi import taps
from jaxfmi.bilinear import resize
from jaxfmi.explainer import (
    HW,
    Explainer,
    Layers,
    Score,
    Size,
    activation,
    activations_and_gradients,
    explainer,
    head,
    layer_names,
    per_layer,
    resolve_size,
)
from jaxfmi.heatmap import divide

Weigh = Callable[[jax.Array, jax.Array], jax.Array]
"""``(a [h, w, K], g [h, w, K]) -> weights [h, w, K] or [1, 1, K]``, g the gradient at a."""


@explainer
def cam(
    score: Score, layer: Layers = "auto", *, relu: bool = False, size: Size = "input"
) -> Explainer:
    """CAM (Zhou, Khosla, Lapedriza, Oliva and Torralba, 2016): sum_k W[k, class] A_k, signed.

    W are the weights of a dense layer on the averages of the layer. They are the sums of the
    score's gradient over positions, so that no kernel need be given; the bias is ignored.

    Raises:
      ValueError: what follows the layer is not linear (decided from the traced program).
    """

    def explain(x, *args):
        for name in layer_names(score, layer, x, *args):
            gradient = jax.grad(head(score, name, x, *args))
            if taps.depends(gradient, activation(score, name, x, *args)):
                raise ValueError(
                    f"CAM needs a score that is linear in layer {name!r} (average pooling, one "
                    "dense layer, the logit); hires_cam and grad_cam do without"
                )
        return _weighted(lambda a, g: g.sum(HW, keepdims=True), score, layer, relu, size)(x, *args)

    return explain


@explainer
def grad_cam(
    score: Score, layer: Layers = "auto", *, relu: bool = True, size: Size = "input"
) -> Explainer:
    """Grad-CAM (Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra, 2017): sum_k mean(g_k) A_k.

    The paper sums or averages the gradient, which differ by the factor h w.
    """
    return _weighted(WEIGHTS["grad_cam"], score, layer, relu, size)


@explainer
def hires_cam(
    score: Score, layer: Layers = "auto", *, relu: bool = True, size: Size = "input"
) -> Explainer:
    """HiResCAM (Draelos and Carin, 2020): sum_k g ⊙ A, exact contributions under a linear head.

    The ReLU, for display, comes after the sum over channels; pytorch-grad-cam's "element-wise
    Grad-CAM" has it before.
    """
    return _weighted(WEIGHTS["hires_cam"], score, layer, relu, size)


@explainer
def layer_cam(
    score: Score, layer: Layers = "auto", *, relu: bool = True, size: Size = "input"
) -> Explainer:
    """LayerCAM (Jiang, Zhang, Hou, Cheng and Wei, 2021): sum_k relu(g) ⊙ A, at any depth.

    The authors' code resizes before it scales and has no last ReLU, which matters only where
    activations are signed. ``heatmap.tanh_max`` fuses layers. A layer just before a stride or a
    max pooling gives grid artefacts; take a neighbour.
    """
    return _weighted(WEIGHTS["layer_cam"], score, layer, relu, size)


@explainer
def xgrad_cam(
    score: Score, layer: Layers = "auto", *, relu: bool = True, size: Size = "input"
) -> Explainer:
    """XGrad-CAM (Fu, Hu, Dong, Guo, Gao and Li, 2020): weights sum(g_k A_k) / (sum(A_k) + 1e-7).

    A dead channel has weight 0. Signed activations whose sum cancels give very large weights.
    """
    return _weighted(WEIGHTS["xgrad_cam"], score, layer, relu, size)


@explainer
def grad_cam_pp(
    score: Score, layer: Layers = "auto", *, relu: bool = True, size: Size = "input"
) -> Explainer:
    """Grad-CAM++ (Chattopadhyay, Sarkar, Howlader and Balasubramanian, 2018).

    Weights sum(relu(g_k) α) with α = g² / (2 g² + sum(A_k) g³ + 1e-6), 0 where g is 0: the closed
    form for ReLU networks and the exponential of the score, whose factor cancels in α and is left
    out of the weight.
    """
    return _weighted(WEIGHTS["grad_cam_pp"], score, layer, relu, size)


@explainer
def eigen_cam(
    score: Score, layer: Layers = "auto", *, relu: bool = True, size: Size = "input"
) -> Explainer:
    """Eigen-CAM (Muhammad and Yeasin, 2020): A projected on its first principal component.

    No class: the score only says where the layer is. The component's sign is arbitrary and is
    turned so that the map's largest absolute value is positive; pytorch-grad-cam keeps what LAPACK
    returns. Not to be differentiated where the two largest singular values coincide.
    """

    def explain_layers(x, *args):
        names = layer_names(score, layer, x, *args)
        maps = [_principal(activation(score, name, x, *args)) for name in names]
        return [finish(m, relu, size, x) for m in maps]

    return per_layer(explain_layers, layer)


@explainer
def eigen_grad_cam(
    score: Score, layer: Layers = "auto", *, relu: bool = True, size: Size = "input"
) -> Explainer:
    """EigenGrad-CAM (pytorch-grad-cam, no paper): Eigen-CAM of g ⊙ A instead of A."""
    return _gradient_map(lambda a, g: _principal(g * a), score, layer, relu, size)


def finish(heatmap: jax.Array, relu: bool, size: Size, x: jax.Array) -> jax.Array:
    """Rectify a raw map [h, w] if asked to, then resize it: the two do not commute."""
    return resize(jax.nn.relu(heatmap) if relu else heatmap, resolve_size(size, x))


def _weighted(weigh: Weigh, score, layer, relu, size) -> Explainer:
    """sum_k of weights times activations: what all of the family but Eigen-CAM share."""
    return _gradient_map(lambda a, g: (weigh(a, g) * a).sum(-1), score, layer, relu, size)


def _gradient_map(make: Weigh, score, layer, relu, size) -> Explainer:
    """``make(a, g) -> map [h, w]`` for every layer, from one backward pass."""

    def explain_layers(x, *args):
        names = layer_names(score, layer, x, *args)
        values, grads = activations_and_gradients(score, names, x, *args)
        return [finish(make(a, g), relu, size, x) for a, g in zip(values, grads, strict=True)]

    return per_layer(explain_layers, layer)


def _share_of_sum(a, g):
    return (g * a).sum(HW, keepdims=True) / (a.sum(HW, keepdims=True) + 1e-7)


def _plus_plus(a, g):
    denominator = 2 * g**2 + a.sum(HW, keepdims=True) * g**3 + 1e-6
    alpha = divide(g**2, jnp.where(g == 0, 0, denominator))
    return (jax.nn.relu(g) * alpha).sum(HW, keepdims=True)


#: How the family weighs activations, by name.
WEIGHTS: dict[str, Weigh] = {
    "grad_cam": lambda a, g: g.mean(HW, keepdims=True),
    "hires_cam": lambda a, g: g,
    "layer_cam": lambda a, g: jax.nn.relu(g),
    "xgrad_cam": _share_of_sum,
    "grad_cam_pp": _plus_plus,
}


def _principal(a):
    """Projection of ``a`` [h, w, K] on its first principal component over positions."""
    m = a.reshape(-1, a.shape[-1])
    m = m - m.mean(0, keepdims=True)
    if m.shape[0] <= m.shape[1]:  # the smaller of the two Gram matrices
        values, vectors = jnp.linalg.eigh(m @ m.T)
        p = jnp.sqrt(jax.nn.relu(values[-1])) * vectors[:, -1]
    else:
        p = m @ jnp.linalg.eigh(m.T @ m)[1][:, -1]
    p = jnp.where(-p.min() > p.max(), -p, p)
    return p.reshape(a.shape[:2])
