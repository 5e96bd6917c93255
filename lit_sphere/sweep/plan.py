"""The plan of a sweep: what all runs have, what varies, and what is to be done with them; a YAML file."""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lit_sphere.files import write_whole
from lit_sphere.sweep.grid import Point, SweepError, points_of, read_values

PLAN_FILE = "sweep.yaml"
"""Name of the plan in a sweep's folder."""

NAMES_SEED = "{seed}"
"""In a command of a plan: it is run for each seed."""

_KEYS = ("title", "fit", "over", "zip", "seeds", "only", "experiments", "then")
_OF_THE_FOLDER = ("threads", "configs")  # what a folder's plan holds beside these
_RESERVED = {
    "run": "each point has its own folder",
    "ckpt_path": "the sweep goes on with its runs by itself",
    "checkpoint.dirpath": "each point has its own folder",
}


@dataclass(frozen=True)
class Plan:
    """What a sweep is.

    Attributes:
        fit: Arguments of ``lit-sphere fit`` that every run gets.
        over: Values by option; the grid is their product.
        zipped: Values by option, all of one length, that change together.
        seeds: Number of seeds, 0, 1, …: each sets ``--seed_everything`` (initialisation) and ``--data.seed`` (order of
            the batches, augmentation, subset, label noise). 0 leaves both as the configs have them.
        title: What the report shows above everything.
        experiments: Ids of the experiments that the report is to show.
        then: Commands of ``lit-sphere`` that are run after the grid; ``{0}`` is the folder of the first point,
            ``{sweep}`` that of the sweep. One with ``{seed}`` is run for each seed, and ``{0}`` is its first point.
        only: Names of the points that are run, where not all of the grid are: of a search for borders.
    """

    fit: tuple[str, ...] = ()
    over: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    zipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: int = 0
    title: str = ""
    experiments: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse commands for each seed where there are none.

        Raises:
            SweepError: If there are.
        """
        of_seeds = [text for text in self.then if NAMES_SEED in text]
        if of_seeds and not self.seeds:
            raise SweepError(f"then: {of_seeds[0]}: is for each seed; give --seeds N")

    def with_seeds(self, seeds: int | None) -> "Plan":
        """Give the plan with another number of seeds.

        Args:
            seeds: The number; None leaves that of the plan.

        Returns:
            The plan.

        Raises:
            SweepError: If there cannot be as many, or the commands after the grid would have other points than they
                are written for.
        """
        if seeds is None:
            return self
        if not 0 <= seeds <= 1000:
            raise SweepError(f"--seeds must be at least 0, and at most 1000, got {seeds}")
        counting = [text for text in self.then if re.search(r"\{\d", text) and NAMES_SEED not in text]
        if counting and seeds != self.seeds:
            raise SweepError(f"--seeds would give other runs to the sweep's command {counting[0]}; leave --seeds out")
        return replace(self, seeds=seeds)

    @cached_property
    def points(self) -> list[Point]:
        """All points, in order.

        Raises:
            SweepError: If nothing varies, two points are the same, or an option cannot vary.
        """
        points = points_of(self.over, self.zipped, self.seeds)
        if self.only:
            strange = sorted({*self.only} - {point.name for point in points})
            if strange:
                raise SweepError(f"only: {strange[0]} is no point of the grid, such as {points[0].name}")
            points = [point for point in points if point.name in self.only]
        self._check_options()
        return points

    def _check_options(self) -> None:
        varied = [*self.over, *self.zipped, *(("seed_everything", "data.seed") if self.seeds else ())]
        for option in varied:
            if option in _RESERVED:
                raise SweepError(f"--{option} cannot vary: {_RESERVED[option]}")
            if varied.count(option) > 1:
                raise SweepError(f"--{option} is set by --seeds; leave it out of what varies, or leave --seeds out")
        typed = {argument.partition("=")[0] for argument in self.fit}
        for option in varied:
            if f"--{option}" in typed:
                by = "--seeds" if self.seeds and option not in (*self.over, *self.zipped) else "the sweep"
                raise SweepError(f"--{option} is given to every run, and varied by {by}; leave one out")
        for option in ("run", "ckpt_path", "checkpoint.dirpath"):
            if f"--{option}" in typed:
                raise SweepError(f"--{option} is not for a sweep: {_RESERVED[option]}; leave it out (--sweep DIR)")

    def arguments(self, point: Point) -> list[str]:
        """Give what stands after ``lit-sphere fit`` in a point's command line, but for its folder.

        Args:
            point: One of :attr:`points`.

        Returns:
            The arguments.
        """
        # A config lies under what is typed, wherever it comes from.
        first = [each for each in point.arguments if each.startswith("--config=")]
        return [*first, *self.fit, *(each for each in point.arguments if each not in first)]


def plan_of(content: Any, where: str) -> Plan:
    """Make a plan of what stands in a file.

    Args:
        content: Out of YAML.
        where: The file, for the messages.

    Returns:
        The plan.

    Raises:
        SweepError: If it has another form.
    """
    if not isinstance(content, dict):
        raise SweepError(f"{where}: is no plan of a sweep; expected {', '.join(_KEYS)}")
    for key in content:
        if key not in (*_KEYS, *_OF_THE_FOLDER):
            raise SweepError(f"{where}: {key} is no part of a plan; there are {', '.join(_KEYS)}")
    fit, seeds = content.get("fit") or [], content.get("seeds") or 0
    if isinstance(fit, str):
        fit = _words(fit, where)
    if not isinstance(seeds, int) or isinstance(seeds, bool) or not 0 <= seeds <= 1000:
        raise SweepError(f"{where}: seeds: must be a whole number of seeds, but is {seeds}")
    axes: list[dict[str, tuple[str, ...]]] = []
    for name in ("over", "zip"):
        section = content.get(name) or {}
        if not isinstance(section, dict):
            raise SweepError(f"{where}: {name}: must be options with their values, e.g. model.elr: [1.0e-4, 1.0e-3]")
        axes.append(
            {
                str(option): read_values(values, f"{where}: {name}: {option}", distinct=name == "over")
                for option, values in section.items()
            }
        )
    texts = {}
    for name in ("fit", "experiments", "then", "only"):
        given = fit if name == "fit" else content.get(name) or []
        if not isinstance(given, list) or not all(isinstance(each, (str, int, float)) for each in given):
            raise SweepError(f"{where}: {name}: must be a list of texts")
        texts[name] = tuple(map(str, given))
    over, zipped = axes
    title, rest = str(content.get("title") or ""), (texts["experiments"], texts["then"], texts["only"])
    return Plan(texts["fit"], over, zipped, seeds, title, *rest)


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Args:
        path: The YAML file.

    Returns:
        The plan.

    Raises:
        SweepError: If it cannot be read, or is none.
    """  # noqa: DOC502
    return plan_of(_load(path), str(path))


