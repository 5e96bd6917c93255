"""From the logs of runs to figures."""

from lit_sphere.report.barrier import draw_interpolation, write_interpolation
from lit_sphere.report.curves import draw_curves
from lit_sphere.report.equal_ess import draw_equal_ess, write_equal_ess
from lit_sphere.report.metrics_csv import Series, read_metrics
from lit_sphere.report.optimizer_comparison import draw_optimizer_comparison, write_optimizer_comparison
from lit_sphere.report.picture import NoPicture, in_short, write_picture
from lit_sphere.report.regime_curves import RegimeSegment, draw_regimes
from lit_sphere.report.schedule_regimes import draw_schedule_regimes, schedule_report, write_schedule_regimes
from lit_sphere.report.sharpness import draw_sharpness
from lit_sphere.report.similarity import PairOfSnapshots, draw_similarity, write_similarity

__all__ = [
    "NoPicture",
    "PairOfSnapshots",
    "RegimeSegment",
    "Series",
    "draw_curves",
    "draw_equal_ess",
    "draw_interpolation",
    "draw_optimizer_comparison",
    "draw_regimes",
    "draw_schedule_regimes",
    "draw_sharpness",
    "draw_similarity",
    "in_short",
    "read_metrics",
    "schedule_report",
    "write_equal_ess",
    "write_interpolation",
    "write_optimizer_comparison",
    "write_picture",
    "write_schedule_regimes",
    "write_similarity",
]
