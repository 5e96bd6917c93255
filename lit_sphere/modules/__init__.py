"""LightningModules that train a network on the sphere, or in the whole space for comparison."""

from lit_sphere.modules.options import Loss, OptimizerCallable, SchedulerCallable, Spheres
from lit_sphere.modules.si_modules import (
    DERIVED,
    SIMLP,
    PracticalConvNet,
    PracticalMLP,
    PracticalResNet18,
    PracticalResNet20,
    PracticalTransformer,
    SIConvNet,
    SIResNet18,
    SIResNet20,
    SITransformer,
)
from lit_sphere.modules.sphere_module import SphereModule

globals().update(DERIVED)
__all__ = [
    *DERIVED,
    "Loss",
    "OptimizerCallable",
    "PracticalConvNet",
    "PracticalMLP",
    "PracticalResNet18",
    "PracticalResNet20",
    "PracticalTransformer",
    "SIConvNet",
    "SIMLP",
    "SIResNet18",
    "SIResNet20",
    "SITransformer",
    "SchedulerCallable",
    "SphereModule",
    "Spheres",
]
