"""Bring in the programs that jaxfmi is compared with, on a machine without their compiled parts."""

from functools import cache
from types import ModuleType

import pytest

COMPILED = ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")


@cache
def import_torchvision() -> ModuleType:
    """Return torchvision, or skip the test where it is not installed.

    A torchvision beside another build of torch can't load its compiled operators, and importing it
    fails on the first that has no schema: any schema will do, for none of them is called.
    """
    torch = pytest.importorskip("torch", reason="needs the extra `peers`: torch")
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in COMPILED:
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor x) -> Tensor")
        import torchvision

        torchvision.declared = library  # the operators live as long as their library
    return torchvision
