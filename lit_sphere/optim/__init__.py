"""Optimizers on the sphere, as plain ``torch.optim`` classes."""

from lit_sphere.optim.adagrad_g import AdaGradG, adagrad_g_like_sgd
from lit_sphere.optim.baselines import GradientAscent, RandomWalk
from lit_sphere.optim.granularity import Granularity
from lit_sphere.optim.norm_keeper import NormKeeper
from lit_sphere.optim.norms import block_norms, block_owners, joint_norm, squared_norms
from lit_sphere.optim.sphere_sgd import SphereSGD

__all__ = [
    "AdaGradG",
    "GradientAscent",
    "Granularity",
    "NormKeeper",
    "RandomWalk",
    "SphereSGD",
    "adagrad_g_like_sgd",
    "block_norms",
    "block_owners",
    "joint_norm",
    "squared_norms",
]
