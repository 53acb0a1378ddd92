"""Weights: every naming is read back, every misfit is reported, no pickle is opened."""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from jaxfmi.models import MODELS, MobileNet, ResNet, load, save

WEIGHTS = (nnx.Param, nnx.BatchStat)


def filled(build, seed=0):
    """A network with random weights that nothing had to be compiled for."""
    rng, model = np.random.default_rng(seed), nnx.eval_shape(build)
    state = nnx.state(model, WEIGHTS)
    nnx.update(model, jax.tree.map(lambda v: jnp.asarray(rng.uniform(size=v.shape), "f4"), state))
    return model


def build_small():
    """A network with every kind of entry."""
    return ResNet((1, 1), widths=(4, 6), stem="cifar", num_classes=3)


def small(seed=0):
    return filled(build_small, seed)


def in_torch(model, names, rename=lambda name: name):
    """The entries of a file that torch would write: its names, and its order of axes."""
    leaves = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    entries = {}
    for (*layer, leaf), variable in nnx.to_flat_state(nnx.state(model, WEIGHTS)):
        array = np.asarray(variable[...])
        key = f"{names['.'.join(map(str, layer))]}.{leaves.get(leaf, leaf)}"
        entries[rename(key)] = np.ascontiguousarray(array.transpose(axes[array.ndim]))
    return entries


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, nnx.state(a, WEIGHTS), nnx.state(b, WEIGHTS))


@pytest.mark.parametrize("convention", ["torchvision", "akamaster"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_torch_names_are_read(tmp_path, convention, prefix, suffix):
    model, path = small(), tmp_path / f"weights{suffix}"
    entries = in_torch(model, model.names()[convention], lambda name: prefix + name)
    entries[f"{prefix}bn1.num_batches_tracked"] = np.array(3)
    write = safetensors.numpy.save_file if suffix == ".safetensors" else np_savez
    write(entries, path)
    assert_same(load(small(1), path), model)


def np_savez(entries, path):
    np.savez(path, **entries)


ONE_OF_EACH = (
    *("vgg11", "vgg11_bn", "resnet18", "resnet50", "squeezenet1_0", "squeezenet1_1"),
    *("mobilenet_v1", "mobilenet_v2", "densenet121", "cifar_resnet20"),
)
DENSE = "features.denseblock4.denselayer16."
LITERAL = [
    ("resnet50", "torchvision", "stages.2.4.convs.1.conv", "layer3.4.conv2"),
    ("resnet50", "torchvision", "stages.3.0.shortcut.norm", "layer4.0.downsample.1"),
    ("vgg16", "torchvision", "blocks.4.2.conv", "features.28"),
    ("vgg16_bn", "torchvision", "blocks.4.2.norm", "features.41"),
    ("vgg16_bn", "torchvision", "fc2", "classifier.3"),
    ("vgg16_bn", "timm", "fc1", "pre_logits.fc1"),
    ("vgg16_bn", "timm", "head", "head.fc"),
    ("squeezenet1_0", "torchvision", "fires.7.squeeze.conv", "features.12.squeeze"),
    ("squeezenet1_1", "torchvision", "fires.7.expand3x3.conv", "features.12.expand3x3"),
    ("squeezenet1_1", "torchvision", "fires.2.expand1x1.conv", "features.6.expand1x1"),
    ("squeezenet1_0", "deep-compression", "fires.0.squeeze.conv", "fire2.conv1x1_1"),
    ("mobilenet_v1", "timm", "blocks.5.depthwise.conv", "blocks.3.0.conv_dw"),
    ("mobilenet_v1", "timm", "blocks.12.project.norm", "blocks.4.1.bn2"),
    ("mobilenet_v1", "tensorflow", "blocks.12.project.conv", "conv26"),
    ("mobilenet_v2", "timm", "blocks.0.project.norm", "blocks.0.0.bn2"),
    ("mobilenet_v2", "timm", "blocks.16.project.conv", "blocks.6.0.conv_pwl"),
    ("mobilenet_v2", "timm", "last.norm", "bn2"),
    ("mobilenet_v2", "torchvision", "blocks.0.project.conv", "features.1.conv.1"),
    ("mobilenet_v2", "torchvision", "blocks.16.project.norm", "features.17.conv.3"),
    ("mobilenet_v2", "tensorflow", "blocks.16.depthwise.conv", "dw49"),
    ("densenet121", "torchvision", "transitions.2.conv", "features.transition3.conv"),
    ("densenet121", "torchvision", "blocks.3.15.conv2.norm", DENSE + "norm2"),
    ("densenet121", "torchvision 2017", "blocks.3.15.conv2.norm", DENSE + "norm.2"),
]


@pytest.mark.parametrize(("name", "convention", "ours", "theirs"), LITERAL)
def test_names_are_those_of_the_other_programs(name, convention, ours, theirs):
    model = nnx.eval_shape(MODELS[name].build)
    assert model.names()[convention][ours] == theirs


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_layer_has_one_name_in_every_convention(name):
    model = nnx.eval_shape(MODELS[name].build)
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(model, WEIGHTS))]
    layers = {".".join(map(str, path[:-1])) for path in paths}
    for convention, names in model.names().items():
        folded = convention == "tensorflow"
        wanted = {layer for layer in layers if not (folded and layer.endswith("norm"))}
        assert wanted <= names.keys()
        assert len({names[layer] for layer in wanted}) == len(wanted)


