"""The picture of a run: what is drawn where, and under which name."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lit_sphere.report import Series, draw_curves, read_metrics


def by_epoch(values: list[float]) -> Series:
    return Series([float(i) for i in range(len(values))], [12.0 * i + 11 for i in range(len(values))], values)


def axes_of(figure: Figure, title: str):  # type: ignore[no-untyped-def]
    (axes,) = [axes for axes in figure.axes if axes.get_title().startswith(title)]
    return axes


def test_an_epoch_is_one_point() -> None:
    axes = axes_of(draw_curves({"train/loss": by_epoch([3.0, 2.0, 1.0])}), "loss")
    (line,) = axes.lines
    assert list(line.get_xdata()) == [0, 1, 2]
    assert list(line.get_ydata()) == [3, 2, 1]


def test_steps_are_parts_of_their_epoch() -> None:
    steps = Series([0, 0, 0, 1, 1, 1], [0, 4, 8, 12, 16, 23], [1.0] * 6)
    (line,) = axes_of(draw_curves({"elr/total": steps}), "effective learning rate").lines
    assert list(line.get_xdata()) == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 23 / 12])


def test_the_path_takes_the_mean_of_an_epochs_steps() -> None:
    steps = Series([0, 0, 1, 1], [0, 4, 8, 12], [1.0, 3.0, 5.0, 7.0])
    figure = draw_curves({"train/loss": by_epoch([0.2, 0.1]), "effective_grad_norm/total": steps})
    (line,) = axes_of(figure, "path").lines
    assert list(line.get_ydata()) == [2, 6]


@pytest.mark.parametrize(
    ("keys", "label"),
    [([f"convs.{i}.weight" for i in range(7)], "single groups"), (["min", "median"], "quantiles over the groups")],
)
def test_groups_and_their_quantiles_are_told_apart(keys: list[str], label: str) -> None:
    series = {f"elr/{key}": by_epoch([0.1, 0.2]) for key in [*keys, "total"]}
    texts = [text.get_text() for text in axes_of(draw_curves(series), "effective").get_legend().get_texts()]
    assert texts == [label, "total"]


def test_a_switch_is_a_line_before_its_epoch_and_none_at_the_start() -> None:
    loss = by_epoch([3.0, 2.0, 1.0])
    marks = {"switch/elr": Series([2.0], [23.0], [0.5]), "switch/fixed_norm": Series([0.0], [0.0], [3.0])}
    axes = axes_of(draw_curves({"train/loss": loss, **marks}), "loss")
    assert [list(line.get_xdata()) for line in axes.lines[1:]] == [[1.5, 1.5]]
    assert axes.get_legend().get_texts()[-1].get_text() == "from epoch 2: elr 0.5"


GROUPS = ("a.weight", "b.weight")


def sphere(**more: Series) -> dict[str, Series]:
    """Two groups on one sphere; the second turns twice as far as the whole."""
    series = {"elr/total": by_epoch([0.1, 0.1]), "ess/total": by_epoch([0.3, 0.2]), **more}
    for name, elr, norm in zip(GROUPS, (0.2, 0.4), (1.5, 1.0), strict=True):
        series |= {f"elr/{name}": by_epoch([elr] * 2), f"effective_grad_norm/{name}": by_epoch([norm, norm / 2])}
    return series


def dashed(figure: Figure, title: str) -> list[tuple[str, list[float]]]:
    axes = axes_of(figure, title)
    return [(line.get_label(), list(line.get_ydata())) for line in axes.lines if line.get_linestyle() == "--"]


def test_on_one_sphere_the_elrs_of_a_few_groups_are_predicted_in_their_colours() -> None:
    figure = draw_curves(sphere(**{"equilibrium/ess": by_epoch([0.3, 0.2])}))
    first, second = dashed(figure, "effective learning rate")
    assert first[0] == "equilibrium (theory)"
    assert first[1] == pytest.approx([0.3 / 1.5, 0.2 / 0.75])
    assert second[1] == pytest.approx([0.3, 0.4])
    lines = axes_of(figure, "effective learning rate").lines
    colours = {style: [line.get_color() for line in lines if line.get_linestyle() == style] for style in ("-", "--")}
    assert colours["--"] == colours["-"][:2]
    assert len({*colours["-"]}) == 3
    assert dashed(figure, "effective step size") == [], "the line of the whole is the prediction"


def test_under_weight_decay_the_step_size_and_the_elr_of_the_whole_are_predicted() -> None:
    settled = {"equilibrium/ess": by_epoch([0.5, 0.5]), "equilibrium/elr": by_epoch([0.25, 0.5])}
    figure = draw_curves(sphere(**settled))
    assert dashed(figure, "effective step size") == [("equilibrium (theory)", [0.5, 0.5])]
    assert dashed(figure, "effective learning rate") == [("equilibrium of the total (theory)", [0.25, 0.5])]


def of_many(count: int) -> dict[str, Series]:
    series = {"elr/total": by_epoch([0.01, 0.01]), "equilibrium/ess": by_epoch([0.3, 0.2])}
    for i in range(count):
        series[f"elr/{i}.weight"] = by_epoch([0.1 * (i + 1)] * 2)
        series[f"effective_grad_norm/{i}.weight"] = by_epoch([1.0 + i, 2.0 + i])
    return series


@pytest.mark.parametrize("count", [7, 15, 80])
def test_on_one_sphere_the_elrs_of_many_groups_are_predicted_by_their_quantiles(count: int) -> None:
    least, median, greatest = dashed(draw_curves(of_many(count)), "effective learning rate")
    assert [label for label, _ in (least, median, greatest)].count("equilibrium (theory): least, median, greatest") == 1
    assert least[1] == pytest.approx([0.3 / count, 0.2 / (count + 1)])
    assert greatest[1] == pytest.approx([0.3, 0.1])
    middle = [sorted(ess / (first + i) for i in range(count)) for ess, first in ((0.3, 1), (0.2, 2))]
    assert median[1] == pytest.approx([(each[count // 2] + each[(count - 1) // 2]) / 2 for each in middle])


def test_of_logged_quantiles_the_elrs_are_predicted_too() -> None:
    series = {"elr/total": by_epoch([0.1, 0.1]), "equilibrium/ess": by_epoch([0.3, 0.2])}
    for name, norm in (("min", 0.5), ("q25", 0.7), ("median", 1.0), ("max", 4.0)):
        series |= {f"elr/{name}": by_epoch([1.0, 1.0]), f"effective_grad_norm/{name}": by_epoch([norm] * 2)}
    levels = [values for _, values in dashed(draw_curves(series), "effective learning rate")]
    assert levels[0] == pytest.approx([0.3 / 4, 0.2 / 4])
    assert levels[-1] == pytest.approx([0.3 / 0.5, 0.2 / 0.5])


def interval(**more: Series) -> dict[str, Series]:
    ends = {"elr_low": 0.1, "elr_high": 0.4, "norm_low": 2.0, "norm_high": 4.0}
    return {f"equilibrium/{name}": by_epoch([value, 2 * value]) for name, value in ends.items()} | more


@pytest.mark.parametrize("groups", [2, 15])
def test_under_weight_decay_the_intervals_of_elr_and_norm_are_shaded(groups: int) -> None:
    figure = draw_curves({**of_many(groups), **interval(), "norm/total": by_epoch([3.0, 3.0])})
    for title, low, high in (("effective learning rate", 0.1, 0.4), ("norm", 2.0, 4.0)):
        (band,) = axes_of(figure, title).collections
        assert band.get_label() == "equilibrium interval (theory)"
        points = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
        assert points == {(0, low), (0, high), (1, 2 * low), (1, 2 * high)}


def test_epochs_without_an_interval_are_not_shaded() -> None:
    ends = {f"elr_{end}": Series([0, 1, 4, 7], [11, 23, 59, 95], [v] * 4) for end, v in (("low", 0.1), ("high", 0.4))}
    series = {"elr/total": by_epoch([0.2] * 8), **{f"equilibrium/{name}": one for name, one in ends.items()}}
    (band,) = axes_of(draw_curves(series), "effective learning rate").collections
    assert [sorted({x for x, _ in path.vertices.tolist()}) for path in band.get_paths()] == [
        [0, 1, 1.5],
        [3.5, 4, 4.5],
        [6.5, 7],
    ]


def test_the_largest_step_is_no_group() -> None:
    figure = draw_curves({"ess/total": by_epoch([0.1, 0.1]), "ess/step_max": by_epoch([0.5, 0.5])})
    assert len(axes_of(figure, "effective step size").lines) == 1


def test_without_theory_nothing_is_dashed() -> None:
    figure = draw_curves(sphere())
    assert dashed(figure, "effective step size") == dashed(figure, "effective learning rate") == []


def test_the_names_of_a_few_groups_stand_once() -> None:
    figure = draw_curves(sphere(**{"effective_grad_norm/total": by_epoch([2.0, 1.0])}))
    legends = [axes.get_legend() for axes in figure.axes if axes.get_title().startswith("effective")]
    (legend,) = [legend for legend in legends if legend is not None]
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "total"]


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="no curve to draw"):
        draw_curves({"lr": by_epoch([1.0])})


def test_a_row_that_is_cut_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,train/loss,step\n0,0.5,2\n1,0.25,4\n2,0.1")
    assert read_metrics(file)["train/loss"].values == [0.5, 0.25]