def _load(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}: {getattr(error, 'problem', None)}" if mark else ""
        raise SweepError(f"{path}: is no YAML{line}; correct it or take another file") from error
    except OSError as error:
        raise SweepError(f"{path}: cannot be read ({error.strerror})") from error


def _words(text: str, where: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise SweepError(f"{where}: fit: {error} in {text!r}") from error


@dataclass(frozen=True)
class FolderPlan:
    """The plan in a sweep's folder, with what its runs share.

    Attributes:
        plan: The plan.
        threads: Threads of each run: results depend on them in the last bits.
        configs: A digest of the content of each config that the runs were started with, by name.
    """

    plan: Plan
    threads: int
    configs: Mapping[str, str]


def read_folder_plan(folder: Path) -> FolderPlan | None:
    """Read the plan in a sweep's folder.

    Args:
        folder: The folder.

    Returns:
        The plan; None if there is none.

    Raises:
        SweepError: If the file is none.
    """
    path = folder / PLAN_FILE
    if not path.exists():
        return None
    content = _load(path)
    plan = plan_of(content, str(path))
    threads, configs = content.get("threads"), content.get("configs")
    if not isinstance(threads, int) or not isinstance(configs, dict):
        raise SweepError(f"{path}: is no plan of a sweep that has begun; take --sweep with another folder")
    return FolderPlan(plan, threads, configs)


def write_folder_plan(folder: Path, begun: FolderPlan) -> None:
    """Write the plan into the sweep's folder; ``lit-sphere sweep FOLDER/sweep.yaml`` would begin it anew.

    Args:
        folder: The folder.
        begun: What to write.
    """
    plan = begun.plan
    content = {
        "title": plan.title,
        "fit": list(plan.fit),
        "over": {option: list(values) for option, values in plan.over.items()},
        "zip": {option: list(values) for option, values in plan.zipped.items()},
        "seeds": plan.seeds,
        "experiments": list(plan.experiments),
        "then": list(plan.then),
        "only": list(plan.only),
    }
    content = {key: value for key, value in content.items() if value}
    content |= {"threads": begun.threads, "configs": dict(begun.configs)}
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_whole(folder / PLAN_FILE, lambda file: file.write(text.encode()))


def digest(content: Any) -> str:
    """Tell contents of configs apart; comments and layout do not matter.

    Args:
        content: Out of YAML.

    Returns:
        A short text.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def check_goes_on(before: FolderPlan, now: Plan, configs: Mapping[str, str], folder: Path) -> None:
    """Refuse to go on with another sweep than the one in the folder; more points are welcome.

    Args:
        before: What is in the folder.
        now: What is asked for.
        configs: Digests of the configs' contents now.
        folder: The folder, for the message.

    Raises:
        SweepError: Says what differs.
    """
    other = "give --sweep with another folder"
    if before.plan.fit != now.fit:
        one, two = shlex.join(before.plan.fit) or "nothing", shlex.join(now.fit) or "nothing"
        raise SweepError(f"{folder} holds another sweep, whose runs were given {one}, not {two}; {other}")
    for name, text in configs.items():
        if before.configs.get(name, text) != text:
            raise SweepError(f"{folder} holds a sweep that was begun with another content of {name}; {other}")
    names = [set(each.points[0].values) for each in (before.plan, now)]
    if names[0] != names[1]:
        raise SweepError(
            f"{folder} holds another sweep, over {_listed(names[0])} and not over {_listed(names[1])}; {other}"
        )
    mine = {point.name for point in now.points}
    missing = [point.name for point in before.plan.points if point.name not in mine]
    if missing:
        raise SweepError(
            f"{folder} holds {len(missing)} points that are not asked for now, e.g. {missing[0]}: name them as well to "
            f"add new ones, or {other}"
        )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