def test_depthwise_and_dense_as_convolutions_are_read(tmp_path):
    def build():
        return MobileNet(1, width=0.125, num_classes=4)

    model = filled(build)
    entries = in_torch(model, model.names()["timm"])
    entries["classifier.weight"] = entries["classifier.weight"][:, :, None, None]
    assert entries["blocks.0.0.conv_dw.weight"].shape == (8, 1, 3, 3)
    safetensors.numpy.save_file(entries, tmp_path / "a.safetensors")
    assert_same(load(nnx.eval_shape(build), tmp_path / "a.safetensors"), model)


class Flattened(nnx.Module):
    """A dense layer on all of a 2×3 map, as VGG's first."""

    def __init__(self):
        self.fc = nnx.LinearGeneral((2, 3, 4), 5, axis=(-3, -2, -1), rngs=nnx.Rngs(0))


def test_flattened_input_is_reordered(tmp_path):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 24)).astype(np.float32)
    bias = np.zeros(5, np.float32)
    safetensors.numpy.save_file({"fc.weight": weight, "fc.bias": bias}, tmp_path / "a.safetensors")
    model = load(Flattened(), tmp_path / "a.safetensors")
    expected = weight @ x.transpose(2, 0, 1).ravel()
    np.testing.assert_allclose(model.fc(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5)


def test_save_and_load(tmp_path):
    model = small()
    save(model, tmp_path / "a.safetensors")
    assert "stages/1/0/shortcut/conv/kernel" in safetensors.numpy.load_file(
        tmp_path / "a.safetensors"
    )
    given = load(other := small(1), str(tmp_path / "a.safetensors"))
    assert given is other
    assert_same(given, model)


def test_abstract_model_is_filled(tmp_path):
    save(model := small(), tmp_path / "a.safetensors")
    given = load(nnx.eval_shape(build_small), tmp_path / "a.safetensors")
    x = jnp.ones((1, 8, 8, 3))
    np.testing.assert_array_equal(given(x), model(x))


def test_half_precision_is_stored_for_kernels_and_read_as_float32(tmp_path):
    save(model := small(), tmp_path / "a.safetensors", half=True)
    stored = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert stored["stem/conv/kernel"].dtype == np.float16
    assert stored["stem/norm/var"].dtype == np.float32
    given = load(small(1), tmp_path / "a.safetensors")
    assert given.stem.conv.kernel.dtype == jnp.float32
    np.testing.assert_allclose(given.stem.conv.kernel, model.stem.conv.kernel, rtol=1e-3)


def test_bfloat16_files_are_read(tmp_path):
    entries = {
        name: array.astype(ml_dtypes.bfloat16)
        for name, array in in_torch(small(), small().names()["torchvision"]).items()
    }
    safetensors.numpy.save_file(entries, tmp_path / "a.safetensors")
    given = load(small(1), tmp_path / "a.safetensors")
    assert given.stem.conv.kernel.dtype == jnp.float32
    np.testing.assert_allclose(given.stem.conv.kernel, small().stem.conv.kernel, rtol=1e-2)


def test_skipped_layers_keep_what_they_have(tmp_path):
    save(small(), tmp_path / "a.safetensors")
    model = filled(lambda: ResNet((1, 1), widths=(4, 6), stem="cifar", num_classes=7), seed=1)
    head = model.head.kernel[...]
    load(model, tmp_path / "a.safetensors", skip=["head"])
    np.testing.assert_array_equal(model.head.kernel, head)
    np.testing.assert_array_equal(model.stem.conv.kernel, small().stem.conv.kernel)
    with pytest.raises(ValueError, match="no layer 'fc' to skip; there are head, stages, stem"):
        load(model, tmp_path / "a.safetensors", skip=["fc"])


def test_misfits_are_reported_together_and_nothing_is_loaded(tmp_path):
    entries = in_torch(small(), small().names()["torchvision"])
    entries["fc.weight"] = entries["fc.weight"][:2]
    del entries["layer1.0.conv1.weight"]
    entries |= {f"aux.{i}.weight": np.zeros((2, 2)) for i in range(11)}
    np.savez(tmp_path / "a.npz", **entries)
    model = small(1)
    with pytest.raises(ValueError, match="does not fit the model") as error:
        load(model, tmp_path / "a.npz")
    message = str(error.value)
    for part in (
        "a.npz",
        "torchvision names",
        "1 missing: layer1.0.conv1.weight (4, 4, 3, 3)",
        "11 unexpected: aux.0.weight (2, 2); ",
        "; and 3 more",
        "1 of another shape: fc.weight (2, 6), expected (3, 6)",
    ):
        assert part in message
    assert "aux.8" not in message
    assert_same(model, small(1))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path, suffix, keep):
    path = tmp_path / f"cut{suffix}"
    write = safetensors.numpy.save_file if suffix == ".safetensors" else np_savez
    write(in_torch(small(), small().names()["torchvision"]), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(ValueError, match=rf"cut{suffix}' can't be read"):
        load(small(), path)


@pytest.mark.parametrize("write", [np.save, np.savez])
def test_objects_and_single_arrays_in_npz_are_refused(tmp_path, write):
    with (tmp_path / "a.npz").open("wb") as file:
        write(file, np.array([{}], object) if write is np.savez else np.ones(3))
    with pytest.raises(ValueError, match=r"a.npz' can't be read"):
        load(small(), tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pkl"])
def test_pickles_are_never_opened(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=r"is a pickle(.|\n)*save_file"):
        load(small(), path)
    with pytest.raises(ValueError, match="is a pickle"):
        load(small(), "hf:owner/name", filename=f"pytorch_model{suffix}")


def test_other_endings_and_absent_files_are_errors(tmp_path):
    (tmp_path / "a.h5").touch()
    with pytest.raises(ValueError, match=r"ends in .safetensors or .npz"):
        load(small(), tmp_path / "a.h5")
    with pytest.raises(FileNotFoundError, match=r"no weights 'nowhere/a.npz'"):
        load(small(), "nowhere/a.npz")
    with pytest.raises(ValueError, match=r"not as 'a.npz'"):
        save(small(), tmp_path / "a.npz")


@pytest.mark.parametrize("source", ["owner/name", "hf:owner/name"])
def test_hub_repositories_are_fetched(tmp_path, monkeypatch, source):
    calls = []

    def hf_hub_download(repository, filename, revision):
        calls.append((repository, filename, revision))
        return str(tmp_path / filename)

    save(model := small(), tmp_path / "model.safetensors")
    monkeypatch.setitem(
        sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=hf_hub_download)
    )
    assert_same(load(small(1), source, revision="v1"), model)
    assert calls == [("owner/name", "model.safetensors", "v1")]


def test_hub_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "jaxfmi\[hub\]"'):
        load(small(), "owner/name")
