"""LightningModules that train a network on the sphere, or in the whole space for comparison."""

from lit_sphere.modules.options import Loss, OptimizerCallable, SchedulerCallable, Spheres
from lit_sphere.modules.si_modules import (
    DERIVED,
    PracticalConvNet,
    PracticalResNet18,
    PracticalResNet20,
    SIConvNet,
    SIResNet18,
    SIResNet20,
)
from lit_sphere.modules.sphere_module import SphereModule

globals().update(DERIVED)
__all__ = [
    *DERIVED,
    "Loss",
    "OptimizerCallable",
    "PracticalConvNet",
    "PracticalResNet18",
    "PracticalResNet20",
    "SIConvNet",
    "SIResNet18",
    "SIResNet20",
    "SchedulerCallable",
    "SphereModule",
    "Spheres",
]
