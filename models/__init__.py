"""Networks in Flax NNX whose layers have names, the pictures they expect, and their weights."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from flax import nnx
from jaxfmi.models.abn import (
    Abn,
    abn_densenet100,
    abn_resnet8,
    abn_resnet18,
    abn_resnet20,
    abn_resnet32,
    abn_resnet44,
    abn_resnet50,
    abn_resnet56,
    abn_resnet110,
)
from jaxfmi.models.demo import DemoNet, Pretrained, demo_model, lfi_cam_demo
from jaxfmi.models.densenet import DenseNet, densenet121, densenet161, densenet169, densenet201
from jaxfmi.models.lfi_cam import (
    LfiCam,
    lfi_cam_densenet100,
    lfi_cam_resnet8,
    lfi_cam_resnet18,
    lfi_cam_resnet20,
    lfi_cam_resnet32,
    lfi_cam_resnet44,
    lfi_cam_resnet50,
    lfi_cam_resnet56,
    lfi_cam_resnet110,
    lfi_cam_vgg16_bn,
)
from jaxfmi.models.mobilenet import MobileNet, mobilenet_v1, mobilenet_v2
from jaxfmi.models.preprocess import CAFFE, CIFAR, IMAGENET, TENSORFLOW, Preprocess
from jaxfmi.models.pretrained import load, save
from jaxfmi.models.resnet import (
    ResNet,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)
from jaxfmi.models.squeezenet import SqueezeNet, squeezenet1_0, squeezenet1_1
from jaxfmi.models.vgg import (
    VGG,
    vgg11,
    vgg11_bn,
    vgg13,
    vgg13_bn,
    vgg16,
    vgg16_bn,
    vgg19,
    vgg19_bn,
)


class Entry(NamedTuple):
    """A network by name: what makes it, and what its usual weights expect of a picture."""

    build: Callable[..., nnx.Module]
    preprocess: Preprocess


MODELS: dict[str, Entry] = {
    build.__name__: Entry(build, preprocess)
    for preprocess, builds in {
        IMAGENET: (
            *(vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn),
            *(resnet18, resnet34, resnet50, resnet101, resnet152),
            *(squeezenet1_0, squeezenet1_1, mobilenet_v1, mobilenet_v2),
            *(densenet121, densenet161, densenet169, densenet201),
            *(lfi_cam_resnet18, lfi_cam_resnet50, lfi_cam_vgg16_bn),
            *(abn_resnet18, abn_resnet50),
        ),
        replace(IMAGENET, size=(64, 64)): (lfi_cam_demo,),
        CIFAR: (
            *(cifar_resnet20, cifar_resnet32, cifar_resnet44, cifar_resnet56, cifar_resnet110),
            *(lfi_cam_resnet8, lfi_cam_resnet20, lfi_cam_resnet32, lfi_cam_resnet44),
            *(lfi_cam_resnet56, lfi_cam_resnet110, lfi_cam_densenet100),
            *(abn_resnet8, abn_resnet20, abn_resnet32, abn_resnet44),
            *(abn_resnet56, abn_resnet110, abn_densenet100),
        ),
    }.items()
    for build in builds
}

__all__ = [
    "CAFFE",
    "CIFAR",
    "IMAGENET",
    "MODELS",
    "TENSORFLOW",
    "VGG",
    "Abn",
    "DemoNet",
    "DenseNet",
    "demo_model",
    "Entry",
    "LfiCam",
    "MobileNet",
    "Preprocess",
    "Pretrained",
    "ResNet",
    "SqueezeNet",
    "abn_densenet100",
    "abn_resnet8",
    "abn_resnet18",
    "abn_resnet20",
    "abn_resnet32",
    "abn_resnet44",
    "abn_resnet50",
    "abn_resnet56",
    "abn_resnet110",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "lfi_cam_demo",
    "lfi_cam_densenet100",
    "lfi_cam_resnet8",
    "lfi_cam_resnet18",
    "lfi_cam_resnet20",
    "lfi_cam_resnet32",
    "lfi_cam_resnet44",
    "lfi_cam_resnet50",
    "lfi_cam_resnet56",
    "lfi_cam_resnet110",
    "lfi_cam_vgg16_bn",
    "load",
    "mobilenet_v1",
    "mobilenet_v2",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "save",
    "squeezenet1_0",
    "squeezenet1_1",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
]
