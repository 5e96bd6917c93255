"""What the curves and the weights of a run say: plain functions, without Lightning."""

from lit_sphere.analysis.curvature import (
    Curvature,
    TraceEstimate,
    fisher_trace,
    hutchinson_trace,
    measure_curvature,
    sphere_hessian,
    top_eigenvalue,
)
from lit_sphere.analysis.directions import Directions
from lit_sphere.analysis.edge_of_stability import descent_rate, edge_of_stability
from lit_sphere.analysis.equal_ess import EqualESS, equal_ess
from lit_sphere.analysis.evaluation import LossAndError, loss_and_error, mean_loss
from lit_sphere.analysis.interpolation import (
    Interpolation,
    WeightPath,
    barrier_height,
    dip_depth,
    interpolate,
    path_positions,
)
from lit_sphere.analysis.periods import Period, PeriodReader, Periods, segment_periods
from lit_sphere.analysis.regimes import RegimeVerdict, name_regime
from lit_sphere.analysis.schedule_regimes import ScheduleAnalysis, analyse_schedule
from lit_sphere.analysis.sharpness import (
    Objective,
    TrainPass,
    train_pass,
)
from lit_sphere.analysis.similarity import EnsembleErrors, cosine_matrix, ensemble_errors
from lit_sphere.analysis.weights import (
    difference,
    epochs_done,
    not_finite,
    put_weights,
    read_checkpoint,
    separation,
    take_weights,
    tensors_of,
)

__all__ = [
    "Curvature",
    "Directions",
    "EnsembleErrors",
    "EqualESS",
    "Interpolation",
    "LossAndError",
    "Objective",
    "Period",
    "PeriodReader",
    "Periods",
    "RegimeVerdict",
    "ScheduleAnalysis",
    "TraceEstimate",
    "TrainPass",
    "WeightPath",
    "analyse_schedule",
    "barrier_height",
    "cosine_matrix",
    "descent_rate",
    "difference",
    "dip_depth",
    "edge_of_stability",
    "ensemble_errors",
    "epochs_done",
    "equal_ess",
    "fisher_trace",
    "hutchinson_trace",
    "interpolate",
    "loss_and_error",
    "mean_loss",
    "measure_curvature",
    "name_regime",
    "not_finite",
    "path_positions",
    "put_weights",
    "read_checkpoint",
    "segment_periods",
    "separation",
    "sphere_hessian",
    "take_weights",
    "tensors_of",
    "top_eigenvalue",
    "train_pass",
]
