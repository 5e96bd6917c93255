"""Optimizers on the sphere, as plain ``torch.optim`` classes."""

from lit_sphere.optim.norms import joint_norm, row_squared_norms, squared_norms
from lit_sphere.optim.sphere_sgd import SphereSGD

__all__ = ["SphereSGD", "joint_norm", "row_squared_norms", "squared_norms"]
