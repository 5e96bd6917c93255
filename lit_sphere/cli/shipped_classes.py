"""The classes that go by their short names on the command line: what the packages export."""

import inspect

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn

import lit_sphere.callbacks
import lit_sphere.data
import lit_sphere.modules
import lit_sphere.networks

_KINDS = {
    "--model": (lit_sphere.modules, LightningModule),
    "--model.network": (lit_sphere.networks, nn.Module),
    "--data": (lit_sphere.data, LightningDataModule),
    "--trainer.callbacks": (lit_sphere.callbacks, Callback),
}


def shipped_classes(option: str) -> dict[str, type]:
    """List the shipped classes that an option takes.

    Args:
        option: ``--model``, ``--model.network``, ``--data`` or ``--trainer.callbacks``.

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
