"""The panels that compare runs in W&B, section by section; builds them without account or network."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces
from wandb_workspaces import expr

_ELR = "model.init_args.elr"
_TABLE = ("regime", "evidence", "since", "best/val/error", "final/train/loss", "final/effective_grad_norm/total")
_ROW_HEIGHT, _REPORT_WIDTH = 7, 24  # in the units of a report's grid
# Names of groups hold a dot, those of quantiles over the groups (`monitor.quantiles`) do not. Understood by RE2, too,
# which has no look-ahead.
_GROUPS = r"/(.*\..*|min|q[0-9]+|median|max)$"


class PanelSection(NamedTuple):
    """Panels of one kind.

    Attributes:
        name: Heading.
        text: What to look for, for the report.
        panels: The panels, row by row.
        columns: Panels in a row.
        is_open: Whether it is unfolded at first.
    """

    name: str
    text: str
    panels: list[Any]
    columns: int = 3
    is_open: bool = True


def panel_sections() -> list[PanelSection]:
    """Make the sections of workspace and report.

    Returns:
        The sections: first what compares runs as a whole, then curves.
    """
    return [*_of_runs(), *_of_training(), *_of_groups(), *_of_the_path()]


def _of_runs() -> list[PanelSection]:
    return [
        PanelSection(
            "Runs compared",
            "A point is a run, its colour the effective learning rate (ELR). Along the ELR the runs of one network "
            "pass from regime 1 (convergence) through 2 (chaotic equilibrium) to 3 (divergence).",
            [
                _over_runs("Sharpness against train loss", "final/train/loss", "final/effective_grad_norm/total"),
                _over_runs("Train loss at the end over ELR", "final/elr/total", "final/train/loss"),
                _over_runs("Best validation error over ELR", "final/elr/total", "best/val/error", log_y=False),
                _over_runs("Sharpness at the end over ELR", "final/elr/total", "final/effective_grad_norm/total"),
                _over_runs("Effective step size at the end over ELR", "final/elr/total", "final/ess/total"),
                _over_runs(
                    "Regime over ELR: 1 converges, 2 equilibrium, 3 diverges",
                    "final/elr/total",
                    "regime_number",
                    log_y=False,
                ),
            ],
        ),
        PanelSection(
            "Regimes",
            "How each run ended, with the reason, and when that began.",
            [
                reports.WeavePanelSummaryTable(table_name="tables/regime"),
                _curve("Regime as it was named", "regime", title_y="0 undecided, 1, 2, 3"),
            ],
            columns=2,
        ),
    ]


def _of_training() -> list[PanelSection]:
    return [
        PanelSection(
            "Loss",
            "In convergence it falls to zero, in the chaotic equilibrium it stays at a level that rises with the ELR, "
            "in divergence it is that of guessing.",
            [_curve("Train loss", "train/loss", log=True), _curve("Validation loss", "val/loss", log=True)],
            columns=2,
        ),
        PanelSection(
            "Error",
            "Fractions, not per cent.",
            [_curve("Train error", "train/error"), _curve("Validation error", "val/error")],
            columns=2,
        ),
        PanelSection(
            "Sharpness",
            "The effective gradient norm g̃ = ρ‖∇‖, and curvatures where SharpnessMonitor measured them.",
            [
                _curve("Effective gradient norm g̃", "effective_grad_norm/total", log=True),
                _curve("g̃ of each group", "^effective_grad_norm" + _GROUPS, log=True),
                _curve("Sharpness, online and over the train set", "^sharpness/(online|train_pass)$", log=True),
                _curve(
                    "Curvature",
                    "^sharpness/(top_eigenvalue|edge_of_stability|hessian_trace|fisher_trace)$",
                    log=True,
                ),
            ],
            columns=2,
        ),
    ]


def _of_groups() -> list[PanelSection]:
    return [
        PanelSection(
            "Effective learning rate of each group",
            "On one sphere the total is fixed, and the groups share it out among themselves.",
            [
                _curve("ELR, total and predicted", ["elr/total", "equilibrium/elr"], log=True),
                _curve("ELR of each group", "^elr" + _GROUPS, log=True),
            ],
            columns=2,
        ),
        PanelSection(
            "Effective step size of each group",
            "In the chaotic equilibrium all groups take steps of one effective size: in the scatter they lie on a line "
            "of slope −1 (drawn with --monitor.scatter_epochs).",
            [
                _curve("Effective step size, total and predicted", ["ess/total", "equilibrium/ess"], log=True),
                _curve("Effective step size of each group", "^ess" + _GROUPS, log=True),
                reports.CustomChart(
                    query={"summaryTable": {"tableKey": "equal_ess/scatter_table"}, "id": None, "name": None},
                    chart_name="wandb/scatter/v0",
                    chart_fields={"x": "log10 elr", "y": "log10 effective_grad_norm"},
                    chart_strings={"title": "Equal effective step sizes: slope −1"},
                ),
            ],
        ),
        PanelSection(
            "Norms and angles",
            "",
            [
                _curve("Norm ρ, total and predicted", ["norm/total", "equilibrium/norm"]),
                _curve("Angle of a step [rad]", "angle/total", log=True),
                _curve("Cosine distance of consecutive iterates", "distance/total", log=True),
                _curve("Length of a step across the weights", "step_length/total", log=True),
            ],
            is_open=False,
        ),
    ]


def _of_the_path() -> list[PanelSection]:
    return [
        PanelSection(
            "Barriers",
            "Barrier of loss and error between checkpoints (LinearInterpolationBarrier); how alike they are.",
            [
                _curve("Barrier of the loss", "^barrier/(great_circle/)?(train|val)_loss$"),
                _curve("Barrier of the error", "^barrier/(great_circle/)?(train|val)_error$"),
                _curve("Cosine of the weights", "^(barrier/cosine|similarity/(previous|first))$"),
            ],
        ),
        PanelSection(
            "Pictures",
            "",
            [
                reports.MediaBrowser(title=title, media_keys=[f"pictures/{name}"], num_columns=1)
                for title, name in (("Curves", "curves"), ("Regimes", "regime"), ("Sharpness", "sharpness"))
            ],
            is_open=False,
        ),
    ]


def _curve(title: str, keys: str | list[str], *, log: bool = False, title_y: str | None = None) -> Any:
    """A line plot over epochs; a string that begins with ^ is a pattern of keys."""
    is_pattern = isinstance(keys, str) and keys.startswith("^")
    named = {"metric_regex": keys} if is_pattern else {"y": [keys] if isinstance(keys, str) else keys}
    return reports.LinePlot(
        title=title,
        x="epoch",
        title_x="epoch",
        title_y=title_y,
        log_y=log,
        smoothing_type="none",
        smoothing_factor=0,
        **named,
    )


def _over_runs(title: str, x: str, y: str, *, log_y: bool = True) -> Any:
    elr = reports.SummaryMetric("final/elr/total")
    return reports.ScatterPlot(
        title=title,
        x=reports.SummaryMetric(x),
        y=reports.SummaryMetric(y),
        z=elr,
        log_x=True,
        log_y=log_y,
        log_z=True,
    )


def make_workspace(entity: str, project: str, name: str) -> Any:
    """Make the workspace that compares a project's runs, grouped by ELR.

    Args:
        entity: User or team.
        project: Its project.
        name: Of the workspace.

    Returns:
        A ``wandb_workspaces.workspaces.Workspace``, not saved.
    """
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            workspaces.Section(
                name=section.name,
                panels=section.panels,
                is_open=section.is_open,
                layout_settings=workspaces.SectionLayoutSettings(
                    columns=section.columns, rows=-(-len(section.panels) // section.columns)
                ),
                panel_settings=workspaces.SectionPanelSettings(x_axis="epoch"),
            )
            for section in panel_sections()
        ],
        settings=workspaces.WorkspaceSettings(x_axis="epoch", smoothing_type="none", max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            groupby=[expr.Config(_ELR)],
            order=[expr.Ordering(expr.Summary("final/elr/total"), ascending=True)],
            pinned_columns=["summary:final/elr/total", *(f"summary:{key}" for key in _TABLE)],
        ),
    )


def make_report(entity: str, project: str, name: str) -> Any:
    """Make a report with the same panels, and what to look for in them.

    Args:
        entity: User or team.
        project: Its project.
        name: Its title.

    Returns:
        A ``wandb_workspaces.reports.v2.Report``, not saved.
    """
    blocks: list[Any] = [reports.TableOfContents()]
    for section in panel_sections():
        runs = reports.Runset(
            name="runs by effective learning rate",
            groupby=[f"config.{_ELR}"],
            order=[reports.OrderBy(reports.SummaryMetric("final/elr/total"), ascending=True)],
        )
        blocks.append(reports.H2(section.name))
        if section.text:
            blocks.append(reports.P(section.text))
        blocks.append(reports.PanelGrid(runsets=[runs], panels=_laid_out(section.panels, section.columns)))
    return reports.Report(entity=entity, project=project, title=name, blocks=blocks, width="fluid")


def _laid_out(panels: Sequence[Any], columns: int) -> list[Any]:
    width = _REPORT_WIDTH // columns
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        panel.layout = reports.Layout(x=column * width, y=row * _ROW_HEIGHT, w=width, h=_ROW_HEIGHT)
    return list(panels)
