"""Training of scale-invariant networks on the sphere, and effective learning rates in any Lightning project."""

__version__ = "0.1.0"
