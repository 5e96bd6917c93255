"""Optimizers on the sphere, as plain ``torch.optim`` classes."""

from lit_sphere.optim.sphere_sgd import SphereSGD
from lit_sphere.optim.squared_norms import row_squared_norms, squared_norms

__all__ = ["SphereSGD", "row_squared_norms", "squared_norms"]
