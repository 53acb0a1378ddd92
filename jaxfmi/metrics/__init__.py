"""How good a heatmap is: metrics of faithfulness, localisation, robustness, randomisation."""

# The order of pixels.
from jaxfmi.metrics.ranking import ranks, tied_share, top

# Faithfulness: the score as the image changes with the map.
from jaxfmi.metrics.faithfulness import (
    Curve,
    deletion,
    deletion_curve,
    insertion,
    insertion_curve,
    region_perturbation,
    rise_blur,
)
from jaxfmi.metrics.confidence import Confidence, confidence, drop, gain, increase
from jaxfmi.metrics.road import Road, impute, road, road_curve

# Localisation: the map against a region.
from jaxfmi.metrics.localisation import (
    box_hit,
    energy_pointing,
    iou,
    pointing,
    region,
    relevance_mass,
    relevance_rank,
    top_k_intersection,
)

# Similarity of two maps.
from jaxfmi.metrics.similarity import area_matched_iou, pearson, spearman, ssim, thresholded_iou

# Complexity: the map alone.
from jaxfmi.metrics.complexity import complexity, effective_complexity, sparseness

# Axioms: does the map add up?
from jaxfmi.metrics.axioms import completeness_error, conservation_error

# Correlation: the score's drops against sums of the map.
from jaxfmi.metrics.correlation import (
    Perturbation,
    gaussian_noise,
    infidelity,
    mu_fidelity,
    sensitivity_n,
    square_removal,
)

# Robustness: the map of another image, class, reference or model.
from jaxfmi.metrics.robustness import (
    Stability,
    class_discriminability,
    max_sensitivity,
    random_logit,
    reference_insensitivity,
    stability,
    stability_chance,
)

# Randomisation: the map of a random model.
from jaxfmi.metrics.randomisation import (
    normal_like,
    parameter_layers,
    parameter_randomisation,
    shuffled,
)

__all__ = [
    "ranks",
    "tied_share",
    "top",
    "Confidence",
    "Curve",
    "confidence",
    "deletion",
    "deletion_curve",
    "drop",
    "gain",
    "increase",
    "insertion",
    "insertion_curve",
    "region_perturbation",
    "rise_blur",
    "Road",
    "impute",
    "road",
    "road_curve",
    "box_hit",
    "energy_pointing",
    "iou",
    "pointing",
    "region",
    "relevance_mass",
    "relevance_rank",
    "top_k_intersection",
    "area_matched_iou",
    "pearson",
    "spearman",
    "ssim",
    "thresholded_iou",
    "complexity",
    "effective_complexity",
    "sparseness",
    "completeness_error",
    "conservation_error",
    "Perturbation",
    "gaussian_noise",
    "infidelity",
    "mu_fidelity",
    "sensitivity_n",
    "square_removal",
    "Stability",
    "class_discriminability",
    "max_sensitivity",
    "random_logit",
    "reference_insensitivity",
    "stability",
    "stability_chance",
    "normal_like",
    "parameter_layers",
    "parameter_randomisation",
    "shuffled",
]
