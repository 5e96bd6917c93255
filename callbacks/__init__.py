"""Lightning callbacks; each works alone in any Lightning project.

*Monitors* leave the training bit-identical; *controls* change it and say so.
"""

from lit_sphere.callbacks.checkpoint_similarity import CheckpointSimilarity
from lit_sphere.callbacks.cosine_regime_analysis import CosineRegimeAnalysis
from lit_sphere.callbacks.effective_learning_rate import EffectiveLearningRateMonitor
from lit_sphere.callbacks.fine_tune_switch import FineTuneSwitch
from lit_sphere.callbacks.fixed_norm import FixedNorm
from lit_sphere.callbacks.graceful_stop import GracefulStop, Interrupted
from lit_sphere.callbacks.linear_interpolation_barrier import LinearInterpolationBarrier
from lit_sphere.callbacks.non_finite import StopOnNonFinite
from lit_sphere.callbacks.optimizer_comparison import OptimizerComparison
from lit_sphere.callbacks.period_monitor import PeriodMonitor
from lit_sphere.callbacks.regime_monitor import RegimeMonitor
from lit_sphere.callbacks.run_checkpoint import RunCheckpoint
from lit_sphere.callbacks.run_progress import RunProgressBar
from lit_sphere.callbacks.run_summary import RunSummary
from lit_sphere.callbacks.sharpness import SharpnessMonitor
from lit_sphere.observe.stopping import NonFinite
from lit_sphere.switching import Switch

__all__ = [
    "CheckpointSimilarity",
    "CosineRegimeAnalysis",
    "EffectiveLearningRateMonitor",
    "FineTuneSwitch",
    "FixedNorm",
    "GracefulStop",
    "Interrupted",
    "LinearInterpolationBarrier",
    "NonFinite",
    "OptimizerComparison",
    "PeriodMonitor",
    "RegimeMonitor",
    "RunCheckpoint",
    "RunProgressBar",
    "RunSummary",
    "SharpnessMonitor",
    "StopOnNonFinite",
    "Switch",
]
