"""The papers' networks, an MLP and a transformer as plain ``torch.nn`` modules, practical and scale-invariant."""

from lit_sphere.networks.conv_net import ConvNet
from lit_sphere.networks.mlp import MLP
from lit_sphere.networks.resized import Resized
from lit_sphere.networks.resnet18 import ResNet18
from lit_sphere.networks.resnet20 import ResNet20
from lit_sphere.networks.transformer import Transformer

__all__ = [
    "MLP",
    "ConvNet",
    "ResNet18",
    "ResNet20",
    "Resized",
    "Transformer",
]
