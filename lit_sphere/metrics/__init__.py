"""Means that modules log and callbacks judge: one number for one word."""

from lit_sphere.metrics.loss_and_error import LossAndErrorByLabel, MeanLossAndError

__all__ = ["LossAndErrorByLabel", "MeanLossAndError"]
