"""The classes that go by their short names on the command line: what the packages export."""

import inspect
import os
import re
from importlib import import_module
from pathlib import Path

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn
from torch.optim import Optimizer

import lit_sphere.callbacks
import lit_sphere.data
import lit_sphere.modules
import lit_sphere.networks
import lit_sphere.optim

LINKED = ("num_classes", "in_channels")
"""Options of the model that the data set."""

_ELSEWHERE = {
    "--model.optimizer": "torch.optim",
    "--model.scheduler": "torch.optim.lr_scheduler",
    "--trainer.callbacks": "lightning.pytorch.callbacks",
}
_KINDS = {
    "--model": (lit_sphere.modules, LightningModule),
    "--model.network": (lit_sphere.networks, nn.Module),
    "--model.optimizer": (lit_sphere.optim, Optimizer),
    "--data": (lit_sphere.data, LightningDataModule),
    "--trainer.callbacks": (lit_sphere.callbacks, Callback),
}


def shipped_classes(option: str) -> dict[str, type]:
    """List the shipped classes that an option takes.

    Args:
        option: ``--model``, ``--model.network``, ``--model.optimizer``, ``--data`` or ``--trainer.callbacks``.

    Returns:
        Classes by name, in the order of their package's ``__all__``; none for another option.
    """
    if option not in _KINDS:
        return {}
    package, base = _KINDS[option]
    exported = {name: getattr(package, name) for name in package.__all__}
    return {
        name: each
        for name, each in exported.items()
        if inspect.isclass(each) and issubclass(each, base) and not inspect.isabstract(each)
    }


def class_options() -> set[str]:
    """List the options of the shipped models and data, which are no options of the parser but of their classes.

    Returns:
        Option strings, such as ``--model.width``.
    """
    return {
        f"{option}.{name}"
        for option in ("--model", "--data")
        for each in shipped_classes(option).values()
        for name in option_names(each)
        if name not in LINKED
    }


def option_names(each: type) -> list[str]:
    """List the options of a class, those that it hands on to the class above among them.

    Args:
        each: Any class.

    Returns:
        Names of parameters of its constructor, and of the constructors above that ``**kwargs`` reach.
    """
    names: dict[str, None] = {}
    for owner in each.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = list(inspect.signature(owner).parameters.values())
        names |= {p.name: None for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def classes_before_files(args: list[str]) -> list[str]:
    """Give classes their import paths where a file in this folder has the short name: it would be read as options.

    Args:
        args: A command line.

    Returns:
        The same, renamed where needed.
    """
    found = list(args)
    for i, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        value = value if equals else (*args, "")[i + 1]
        if not os.path.isfile(value):  # no error where a name is too long for one
            continue
        path = _import_path(option.removesuffix("+"), value)
        if path is not None and equals:
            found[i] = f"{option}={path}"
        elif path is not None:
            found[i + 1] = path
    return found


def classes_in_text(text: str) -> str:
    """Do the same in the text of a config.

    Args:
        text: YAML.

    Returns:
        The same, renamed where needed.
    """

    def renamed(match: re.Match[str]) -> str:
        path = _import_path(f"--{match[2]}", match[3]) if Path(match[3]).is_file() else None
        return match[1] + (path or match[3])

    return re.sub(
        r"(?m)((?:^|[{,])[ \t\"']*(model|data)[\"']?:[ \t\"']*)(\w+)(?=[\"']?[ \t]*(?:$|[,}]))", renamed, text
    )


def _import_path(option: str, name: str) -> str | None:
    shipped = shipped_classes(option)
    if name in shipped:
        return f"{shipped[name].__module__}.{name}"
    module = _ELSEWHERE.get(option)
    is_there = module is not None and inspect.isclass(getattr(import_module(module), name, None))
    return f"{module}.{name}" if is_there else None
