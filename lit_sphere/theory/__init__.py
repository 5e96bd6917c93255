"""The papers' formulas, each stated once with its equation number."""

from lit_sphere.theory.sphere import next_elr, total_elr, total_ess

__all__ = ["next_elr", "total_elr", "total_ess"]
