"""What the curves and the weights of a run say: plain functions, without Lightning."""

from lit_sphere.analysis.evaluation import LossAndError, loss_and_error
from lit_sphere.analysis.regimes import RegimeVerdict, name_regime

__all__ = ["LossAndError", "RegimeVerdict", "loss_and_error", "name_regime"]
