"""Lightning callbacks; each works alone in any Lightning project.

*Monitors* leave the training bit-identical; *controls* change it and say so.
"""

from lit_sphere.callbacks.effective_learning_rate import EffectiveLearningRateMonitor
from lit_sphere.callbacks.graceful_stop import GracefulStop, Interrupted
from lit_sphere.callbacks.non_finite import NonFinite, StopOnNonFinite
from lit_sphere.callbacks.run_checkpoint import RunCheckpoint
from lit_sphere.callbacks.run_progress import RunProgressBar
from lit_sphere.callbacks.run_summary import RunSummary

__all__ = [
    "EffectiveLearningRateMonitor",
    "GracefulStop",
    "Interrupted",
    "NonFinite",
    "RunCheckpoint",
    "RunProgressBar",
    "RunSummary",
    "StopOnNonFinite",
]
