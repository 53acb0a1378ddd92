"""jaxfmi shows what an image network looks at: attribution for JAX and Flax."""

from importlib.metadata import version

# Names of activations, and what reads, changes and re-rules them.
from jaxfmi.taps import capture, edit, rewrite, tag, tags

# From a model to a score.
from jaxfmi.modules import class_score, log_odds, logit, margin, probability, tag_modules

# Explainers: activations of a layer.
from jaxfmi.cam import (
    cam,
    eigen_cam,
    eigen_grad_cam,
    grad_cam,
    grad_cam_pp,
    hires_cam,
    layer_cam,
    xgrad_cam,
)
from jaxfmi.afmi import FMI, afmi, afmi_terms

# Explainers: gradients.
from jaxfmi.gradient import (
    deconvnet,
    guided_backprop,
    guided_grad_cam,
    input_x_gradient,
    integrated_gradients,
    saliency,
    smooth_grad,
)
from jaxfmi.full_grad import full_grad, full_grad_terms

# Explainers: perturbations.
from jaxfmi.perturbation import ablation_cam, occlusion

# Many images.
from jaxfmi.batched import batched

# What options are made of, and what heatmaps are put through.
from jaxfmi import heatmap, multipliers, reductions, references

__version__ = version("jaxfmi")

__all__ = [
    "capture",
    "edit",
    "rewrite",
    "tag",
    "tags",
    "class_score",
    "log_odds",
    "logit",
    "margin",
    "probability",
    "tag_modules",
    "cam",
    "eigen_cam",
    "eigen_grad_cam",
    "grad_cam",
    "grad_cam_pp",
    "hires_cam",
    "layer_cam",
    "xgrad_cam",
    "FMI",
    "afmi",
    "afmi_terms",
    "deconvnet",
    "guided_backprop",
    "guided_grad_cam",
    "input_x_gradient",
    "integrated_gradients",
    "saliency",
    "smooth_grad",
    "full_grad",
    "full_grad_terms",
    "ablation_cam",
    "occlusion",
    "batched",
    "heatmap",
    "multipliers",
    "reductions",
    "references",
]
