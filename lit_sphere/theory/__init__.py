"""The papers' formulas, each stated once with its equation number, as functions of float64 tensors.

* on the sphere (TR): ``effective_lr``, ``effective_grad_norm``, ``effective_step_size``; identities ``total_elr`` (3),
  ``total_ess`` (4), ``next_elr`` (5); ``largest_stable_eigenvalue``
* the toy on the sphere (TR §3): ``toy.threshold_elr``, ``toy.equilibrium_loss``, ``toy.equilibrium_elrs``,
  ``toy.one_term_orbit`` (Proposition 1); its runs ``toy.toy_curves``, ``toy.settled_losses``
* weight decay (PB): ``next_norm``, ``step_cosine``, ``step_distance``; ``jump_norm``, ``steps_before_jump`` (t_min and
  t_max); ``equilibrium_norms``, ``equilibrium_elrs``, ``equilibrium_ess``; ``rescaled`` (Proposition 4)
* weight decay under any optimizer (RE): ``sgd_equilibrium``, ``adamw_equilibrium``, ``adam_equilibrium``,
  ``lion_equilibrium``, ``measured_equilibrium``; ``steps_to_equilibrium``, ``relaxed_norm``
* bounds of sequences (PB app.): ``undetermined_interval`` (Lemmas 1, 2, Proposition 5); ``falling_grad_norms``,
  ``factors_of``, ``distance_bounds``
* the toy in the plane (PB, KT): ``toy_plane.plane_curves``
* schemes (SP): ``spherical_step``, ``radius_ratio`` (Theorem 2); ``sgd_elr``, ``momentum_elr``, ``adam_elr`` (Table 1,
  and AdamW); ``rates_without_l2`` (46); ``elr_from_products``, ``root_mean_square``; AdaGradG is in
  :mod:`lit_sphere.optim`

Sources: TR, "Training Scale-Invariant Neural Networks on the Sphere Can Happen in Three Regimes"; PB, "On the Periodic
Behavior of Neural Network Training with Batch Normalization and Weight Decay"; KT, Kodryan's PhD summary; SP,
"Spherical Perspective on Learning with Normalization Layers"; RE, "Rotational Equilibrium: How Weight Decay Balances
Learning Across Neural Networks".

Arguments may be numbers or tensors of any real dtype and broadcast; an empty tensor gives an empty one. What is out of
range, infinite or NaN is refused with a ``ValueError``; on a GPU this check waits for the device. Only
``elr_from_products``, ``toy.toy_loss`` and ``toy.toy_gradient`` check nothing, for use in each step of many.
``equilibrium_elrs`` here is weight decay's; the toy's is ``toy.equilibrium_elrs``.
"""

from lit_sphere.theory import toy, toy_plane, weight_decay
from lit_sphere.theory.falling_gradients import distance_bounds, factors_of, falling_grad_norms
from lit_sphere.theory.rotation import (
    Rotation,
    adam_equilibrium,
    adamw_equilibrium,
    lion_equilibrium,
    measured_equilibrium,
    relaxed_norm,
    sgd_equilibrium,
    steps_to_equilibrium,
)
from lit_sphere.theory.schemes import (
    SphericalStep,
    adam_elr,
    elr_from_products,
    momentum_elr,
    radius_ratio,
    rates_without_l2,
    root_mean_square,
    sgd_elr,
    spherical_step,
)
from lit_sphere.theory.sphere import (
    effective_grad_norm,
    effective_lr,
    effective_step_size,
    largest_stable_eigenvalue,
    next_elr,
    total_elr,
    total_ess,
)
from lit_sphere.theory.undetermined import Interval, undetermined_interval
from lit_sphere.theory.weight_decay import (
    equilibrium_elrs,
    equilibrium_ess,
    equilibrium_norms,
    jump_norm,
    next_norm,
    rescaled,
    step_cosine,
    step_distance,
    steps_before_jump,
)

__all__ = [
    "Interval",
    "Rotation",
    "SphericalStep",
    "adam_elr",
    "adam_equilibrium",
    "adamw_equilibrium",
    "distance_bounds",
    "effective_grad_norm",
    "effective_lr",
    "effective_step_size",
    "elr_from_products",
    "equilibrium_elrs",
    "equilibrium_ess",
    "equilibrium_norms",
    "factors_of",
    "falling_grad_norms",
    "jump_norm",
    "largest_stable_eigenvalue",
    "lion_equilibrium",
    "measured_equilibrium",
    "momentum_elr",
    "next_elr",
    "next_norm",
    "radius_ratio",
    "rates_without_l2",
    "relaxed_norm",
    "rescaled",
    "root_mean_square",
    "sgd_elr",
    "sgd_equilibrium",
    "spherical_step",
    "step_cosine",
    "step_distance",
    "steps_before_jump",
    "steps_to_equilibrium",
    "total_elr",
    "total_ess",
    "toy",
    "toy_plane",
    "undetermined_interval",
    "weight_decay",
]
