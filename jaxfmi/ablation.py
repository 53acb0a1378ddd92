"""Change an activation, look at the score: only the part of the network behind it runs again."""

import jax
import jax.numpy as jnp

from jaxfmi.bilinear import resize
from jaxfmi.cam import finish
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
    wide,
)
from jaxfmi.heatmap import divide, unit
from jaxfmi.perturbation import scores


@explainer
def ablation_cam(
    score: Score,
    layer: Layers = "auto",
    *,
    relu: bool = True,
    size: Size = "input",
    chunk: int | None = 32,
) -> Explainer:
    """Ablation-CAM (Desai and Ramaswamy, 2020): weights (y - y_k) / |y|, y_k without channel k.

    Channel k is set to 0, and y = 0 divides by 1, so that a weight has the sign of the drop.
    Deviations from pytorch-grad-cam, which divides by y (a negative score turns all signs) and
    writes ever lower values than 0 where activations are negative. The paper's text was not
    available to us.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, a logit.
      layer: a tag, several (then the explainer returns a list of maps), or ``"auto"``.
      relu: keep the positive part; False for the signed map.
      size: of the heatmap; None for [h, w].
      chunk: channels at a time; the cost is the part of the network behind the layer, once each.
    """

    def heatmap(x, a, rest):
        weights = _shares_lost(a, rest, chunk)
        return finish((weights[None, None] * a).sum(-1), relu, size, x)

    return _at_layers(heatmap, score, layer)


@explainer
def recipro_cam(
    score: Score,
    layer: Layers = "auto",
    *,
    spread: bool = False,
    size: Size = "input",
    chunk: int | None = 32,
) -> Explainer:
    """Recipro-CAM (Byun and Lee, 2022): what the head makes of each position by itself.

    The value at a position is the score where all other positions of the activation are 0. For
    average pooling and a linear head it is CAM / (h w) plus the bias. It is neither rectified nor
    scaled. The paper's text was not available to us; the definition is that of OpenVINO's
    ``openvino_xai``.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, a logit.
      layer: a tag, several (then the explainer returns a list of maps), or ``"auto"``.
      spread: keep the neighbours as well, by the weights [1 2 1] x [1 2 1] / 16.
      size: of the heatmap; None for [h, w].
      chunk: positions at a time; the cost is the head once for each.
    """

    def heatmap(x, a, rest):
        h, w = a.shape[:2]
        rows, columns = (_neighbours(n, spread).astype(a.dtype) for n in (h, w))

        def alone(at):
            return a * jnp.outer(rows[at[0]], columns[at[1]])[..., None]

        positions = tuple(jnp.indices((h, w)).reshape(2, -1))
        values = scores(rest, [(alone, positions)], chunk=chunk)
        return resize(values.reshape(h, w), resolve_size(size, x))

    return _at_layers(heatmap, score, layer)


@explainer
def fd_cam(
    score: Score,
    layer: Layers = "auto",
    *,
    theta: float = 0.5,
    relu: bool = True,
    size: Size = "input",
    chunk: int | None = 32,
) -> Explainer:
    """FD-CAM (Li, Li, Ma and Wang, 2022): channels switched on and off with those like them.

    N_k are the channels whose cosine similarity with channel k is above the ``theta`` quantile.
    With y(S) the score of the channels S alone, channel k has the score
    s_k = y(N_k) + y(all) - y(all but N_k), and the weight
    exp(unit(s)_k) unit(mean gradient)_k - 0.5, where unit scales over channels to [0, 1].

    The paper's text was not available to us; as the authors' code, but for any head (theirs is
    average pooling and a classifier), and where all channels are equal, unit is 0, not NaN. A dead
    channel has the cosine 0 with every other.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, a logit.
      layer: a tag, several (then the explainer returns a list of maps), or ``"auto"``.
      theta: the quantile, 0 to 1; the authors' code demands one and names none.
      relu: keep the positive part; False for the signed map.
      size: of the heatmap; None for [h, w].
      chunk: channels at a time; the cost is the head twice for each, and one gradient.

    Raises:
      ValueError: ``theta`` outside [0, 1].
    """
    if not 0 <= theta <= 1:
        raise ValueError(f"theta is a quantile, 0 to 1; got {theta}")

    def explain_layers(x, *args):
        names = layer_names(score, layer, x, *args)
        maps = []
        values, gradients = activations_and_gradients(score, names, x, *args)
        for name, a, g in zip(names, values, gradients, strict=True):
            on_off = _on_and_off(a, head(score, name, x, *args), _alike(a, theta), chunk)
            weights = jnp.exp(unit(on_off)) * unit(g.mean(HW)) - 0.5
            maps.append(finish((weights[None, None] * a).sum(-1), relu, size, x))
        return maps

    return per_layer(explain_layers, layer)


def _at_layers(heatmap, score: Score, layer: Layers) -> Explainer:
    """``heatmap(x, a, rest)`` at every layer, ``rest`` the score as a function of ``a``."""

    def explain_layers(x, *args):
        return [
            heatmap(x, activation(score, name, x, *args), head(score, name, x, *args))
            for name in layer_names(score, layer, x, *args)
        ]

    return per_layer(explain_layers, layer)


def _shares_lost(a: jax.Array, rest, chunk: int | None) -> jax.Array:
    """What share of |y| each channel's loss costs, [K]."""
    channels = jnp.arange(a.shape[-1])
    without = scores(rest, [(lambda k: jnp.where(channels == k, 0, a), channels)], chunk=chunk)
    y = rest(a)
    return (y - without) / jnp.where(y == 0, 1, jnp.abs(y))


def _neighbours(n: int, spread: bool) -> jax.Array:
    """How much of each of n places is kept around each place, [n, n]."""
    if not spread:
        return jnp.eye(n)
    return (2 * jnp.eye(n) + jnp.eye(n, k=1) + jnp.eye(n, k=-1)) / 4


def _alike(a: jax.Array, theta: float) -> jax.Array:
    """Which channels [K, K] are like each, by the cosine of their maps."""
    flat = a.reshape(-1, a.shape[-1])
    unit_maps = divide(flat, jnp.sqrt((flat**2).sum(0, keepdims=True)))
    cosine = jnp.matmul(unit_maps.T, unit_maps, precision="highest")
    return cosine > jnp.quantile(cosine, theta, axis=1, keepdims=True)


def _on_and_off(a: jax.Array, rest, alike: jax.Array, chunk: int | None) -> jax.Array:
    """y(N_k) + y(all) - y(all but N_k), [K]."""

    def difference(on):
        return wide(rest(jnp.where(on, a, 0))) - wide(rest(jnp.where(on, 0, a)))

    return rest(a) + scores(difference, [(lambda on: on[None, None], alike)], chunk=chunk)
