"""The papers' formulas, each stated once with its equation number."""

from lit_sphere.theory.schemes import (
    SphericalStep,
    adam_elr,
    elr_from_products,
    momentum_elr,
    rates_without_l2,
    root_mean_square,
    sgd_elr,
    spherical_step,
)
from lit_sphere.theory.sphere import next_elr, total_elr, total_ess

__all__ = [
    "SphericalStep",
    "adam_elr",
    "elr_from_products",
    "momentum_elr",
    "next_elr",
    "rates_without_l2",
    "root_mean_square",
    "sgd_elr",
    "spherical_step",
    "total_elr",
    "total_ess",
]
