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
    "sweep": Subcommand(
        "grids of runs: options of fit that vary, several runs at once",
        "Run fit for each point of a grid, several at once, and leave a folder with the plan (sweep.yaml), a table of "
        "states (states.csv) and the folder of each run. The same command again goes on: finished runs are skipped, "
        "others go on from their checkpoints, new values are added.",
    ),
    "borders": Subcommand(
        "the ELRs at which convergence ends and divergence begins, by bisection",
        "Find the effective learning rates at which convergence ends, and at which divergence begins: runs of fit, "
        "chosen by bisection and stopped once their regime is settled. Leaves a folder with the answer and its "
        "evidence (borders.json), a picture (borders.png), what to train with (advised.yaml), and the runs as of "
        "lit-sphere sweep.",
    ),
    "interpolate": Subcommand(
        "loss and error between two checkpoints, and the barrier",
        "Measure loss and error on the train and test images along the path between two checkpoints of one network, "
        "and leave interpolation.csv, .json and .png in a folder. Model and data are those of A's run (the "
        "config.yaml in its folder, or else the checkpoint's hyperparameters), unless --config, --model… or --data… "
        "say otherwise. The scale-invariant weights are rescaled to the norm of the end points at every point. "
        "Barrier: max over the path of (value − chord between the end points), at least 0.",
    ),
    "toy": Subcommand(
        "the theory's toy systems: regimes on the sphere, periods in the plane",
        "Train F = Σ α x²/(x² + y²) on the sphere at fixed effective learning rates, and leave toy.png, toy.csv and "
        "toy_elrs.csv in a folder: the loss at a few ELRs, the ELRs of the single groups with the levels that the "
        "theory predicts, and a map of regimes and settled losses over ELR. With --weight-decay instead: x²/(x² + y²) "
        "in the plane under SGD with weight decay, and its periods.",
    ),
    "report": Subcommand(
        "compare runs: one page with the answer in words, figures and a table",
        "Read runs, sweep folders or W&B offline folders, and leave a page that opens without a network: what was "
        "compared, the borders of the regimes and the best error in words, figures that answer to the mouse, a "
        "sortable table, and the commands that made the runs. The same figures as PDF and SVG and their numbers as "
        "CSV lie beside it. Needs no GPU and no network.",
    ),
    "dashboard": Subcommand(
        "a W&B workspace that compares the runs of a project",
        "Save a W&B workspace that compares the runs of a project, grouped by effective learning rate: sharpness "
        "against loss over the runs, regimes, loss, error, sharpness, effective learning rates and step sizes of each "
        "group, barriers; with --report, a W&B report as well. Needs the extra lit-sphere[dashboard], and a key "
        "(`wandb login`).",
    ),
    "reproduce": Subcommand(
        "an experiment of the papers: its runs, its page, and whether it shows what it must",
        "Make the runs of an experiment at laptop size, on digits, and leave a page with its figures and whether they "
        "show what they must. All other options go to every run, see lit-sphere fit --help.",
    ),
}
