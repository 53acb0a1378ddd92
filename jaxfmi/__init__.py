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

# Explainers: maps that the network makes itself.
from jaxfmi.attention import attention, lfi_cam

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

# Explainers: relevance.
from jaxfmi.lrp import LRP, clrp, excitation_backprop, lrp, lrp_terms, relevance_cam, sglrp
from jaxfmi.fg_cam import fg_cam

# Explainers: perturbations of an activation, of the image.
from jaxfmi.ablation import ablation_cam, fd_cam, recipro_cam
from jaxfmi.extremal import extremal_perturbation
from jaxfmi.occlusion import occlusion, rise
from jaxfmi.score_cam import is_cam, score_cam, ss_cam
from jaxfmi.group_cam import group_cam
from jaxfmi.fusion import sise_layers
from jaxfmi.sise import SISE, ada_sise, reselect, sise, sise_terms

# Explainers of similarities: networks without a classifier head.
from jaxfmi.embeddings import prototype
from jaxfmi.similarity import fam, fam_terms, pair, sfam, support_shares
from jaxfmi.gallery import Gallery, embed_images, gallery, pooled_maps
from jaxfmi.matching import (
    lafam,
    overall_map,
    point_map,
    point_to_point,
    sbsm,
    self_map,
    similarity_grad_cam,
)

# Many images.
from jaxfmi.batched import batched

# What options are made of, what heatmaps are put through, and what they are held against.
from jaxfmi import controls, heatmap, metrics, multipliers, reductions, references, rules
from jaxfmi import similarities, weightings

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
    "attention",
    "lfi_cam",
    "deconvnet",
    "guided_backprop",
    "guided_grad_cam",
    "input_x_gradient",
    "integrated_gradients",
    "saliency",
    "smooth_grad",
    "full_grad",
    "full_grad_terms",
    "LRP",
    "clrp",
    "excitation_backprop",
    "lrp",
    "lrp_terms",
    "relevance_cam",
    "sglrp",
    "fg_cam",
    "ablation_cam",
    "fd_cam",
    "recipro_cam",
    "extremal_perturbation",
    "occlusion",
    "rise",
    "group_cam",
    "is_cam",
    "score_cam",
    "ss_cam",
    "SISE",
    "ada_sise",
    "reselect",
    "sise",
    "sise_layers",
    "sise_terms",
    "prototype",
    "fam",
    "fam_terms",
    "pair",
    "sfam",
    "support_shares",
    "Gallery",
    "embed_images",
    "gallery",
    "pooled_maps",
    "lafam",
    "overall_map",
    "point_map",
    "point_to_point",
    "sbsm",
    "self_map",
    "similarity_grad_cam",
    "batched",
    "controls",
    "heatmap",
    "metrics",
    "multipliers",
    "reductions",
    "references",
    "rules",
    "similarities",
    "weightings",
]
