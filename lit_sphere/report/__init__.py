"""From the logs of runs to figures."""

from lit_sphere.report.curves import draw_curves
from lit_sphere.report.metrics_csv import Series, read_metrics

__all__ = ["Series", "draw_curves", "read_metrics"]
