"""Optimizers on the sphere, as plain ``torch.optim`` classes."""

from lit_sphere.optim.adagrad_g import AdaGradG, adagrad_g_like_sgd
from lit_sphere.optim.norm_keeper import NormKeeper
from lit_sphere.optim.norms import block_norms, block_owners, joint_norm, row_squared_norms, squared_norms
from lit_sphere.optim.sphere_sgd import SphereSGD
from lit_sphere.optim.switch import Switch
from lit_sphere.optim.switchable import SwitchableOptions

__all__ = [
    "AdaGradG",
    "NormKeeper",
    "SphereSGD",
    "Switch",
    "SwitchableOptions",
    "adagrad_g_like_sgd",
    "block_norms",
    "block_owners",
    "joint_norm",
    "row_squared_norms",
    "squared_norms",
]
