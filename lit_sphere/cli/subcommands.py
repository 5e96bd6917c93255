"""The subcommands, and what help says of them; imports nothing, so that ``lit-sphere --help`` answers at once."""

from typing import NamedTuple


class Subcommand(NamedTuple):
    """What help says of a subcommand.

    Attributes:
        summary: Its line in ``lit-sphere --help``.
        description: The head of its own help.
    """

    summary: str
    description: str


SUBCOMMANDS = {
    "fit": Subcommand(
        "train a network, on the sphere (--model.elr) or in the whole space (--model.optimizer)",
        "Train a network and leave config.yaml, metrics.csv, checkpoints, curves.png and a W&B run in one folder. "
        "Options of the model, the data and the callbacks are listed by --model.help CLASS, --data.help CLASS and "
        "--trainer.callbacks.help CLASS; classes go by their short names.",
    ),
    "validate": Subcommand(
        "evaluate a checkpoint on the validation images",
        "Evaluate a checkpoint (--ckpt_path) on the validation images, with its run's configuration.",
    ),
    "test": Subcommand(
        "evaluate a checkpoint on the test images",
        "Evaluate a checkpoint (--ckpt_path) on the test images, with its run's configuration.",
    ),
    "interpolate": Subcommand(
        "loss and error between two checkpoints, and the barrier",
        "Measure loss and error on the train and test images along the path between two checkpoints of one network, "
        "and leave interpolation.csv and interpolation.png in a folder. Model and data are those of A's run (the "
        "config.yaml in its folder, or else the checkpoint's hyperparameters), unless --config, --model… or --data… "
        "say otherwise. The scale-invariant weights are rescaled to the norm of the end points at every point. "
        "Barrier: max over the path of (value − chord between the end points), at least 0.",
    ),
    "toy": Subcommand(
        "the theory's toy systems: regimes on the sphere, periods in the plane",
        "Train F = Σ α x²/(x² + y²) on the sphere at fixed effective learning rates, and leave toy.png and toy.csv in "
        "a folder: the loss at a few ELRs, the ELRs of the single groups with the levels that the theory predicts, and "
        "a map of regimes and settled losses over ELR. With --weight-decay instead: x²/(x² + y²) in the plane under "
        "SGD with weight decay, and its periods.",
    ),
    "dashboard": Subcommand(
        "a W&B workspace that compares the runs of a project",
        "Save a W&B workspace that compares the runs of a project, grouped by effective learning rate: sharpness "
        "against loss over the runs, regimes, loss, error, sharpness, effective learning rates and step sizes of each "
        "group, barriers; with --report, a W&B report as well. Needs the extra lit-sphere[dashboard], and a key "
        "(`wandb login`).",
    ),
}
