"""LightningModules that train a network on the sphere, or in the whole space for comparison."""

from lit_sphere.modules.options import Loss, OptimizerCallable, SchedulerCallable, Spheres
from lit_sphere.modules.si_modules import SIConvNet, SIResNet18
from lit_sphere.modules.sphere_module import SphereModule

__all__ = ["Loss", "OptimizerCallable", "SIConvNet", "SIResNet18", "SchedulerCallable", "SphereModule", "Spheres"]
