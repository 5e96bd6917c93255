"""The experiments of the papers: what each must show, whether runs show it, and its charts."""

from lit_sphere.experiments.experiment import Experiment, Finding, NotDrawn, Verdict
from lit_sphere.experiments.registry import EXPERIMENTS
from lit_sphere.experiments.seeds import judge

__all__ = ["EXPERIMENTS", "Experiment", "Finding", "NotDrawn", "Verdict", "judge"]
