"""``lit-sphere dashboard``: a W&B workspace, and a report, that compare the runs of a project."""

import json
import os
import re
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.subcommand_parser import make_subcommand_parser
from lit_sphere.cli.suggestions import option_strings, suggesting

_LONGEST_TITLE = 128
_SYNC = "wandb sync runs/*/wandb/offline-run-*"
_EXAMPLES = f"""examples:
  lit-sphere dashboard --entity me                      workspace of the project lit-sphere
  lit-sphere dashboard --entity team --project digits --report
  lit-sphere dashboard --entity me --dry-run            what would be saved, as JSON; no account, no network

Runs in offline mode are sent before or after it: {_SYNC}"""


def make_parser() -> ArgumentParser:
    """Make the parser of the subcommand.

    Returns:
        The parser.
    """
    parser = make_subcommand_parser("dashboard", "--entity NAME [options]", _EXAMPLES)
    add = parser.add_argument
    add("--entity", type=str | None, default=None, help="W&B user or team. Default: WANDB_ENTITY.")
    add("--project", type=str, default="lit-sphere", help="W&B project.")
    add("--name", type=str, default="Effective learning rates", help="Name of the workspace, title of the report.")
    add("--report", action="store_true", help="Save a report with the same panels, too.")
    add("--dry-run", action="store_true", help="Print the JSON that would be saved; needs no account and no network.")
    return parser


def run_dashboard(args: list[str]) -> None:
    """Run the subcommand.

    Args:
        args: Command line after ``dashboard``.

    Raises:
        CommandLineError: If W&B takes no such names, the extra is not installed, or there is no key.
        TimeoutError: If W&B does not answer.
        ValueError: If W&B does not take the workspace.
    """  # noqa: DOC501, DOC502
    parser = make_parser()
    with suggesting(lambda: option_strings(parser)):
        config = parser.parse_args(args)
    entity = _checked_entity(config)
    try:
        from lit_sphere.cli.dashboard_panels import make_report, make_workspace
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("wandb_workspaces"):
            raise
        raise CommandLineError(
            "the dashboard needs the package wandb-workspaces: pip install 'lit-sphere[dashboard]'"
        ) from error
    made = {"workspace": make_workspace(entity, config.project, config.name)}
    if config.report:
        made["report"] = make_report(entity, config.project, config.name)
    if config.dry_run:
        print(json.dumps({kind: as_json(each) for kind, each in made.items()}, indent=2, ensure_ascii=False))
        return
    _log_in()
    runs = _count_runs(entity, config.project)
    for kind, each in made.items():
        print(f"{kind}: {_asked(f'the {kind}', each.save).url}")
    if not runs:
        print(f"{entity}/{config.project} holds no runs yet; they appear there once they are sent: {_SYNC}")


def as_json(made: Any) -> Any:
    """Give what W&B is sent.

    Args:
        made: A workspace or a report.

    Returns:
        Plain data.
    """
    return json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def _checked_entity(config: Namespace) -> str:
    from lit_sphere.cli.wandb_account import check_name

    entity: str = config.entity if config.entity is not None else os.environ.get("WANDB_ENTITY", "")
    if config.entity is None and not entity:
        raise CommandLineError("dashboard needs --entity, your user or team at W&B (or WANDB_ENTITY)")
    what = "--entity" if config.entity is not None else "WANDB_ENTITY"
    check_name(what, entity)
    if not re.fullmatch(r"[\w.-]+", entity, re.ASCII):
        raise CommandLineError(
            f"{what} {entity!r} is no user or team: W&B's are of letters, digits and - _ .; it stands in the "
            "address of your projects, wandb.ai/ENTITY"
        )
    check_name("--project", config.project)
    if not config.name.strip() or len(config.name) > _LONGEST_TITLE:
        raise CommandLineError(f"--name must have 1 to {_LONGEST_TITLE} characters, got {len(config.name)}")
    return entity


def _log_in() -> None:
    from lit_sphere.cli.wandb_account import verify_key

    try:
        verify_key("dashboard", "--dry-run, which needs none")
    except TimeoutError as error:
        raise TimeoutError(f"dashboard: {error}; try again later, or see by --dry-run what it would save") from error


def _count_runs(entity: str, project: str) -> int:
    import wandb

    name = f"{entity}/{project}"
    count: int = _asked(name, lambda: len(wandb.Api().runs(name, per_page=1)))
    return count


def _asked(what: str, ask: Callable[[], Any]) -> Any:
    """Ask the server; what it refuses is one line."""
    from lit_sphere.report import in_short

    try:
        return ask()
    except Exception as error:
        if "Could not find project" in str(error):
            raise ValueError(
                f"dashboard: W&B knows no project {what}, or not for your key; the first run that is sent makes it: "
                f"{_SYNC}"
            ) from error
        raise ValueError(f"dashboard: W&B refuses {what}: {in_short(error)}") from error
