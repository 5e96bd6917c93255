"""What varies in a sweep: values, points, their names, and plans in files."""

from pathlib import Path

import pytest
import yaml

from lit_sphere.sweep import PAPER_ELRS, Plan, SweepError, plan_of, read_plan
from lit_sphere.sweep.grid import read_over
from lit_sphere.sweep.plan import FolderPlan, check_goes_on, read_folder_plan, write_folder_plan


def test_the_papers_grid() -> None:
    assert [float(elr) for elr in PAPER_ELRS] == sorted(float(f"{m}e-{k}") for k in range(8) for m in (1, 2, 5))
    assert read_over("model.elr=paper") == ("model.elr", PAPER_ELRS)
    some = read_over("model.elr=paper:1e-7:1")[1]
    assert (len(some), some[0], some[-1]) == (22, "1e-7", "1")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("model.elr=1e-4,1e-3", ("1e-4", "1e-3")),
        ("model.elr=log:1e-5:1:6", ("1e-05", "0.0001", "0.001", "0.01", "0.1", "1")),
        ("x=lin:0:1:3", ("0", "0.5", "1")),
        ("--model=SIConvNet, SIResNet18", ("SIConvNet", "SIResNet18")),
        ("model.input_shape=[1,8,8],[3,32,32]", ("[1,8,8]", "[3,32,32]")),
        ("trainer.callbacks={class_path: A, init_args: {a: 1}},null", ("{class_path: A, init_args: {a: 1}}", "null")),
        ("data.root=logs:old", ("logs:old",)),
    ],
)
def test_values(text: str, values: tuple[str, ...]) -> None:
    assert read_over(text)[1] == values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model.elr", "expected OPTION=VALUES"),
        ("model.elr=", "expected OPTION=VALUES"),
        ("model.elr=1,,2", "a value is missing"),
        ("model.elr=1e-3,0.001", "the same value twice, 1e-3 and 0.001"),
        ("model.elr=log:1:2", "is no range"),
        ("model.elr=log:0:2:3", "LOW must be below HIGH, and positive"),
        ("model.elr=log:2:1:3", "LOW must be below HIGH"),
        ("model.elr=log:a:1:3", "a is no number"),
        ("model.elr=log:1e-3:1:1", "at least 2 values"),
        ("model.elr=paper:5:9e9", None),
        ("model.elr=paper:5:1e-4", "paper:5:1e-4: the papers' grid, 1e-7 to 5, has no ELR from 5 to 0.0001"),
    ],
)
def test_values_that_are_none(text: str, said: str | None) -> None:
    if said is None:
        assert read_over(text)[1] == ("5",)
        return
    with pytest.raises(SweepError, match=said) as caught:
        read_over(text)
    assert "--over model.elr" in str(caught.value)


def test_a_product_with_seeds() -> None:
    plan = Plan(("--config", "elr.yaml"), {"model.elr": ("1e-3", "0.1"), "model": ("SIConvNet", "a.b.Net")}, seeds=2)
    names = [point.name for point in plan.points]
    assert len(names) == len(set(names)) == 8
    assert names[:3] == [
        "elr=0.001,model=SIConvNet,seed=0",
        "elr=0.001,model=SIConvNet,seed=1",
        "elr=0.001,model=a.b.Net,seed=0",
    ]
    assert plan.arguments(plan.points[1]) == [
        *("--config", "elr.yaml", "--model.elr=1e-3", "--model=SIConvNet", "--seed_everything=1", "--data.seed=1")
    ]
    assert plan.points[1].values == {"model.elr": "1e-3", "model": "SIConvNet", "seed": "1"}


def test_a_zip_changes_options_together() -> None:
    plan = plan_of({"over": {"a": [1, 2]}, "zip": {"b.x": [3, 4], "c.x": "log:1:100:2"}}, "f")
    assert [point.name for point in plan.points] == [
        *("a=1,b.x=3,c.x=1", "a=1,b.x=4,c.x=100", "a=2,b.x=3,c.x=1", "a=2,b.x=4,c.x=100")
    ]


