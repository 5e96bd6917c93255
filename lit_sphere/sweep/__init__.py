"""Grids of runs: plan, run, go on."""

from lit_sphere.sweep.grid import PAPER_ELRS, Point, SweepError
from lit_sphere.sweep.local import LocalProcesses
from lit_sphere.sweep.plan import Plan, plan_of, read_plan
from lit_sphere.sweep.run import Fit, Sweep, SweepResult
from lit_sphere.sweep.states import PointState

__all__ = [
    "PAPER_ELRS",
    "Fit",
    "LocalProcesses",
    "Plan",
    "Point",
    "PointState",
    "Sweep",
    "SweepError",
    "SweepResult",
    "plan_of",
    "read_plan",
]
