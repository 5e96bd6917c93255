"""What the process imports that is forked for each run of a sweep."""

from importlib import import_module

from lit_sphere.cli.quick_imports import quick_imports

with quick_imports():
    for _name in (
        "lit_sphere.cli.sphere_cli",
        "lit_sphere.cli.values_given",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "sklearn.datasets",
        "wandb.apis.public",
        "wandb.sdk.launch",
    ):
        import_module(_name)