def test_a_config_that_varies_lies_below_what_is_typed() -> None:
    plan = Plan(("--model.width", "4"), {"config": ("elr.yaml", "paper/convnet_cifar10.yaml")})
    assert [plan.arguments(point)[0] for point in plan.points] == [
        *("--config=elr.yaml", "--config=paper/convnet_cifar10.yaml")
    ]
    assert all("/" not in point.name for point in plan.points)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(), "nothing varies"),
        (Plan(over={"run": ("a", "b")}), "--run cannot vary: each point has its own folder"),
        (Plan(("--run=x",), {"a": ("1",)}), "--run is not for a sweep"),
        (Plan(("--ckpt_path", "x"), {"a": ("1",)}), "--ckpt_path is not for a sweep"),
        (Plan(("--a", "3"), {"a": ("1",)}), "--a is given to every run, and varied by the sweep"),
        (Plan(("--data.seed=3",), seeds=2), "--data.seed is given to every run, and varied by --seeds"),
        (Plan(over={"seed_everything": ("1",)}, seeds=2), "--seed_everything is set by --seeds"),
        (Plan(over={"a": ("1",)}, zipped={"a": ("2",)}), "a stands under over and under zip"),
        (Plan(zipped={"a": ("1",), "b": ("2", "3")}), "a has 1, b has 2"),
        (Plan(zipped={"a": ("1", "1.0"), "b": ("2", "2")}), "the point a=1,b=2 is twice"),
        (Plan(over={f"o{i}": tuple(map(str, range(100))) for i in range(3)}), "1000000 points are more than"),
    ],
)
def test_plans_that_cannot_be(plan: Plan, said: str) -> None:
    with pytest.raises(SweepError, match=said):
        _ = plan.points


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a", "is no plan of a sweep"),
        ("ovr: {a: 1}", "ovr is no part of a plan; there are title, fit, over"),
        ("over: [a]", "over: must be options with their values"),
        ("over: {a: []}", "over: a: a value is missing"),
        ("seeds: true", "seeds: must be a whole number"),
        ("then: x", "then: must be a list"),
        ('fit: "--a \'b"', "No closing quotation"),
        ("over: {a: [1", "line 1"),
    ],
)
def test_files_that_are_no_plans(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SweepError, match=said) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)


def test_a_plan_is_written_and_read_again(tmp_path: Path) -> None:
    content = {"title": "T", "fit": "--config elr.yaml --trainer.max_epochs 3", "over": {"model.elr": [1.0e-7, 0.5]}}
    content |= {"zip": {"data.augment": [True, False], "trainer.callbacks": [None, [{"class_path": "A"}]]}}
    plan = plan_of({**content, "seeds": 2, "experiments": ["E1"], "then": ["toy --run {sweep}/toy"]}, "f")
    assert plan.zipped == {"data.augment": ("true", "false"), "trainer.callbacks": ("null", "[{class_path: A}]")}
    write_folder_plan(tmp_path, FolderPlan(plan, 1, {"elr.yaml": "x"}))
    assert read_folder_plan(tmp_path) == FolderPlan(plan, 1, {"elr.yaml": "x"})
    assert read_plan(tmp_path / "sweep.yaml") == plan
    assert "ckpt" not in yaml.safe_load((tmp_path / "sweep.yaml").read_text())


def test_a_sweep_goes_on_with_more_points_only() -> None:
    begun = FolderPlan(Plan(("--x", "1"), {"a": ("1", "2")}, seeds=1), 1, {"c": "d"})
    same = {"c": "d"}
    check_goes_on(begun, begun.plan, same, Path("s"))
    check_goes_on(begun, Plan(("--x", "1"), {"a": ("3", "2.0", "1")}, seeds=3), same, Path("s"))
    for other, configs, said in (
        (Plan(("--x", "2"), {"a": ("1", "2")}, seeds=1), same, "whose runs were given --x 1, not --x 2"),
        (Plan(("--x", "1"), {"a": ("1", "2")}), same, "over a, seed and not over a"),
        (Plan(("--x", "1"), {"b": ("1", "2")}, seeds=1), same, "over a, seed and not over b, seed"),
        (Plan(("--x", "1"), {"a": ("1", "3")}, seeds=1), same, "holds 1 points that are not asked for now, e.g. a=2"),
        (begun.plan, {"c": "e"}, "another content of c"),
    ):
        with pytest.raises(SweepError, match=said):
            check_goes_on(begun, other, configs, Path("s"))
