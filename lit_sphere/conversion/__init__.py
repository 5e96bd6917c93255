"""A given network made scale-invariant, so that it can be trained on the sphere."""

from lit_sphere.conversion.convert import Conversion, ConvertedTensor, Free, How, apply_plan, make_scale_invariant

__all__ = ["Conversion", "ConvertedTensor", "Free", "How", "apply_plan", "make_scale_invariant"]
