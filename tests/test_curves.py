"""The picture of a run: what is drawn where, and under which name."""

import pytest
from matplotlib.figure import Figure

from lit_sphere.report import Series, draw_curves


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


@pytest.mark.parametrize(
    ("keys", "label"),
    [(["convs.0.weight", "convs.1.weight"], "single groups"), (["min", "q25", "median"], "quantiles over the groups")],
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


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="no curve to draw"):
        draw_curves({"lr": by_epoch([1.0])})
