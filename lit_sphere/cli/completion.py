"""Shell completion of subcommands and options."""

import argparse
from collections.abc import Iterable, Mapping

import shtab
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lit_sphere.cli import borders, dashboard, interpolate, report, reproduce, sweep, toy
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.shipped_classes import class_options, shipped_classes
from lit_sphere.cli.sphere_cli import SphereCLI
from lit_sphere.cli.suggestions import option_strings

SHELLS = ("bash", "zsh", "tcsh")


class _Found(Exception):
    def __init__(self, options: dict[str, list[str]]) -> None:
        self.options = options


class _OptionsOnly(SphereCLI):
    """Stops once the parsers are made; LightningCLI makes and uses them in one go."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        raise _Found(self.option_names())


def print_completion(shell: str) -> None:
    """Print the completion script of ``lit-sphere``.

    Args:
        shell: One of :data:`SHELLS`.

    Raises:
        CommandLineError: If it is another one.
    """
    if shell not in SHELLS:
        raise CommandLineError(f"--print_shtab {shell}: must be {', '.join(SHELLS[:-1])} or {SHELLS[-1]}")
    try:
        _OptionsOnly([])
    except _Found as found:
        fit = found.options["fit"]  # all of them go to the runs of sweeps, searches and reproductions
        makers = {"sweep": sweep, "borders": borders, "reproduce": reproduce}
        grids = {name: module.make_parser() for name, module in makers.items()}
        of_grids = {name: [*option_strings(parser), *fit] for name, parser in grids.items()}
        print(completion_script(shell, {**found.options, **of_grids, **_other_options()}))


def _other_options() -> dict[str, list[str]]:
    """Options of the subcommands that are not Lightning's."""
    modules = {"interpolate": interpolate, "toy": toy, "report": report, "dashboard": dashboard}
    return {name: option_strings(module.make_parser()) for name, module in modules.items()}


def completion_script(shell: str, options: Mapping[str, Iterable[str]]) -> str:
    """Write a completion script.

    jsonargparse's own script follows all classes that a Trainer could take, and does not come to an end.

    Args:
        shell: bash, zsh or tcsh.
        options: Options of each subcommand.

    Returns:
        The script.
    """
    parser = argparse.ArgumentParser("lit-sphere")
    commands = parser.add_subparsers()
    for name, strings in options.items():
        command = commands.add_parser(name, add_help=False, help=name)  # without help it is left out
        for option in sorted({*strings, *(class_options() if "--model" in strings else ())}):
            names = shipped_classes(option.removesuffix("+"))
            command.add_argument(option, choices=list(names) or None)
        if name == "interpolate":
            for checkpoint in ("start", "end"):
                command.add_argument(checkpoint).complete = shtab.FILE  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell)
    return script
