"""Means that modules log and callbacks judge: one number for one word."""

from lit_sphere.metrics.loss_and_error import MeanLossAndError

__all__ = ["MeanLossAndError"]
