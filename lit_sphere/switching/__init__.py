"""Changes of a run's dynamics in its middle: what is switched, when, and what a resumed run makes of it."""

from lit_sphere.switching.options import SwitchableOptions
from lit_sphere.switching.switch import Switch

__all__ = ["Switch", "SwitchableOptions"]
