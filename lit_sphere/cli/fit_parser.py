"""The command lines of many runs, parsed by the parser of ``fit`` before any of them begins."""

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentError, Namespace

from lit_sphere.cli.base_config import look_ahead
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.rewordings import in_one_line
from lit_sphere.cli.sphere_cli import SphereCLI
from lit_sphere.sweep import Plan


def parse_points(plan: Plan) -> list[Namespace]:
    """Parse the command lines of all points by the parser of ``fit``.

    Args:
        plan: The sweep.

    Returns:
        The configuration of each point.

    Raises:
        CommandLineError: Names the first point that cannot be understood, and why.
    """
    typed = look_ahead(list(plan.fit))
    if typed.wants_help or any(each.partition("=")[0] == "--print_config" for each in plan.fit):
        raise CommandLineError("options of the runs are listed by lit-sphere fit --help, --model.help CLASS, …")
    parser = _FitParser()
    parsed = []
    for point in plan.points:
        wrong = parser.what_is_wrong(plan.arguments(point))
        if wrong is not None:
            of_all = plan.fit and parser.what_is_wrong(list(plan.fit)) == wrong
            raise CommandLineError(wrong if of_all else f"the point {point.name}: {wrong}")
        parsed.append(parser.config["fit"])
    return parsed


class _FitParser(SphereCLI):
    """Parses command lines of ``fit``, and does nothing else."""

    def __init__(self) -> None:
        super().__init__(["fit"])

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
        return None

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        """Nothing is made."""

    def instantiate_classes(self) -> None:
        """Nothing is made."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass
