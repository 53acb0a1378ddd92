"""Embeddings in both languages: layers of the twin, and the same in JAX behind the tag "a".

The image is the activation itself, so that what is tested is the similarity and not a stem.
"""

import jax
import jax.numpy as jnp
import numpy as np
import reference_embedding as emb
import reference_net as net

from jaxfmi import tag

H, W, K = 3, 4, 5

_normal = np.random.default_rng(5).standard_normal
WEIGHTS, BIAS, DENSE = _normal((K, 6)), _normal(6), _normal((H * W * K, 4))


def _pooled(pool):
    return lambda a: pool(tag(a, "a"))


def _gem(a):
    return (jnp.maximum(a, 1e-6) ** 3).mean((0, 1)) ** (1 / 3)


#: name: layers of the twin, embedding in JAX; of activations [h, w, 5], "dense" of [3, 4, 5] only
EMBEDDERS = {
    "gap": ([emb.gap()], _pooled(lambda a: a.mean((0, 1)))),
    "max": ([emb.global_max()], _pooled(lambda a: a.max((0, 1)))),
    "gem": ([emb.gem(3)], _pooled(_gem)),
    "projection": (
        [emb.gap(), net.dense(WEIGHTS, BIAS)],
        _pooled(lambda a: a.mean((0, 1)) @ WEIGHTS.astype(a.dtype) + BIAS.astype(a.dtype)),
    ),
    "dense": (
        [emb.flatten(), net.dense(DENSE, np.zeros(4))],
        _pooled(lambda a: a.reshape(-1) @ DENSE.astype(a.dtype)),
    ),
}
LAYERS, GAP = EMBEDDERS["gap"]


def activations(seed: int = 0, *shapes) -> list[np.ndarray]:
    """Activations that are at least 0 and partly 0, as after a ReLU."""
    rng = np.random.default_rng(seed)
    return [np.maximum(rng.standard_normal(shape or (H, W, K)), 0) for shape in shapes]


A, B, C = activations(0, (H, W, K), (2, 3, K), (H, W, K))
Q, S, T = (a.mean((0, 1)) for a in (A, B, C))
MU = np.array([0.1, 0.3, 0.0, 0.2, 0.1])


def close(got, expected, atol=1e-12):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def cos(q, s):
    return q @ s / np.linalg.norm(q) / np.linalg.norm(s)


def conv_embedder(width: int = 4):
    """A stem with a convolution in float32, for what depends on one: x [H, W, 3] -> [width]."""
    kernel = jnp.asarray(_normal((3, 3, 3, width)), jnp.float32)

    def embed(x):
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=layout)
        return tag(jax.nn.relu(y[0]), "a").mean((0, 1))

    return embed
