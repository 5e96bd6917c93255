"""What the curves of a run say: plain functions, without Lightning."""

from lit_sphere.analysis.regimes import RegimeVerdict, name_regime

__all__ = ["RegimeVerdict", "name_regime"]
