"""What W&B is asked before anything is sent: names that it takes, and the key."""

import wandb

from lit_sphere.cli.errors import CommandLineError
from lit_sphere.report import in_short

PATIENCE = 10
"""Seconds for an answer; W&B's own, too, when it verifies a key."""

LONGEST_NAME = 128
_UNANSWERED = ("did not respond in time", "timed out")  # of the same type as a refusal


def check_name(what: str, name: str, otherwise: str = "") -> None:
    """Refuse what W&B refuses, the server or the library.

    Args:
        what: The option, or the variable of the environment.
        name: Its value.
        otherwise: What else helps, after "give it a name".

    Raises:
        CommandLineError: If W&B takes no such name.
    """
    if not name.strip():
        raise CommandLineError(f"{what} is empty; give it a name{otherwise}")
    if len(name) > LONGEST_NAME:
        raise CommandLineError(f"{what} {name[:20]}… is {len(name)} characters long; W&B takes {LONGEST_NAME}")
    refused = sorted(set(name) & set("/\\#?%:"))
    if refused:
        raise CommandLineError(f"{what} {name} holds {' '.join(refused)}, which W&B refuses; choose another name")


def verify_key(asked: str, otherwise: str) -> None:
    """Ask the server whether it takes the user's key.

    Args:
        asked: What needs it, an option such as ``--wandb online``.
        otherwise: An option that does without.

    Raises:
        CommandLineError: If there is no key, or the server refuses it.
        TimeoutError: If the server does not answer.
    """
    try:
        # The mode and the server of now, whatever this process asked W&B for before.
        settings = wandb.Settings(mode="online", console="off", silent=True)
        wandb.termsetup(settings, None)
        wandb.setup(settings)
        has_key = wandb.login(prompt=False, verify=True)
    except Exception as error:
        if is_unanswered(error):
            raise TimeoutError(f"W&B did not answer within {PATIENCE} s") from error
        raise CommandLineError(
            f"{asked}: {in_short(error)}; give another key by `wandb login --relogin` or WANDB_API_KEY, or {otherwise}"
        ) from error
    if not has_key:
        raise CommandLineError(
            f"{asked}: there is no API key; give one by `wandb login` or WANDB_API_KEY, or {otherwise}"
        )


def is_unanswered(error: Exception) -> bool:
    """Whether an error says that the server does not answer."""
    return isinstance(error, TimeoutError) or any(words in str(error).lower() for words in _UNANSWERED)
