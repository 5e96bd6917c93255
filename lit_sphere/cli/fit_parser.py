"""The command lines of many runs, parsed by the parser of ``fit`` before any of them begins."""

from collections.abc import Sequence
from typing import Any

import torch
from jsonargparse import ArgumentError, Namespace

from lit_sphere.cli.base_config import look_ahead
from lit_sphere.cli.checkpoints import check_something_to_train
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.rewordings import in_one_line
from lit_sphere.cli.sphere_cli import SphereCLI
from lit_sphere.data import ResidentDataModule
from lit_sphere.sweep import Plan


def parse_points(plan: Plan, with_files: bool = False) -> list[Namespace]:
    """Parse the command lines of all points by the parser of ``fit``, and make each model, data and callbacks once.

    Args:
        plan: The sweep.
        with_files: Whether the files of the data must be on this machine.

    Returns:
        The configuration of each point.

    Raises:
        CommandLineError: Names the first point that cannot be understood or that a class refuses, and why.
    """
    typed = look_ahead(list(plan.fit))
    if typed.wants_help or any(each.partition("=")[0] == "--print_config" for each in plan.fit):
        raise CommandLineError("options of the runs are listed by lit-sphere fit --help, --model.help CLASS, …")
    parser = _FitParser(with_files)
    parsed = []
    for point in plan.points:
        wrong = parser.what_is_wrong(plan.arguments(point))
        if wrong is not None:
            of_all = plan.fit and parser.what_is_wrong(list(plan.fit)) == wrong
            raise CommandLineError(wrong if of_all else f"the point {point.name}: {wrong}")
        parsed.append(parser.config["fit"])
    return parsed


def config_of(arguments: Sequence[str]) -> str:
    """Give the config of a command line, so that ``fit --config`` of it makes the same run.

    Args:
        arguments: After ``fit``.

    Returns:
        YAML, without options that are not set.

    Raises:
        CommandLineError: If it cannot be understood.
    """
    parser = _FitParser(with_files=False)
    wrong = parser.what_is_wrong(arguments)
    if wrong is not None:
        raise CommandLineError(wrong)
    return parser.text


class _FitParser(SphereCLI):
    """Parses command lines of ``fit``, and does nothing else."""

    def __init__(self, with_files: bool) -> None:
        super().__init__(["fit"])
        self._made, self._with_files = set[str](), with_files

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Not while it is made."""
        self.config = Namespace({"subcommand": "fit"})  # type: ignore[no-untyped-call]

    def what_is_wrong(self, args: Sequence[str]) -> str | None:
        """Parse a command line.

        Args:
            args: After ``fit``.

        Returns:
            One line if it cannot be understood.
        """
        try:
            super().parse_arguments(self.parser, ["fit", *args])
        except CommandLineError as error:
            return str(error)
        except (ArgumentError, ValueError) as error:
            return in_one_line(str(error))
        return self._what_is_refused()

    @property
    def text(self) -> str:
        """The configuration that was parsed last, as YAML; null stands only where it is no default."""
        parser, config = self._parser("fit"), self.config["fit"].clone()
        config.pop("config", None)
        short: str = parser.dump(config, skip_none=True)
        read = parser.parse_string(short)
        read.pop("config", None)
        whole: str = parser.dump(config)
        return short if parser.dump(read) == whole else whole

    def _what_is_refused(self) -> str | None:
        """Make what the configuration names, but for trainer and loggers; points that differ in seeds share it."""
        config = self.config["fit"]
        part = Namespace(**{name: config[name] for name in ("model", "data")})  # type: ignore[no-untyped-call]
        part.trainer = Namespace(callbacks=config.trainer.callbacks)  # type: ignore[no-untyped-call]
        try:
            check_something_to_train(None, config)
            if repr(part) in self._made:
                return None
            with torch.random.fork_rng(devices=[]):
                data = self._parser("fit").instantiate_classes(part).data
            if self._with_files and isinstance(data, ResidentDataModule):
                data.check_files()
        except (CommandLineError, FileNotFoundError) as error:
            return str(error)
        except Exception as error:  # of a class of the user's: its run tells, and the others run
            if "Does not validate against any" in str(error):
                return in_one_line(str(error))
        self._made.add(repr(part))
        return None

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        """Nothing is made."""

    def instantiate_classes(self) -> None:
        """Nothing is made."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass
