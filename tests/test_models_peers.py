"""The networks and the pools against torchvision's, timm's and torch's own, on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from peers import import_torchvision

from jaxfmi.models import MODELS, load
from jaxfmi.models.layers import adaptive_avg_pool, max_pool

pytestmark = pytest.mark.peers

TORCHVISION = [
    ("vgg16_bn", 224),
    ("vgg11", 160),
    ("resnet18", 224),
    ("resnet18", 131),
    ("resnet50", 224),
    ("densenet121", 224),
    ("squeezenet1_0", 224),
    ("squeezenet1_1", 224),
    ("squeezenet1_1", 93),
    ("mobilenet_v2", 224),
    ("mobilenet_v2", 135),
]
TIMM = {
    "vgg11_bn": "vgg11_bn",
    "resnet18": "resnet18",
    "densenet121": "densenet121",
    "mobilenetv1_100": "mobilenet_v1",
    "mobilenetv2_100": "mobilenet_v2",
}


def randomise(model, torch):
    """Give batch normalisation and biases something to do: fresh ones are identities."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                values.data.uniform_(0.5, 1.5)
            for values in (module.bias, module.running_mean):
                values.data.normal_(std=0.1)
        elif getattr(module, "bias", None) is not None:
            module.bias.data.normal_(std=0.1)


def check_logits(theirs, build, size, folder):
    """Move the weights of `theirs` through a file and compare on two oblong pictures."""
    import torch
    from safetensors.torch import save_file

    randomise(theirs.eval(), torch)
    save_file(theirs.state_dict(), folder / "weights.safetensors")
    ours = load(nnx.eval_shape(build), folder / "weights.safetensors")

    x = np.random.default_rng(0).normal(size=(2, size, size + 10, 3)).astype(np.float32)
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    given = np.asarray(jax.jit(lambda model, x: model(x))(ours, jnp.asarray(x)))
    assert np.abs(given - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("name", "size"), TORCHVISION)
def test_logits_equal_torchvision(name, size, tmp_path):
    models = import_torchvision().models
    check_logits(getattr(models, name)(weights=None), MODELS[name].build, size, tmp_path)


@pytest.mark.parametrize("name", TIMM)
def test_logits_equal_timm(name, tmp_path):
    import_torchvision()
    timm = pytest.importorskip("timm", reason="needs timm")
    check_logits(timm.create_model(name), MODELS[TIMM[name]].build, 224, tmp_path)


@pytest.mark.parametrize("size", range(4, 12))
@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1)]
)
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_max_pool_equals_torch(size, window, stride, padding, ceil_mode):
    torch = pytest.importorskip("torch", reason="needs the extra `peers`: torch")
    x = np.random.default_rng(size).normal(size=(1, size, size + 1, 2)).astype(np.float32)
    x_torch = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    theirs = torch.nn.functional.max_pool2d(x_torch, window, stride, padding, ceil_mode=ceil_mode)
    (theirs**2).sum().backward()
    ours = max_pool(jnp.asarray(x), window, stride, padding, ceil_mode)
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, window, stride, padding, ceil_mode) ** 2))(x)
    np.testing.assert_array_equal(ours, theirs.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(gradient, x_torch.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-6)


@pytest.mark.parametrize("size", [(7, 7), (14, 7), (10, 13), (3, 8), (1, 1)])
def test_adaptive_avg_pool_equals_torch(size):
    torch = pytest.importorskip("torch", reason="needs the extra `peers`: torch")
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    theirs = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x.transpose(0, 3, 1, 2)), 7)
    ours = adaptive_avg_pool(jnp.asarray(x), 7)
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-6)
