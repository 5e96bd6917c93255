"""Data modules whose images stay in memory, on the training device."""

from lit_sphere.data.cifar import CIFAR10, CIFAR100
from lit_sphere.data.digits import Digits
from lit_sphere.data.loader import Images, ResidentLoader
from lit_sphere.data.resident import ResidentDataModule

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Digits",
    "Images",
    "ResidentDataModule",
    "ResidentLoader",
]
