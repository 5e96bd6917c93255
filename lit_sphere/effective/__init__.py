"""Effective learning rate, effective step size and effective gradient norm of groups of parameters.

Notation of TR §3: ρ = ‖θ‖, g = ‖∇‖, effective learning rate (ELR) η̃ = η/ρ², effective gradient norm
g̃ = ρg, effective step size (ESS) η̃g̃ = ηg/ρ, the tangent of the angle by which a step turns θ. For optimizers
with momentum, weight decay or adaptive steps ELR and ESS are those of SP Theorem 2.
"""

from lit_sphere.effective.atoms import Atoms
from lit_sphere.effective.equilibrium import (
    DecayRule,
    EquilibriumRule,
    Prediction,
    decay_rule,
    equilibrium_rule,
    predicted_equilibrium,
    predicted_interval,
    predicted_rotation,
)
from lit_sphere.effective.quantities import NOT_STEPPED, QUANTITIES, EffectiveQuantities
from lit_sphere.effective.settling import Settling
from lit_sphere.effective.sources import Source, rounds_steps, source_of
from lit_sphere.effective.spread import quantile_name, quantiles_over_groups
from lit_sphere.effective.step_means import (
    StepMean,
    StepMeans,
    StepSummary,
    StepTrace,
    mean_of_state,
    mean_where_stepped,
)

__all__ = [
    "NOT_STEPPED",
    "QUANTITIES",
    "Atoms",
    "DecayRule",
    "EffectiveQuantities",
    "EquilibriumRule",
    "Prediction",
    "Settling",
    "Source",
    "StepMean",
    "StepMeans",
    "StepSummary",
    "StepTrace",
    "decay_rule",
    "equilibrium_rule",
    "mean_of_state",
    "mean_where_stepped",
    "predicted_equilibrium",
    "predicted_interval",
    "predicted_rotation",
    "quantile_name",
    "quantiles_over_groups",
    "rounds_steps",
    "source_of",
]
