"""The LightningModule that trains any network on the sphere, or in the whole space for comparison."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler

from lit_sphere.conversion import Conversion, apply_plan, make_scale_invariant
from lit_sphere.data.order import training_bounds
from lit_sphere.metrics import LossAndErrorByLabel, MeanLossAndError
from lit_sphere.modules.optimizers import check_optimizer, check_same_optimizer
from lit_sphere.modules.options import (
    Convert,
    Loss,
    OptimizerCallable,
    SchedulerCallable,
    Spheres,
    check_forward,
    check_same_scheduler,
    check_sphere_kept,
    check_training_options,
    class_name,
    optimizer_options,
    scale_schedule,
    unsaved,
)
from lit_sphere.modules.spheres import find_spheres
from lit_sphere.networks.frozen_head import redraw_head
from lit_sphere.optim import Granularity, SphereSGD
from lit_sphere.optim.granularity import granularity_of


class SphereModule(LightningModule):
    """Classification by any network, its scale-invariant parameters on the sphere.

    With ``elr`` set, :class:`~lit_sphere.optim.SphereSGD` trains the scale-invariant parameters, which
    :func:`~lit_sphere.groups.find_groups` finds, on one joint sphere with a fixed effective learning rate
    (TR eq. (2)); otherwise ``optimizer`` trains all parameters in the whole space.

    Logged once an epoch: ``train/loss`` and ``train/error`` (means over the samples of its steps, as the weights move),
    ``val/…`` and ``test/…`` in eval mode. Errors are fractions in [0, 1]. With label noise (``--data.label_noise``)
    also ``train/loss_clean``, ``train/error_clean``, ``train/loss_corrupted`` and ``train/error_corrupted``: of samples
    whose labels noise left alone or made wrong, against the labels trained on.

    Args:
        network: Maps a batch of inputs to logits (N, num_classes).
        elr: Effective learning rate η̃ > 0 of the sphere (dimensionless). None: train in the whole space.
        granularity: ``joint``: one sphere for all scale-invariant parameters (the papers' setting). ``tensor``: one
            for each scale-invariant tensor, or for those that are scale-invariant jointly; ``filter``: one for each
            filter, where filters are scale-invariant. All have the same ``elr``.
        lr: Learning rate of plain SGD for trainable parameters that are not scale-invariant. None: such
            parameters are refused when ``elr`` is set.
        optimizer: Optimizer of the whole space when ``elr`` is not set, e.g. ``torch.optim.SGD`` with
            ``lr`` and ``weight_decay``. With ``elr`` an optimizer of the sphere in place of SphereSGD:
            :class:`~lit_sphere.optim.RandomWalk` or :class:`~lit_sphere.optim.GradientAscent`.
        scheduler: Learning rate schedule of ``optimizer``, stepped once an epoch, e.g.
            ``torch.optim.lr_scheduler.CosineAnnealingLR`` with ``T_max``.
        loss: ``cross_entropy``, or ``mse``: mean over samples and classes of (output − one-hot)² (KT).
        num_classes: Classes.
        input_shape: Channels, height and width of one input, for the search of scale-invariant groups. None: those
            of the data module's images, or else (3, 32, 32).
        compile: Compile the network in place with ``torch.compile`` (needs a C++ compiler on a CPU).
        convert: Make the network scale-invariant first, as
            :func:`~lit_sphere.conversion.make_scale_invariant` does: ``weights`` (or true) gives a fixed length to
            the weight matrices whose scale nothing undoes, ``activations`` normalises what comes out of them. The
            last linear map is frozen; gains and biases are too, but with ``elr`` and ``lr`` they are trained by
            ``lr``. What was done is said, and saved with checkpoints.
        head_norm: Frobenius norm of the last linear map that ``convert`` freezes.
        spheres: Old name of ``granularity``, and ``group`` of ``tensor``.
        head_seed: Seed >= 0 of the last linear map, which is then drawn anew from it alone, so that the initialisation
            (``seed_everything``) and the head can be changed one by one. null: it is drawn with the others.

    Raises:
        ValueError: If both ``elr`` and an ``optimizer`` of the whole space are given, or ``elr`` and ``scheduler``, if
            ``elr`` or ``lr`` is not positive and finite, ``loss``, ``granularity`` or ``convert`` unknown, or
            granularity given under both names, or ``head_seed`` negative or of a network without a linear map.

    Attributes:
        conversion: What ``convert`` has done; None before ``setup``, and where a checkpoint has told it.
    """

    def __init__(
        self,
        network: nn.Module,
        elr: float | None = None,
        granularity: Granularity = "joint",
        lr: float | None = None,
        optimizer: OptimizerCallable | None = None,
        scheduler: SchedulerCallable | None = None,
        loss: Loss = "cross_entropy",
        num_classes: int = 10,
        input_shape: tuple[int, int, int] | None = None,
        compile: bool = False,
        convert: Convert = False,
        head_norm: float = 10.0,
        spheres: Spheres | None = None,
        head_seed: int | None = None,
    ) -> None:
        super().__init__()
        granularity = granularity_of(type(self).__name__, granularity, "joint", spheres=spheres)
        check_training_options(elr, lr, granularity, optimizer, scheduler, loss, convert)
        if type(self) is SphereModule:
            self.save_hyperparameters(logger=False, ignore=["spheres", *unsaved("network", "optimizer", "scheduler")])
            self.hparams["granularity"] = granularity
        self.automatic_optimization = False
        if head_seed is not None:
            redraw_head(network, head_seed)
        # Faster convolutions on CPUs and tensor cores; images come in this layout too.
        self.network = network.to(memory_format=torch.channels_last)
        self.elr, self.lr, self.granularity = elr, lr, granularity
        self.loss, self.num_classes = loss, num_classes
        self._uses_shape_of_data, self._has_shape_of_data = input_shape is None, False
        self.example_input_array = torch.zeros(2, *(input_shape or (3, 32, 32)))
        self._optimizer, self._scheduler = optimizer, scheduler
        self._scheduled = self._scheduled_before = 0  # epochs that the schedule was stepped for; in the checkpoint
        self._compile = compile
        self._convert, self._head_norm = convert, head_norm
        self.conversion: Conversion | None = None
        self._plan: dict[str, str] | None = None  # of the conversion; in the checkpoint
        self._saved_spheres: dict[str, Any] = {}  # of the run that is resumed
        self._checked = False
        self._sphere_names: list[list[str]] = []  # parameters of each sphere
        self._changed: dict[str, tuple[Any, Any]] = {}
        self._metrics_epoch = -1  # Lightning does not always end an epoch whose last batch was saved
        self.train_metrics = MeanLossAndError()
        self.label_metrics = LossAndErrorByLabel()  # of training with label noise
        self.val_metrics = MeanLossAndError()
        self.test_metrics = MeanLossAndError()

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (N, …) to logits (N, num_classes)."""
        logits: Tensor = self.network(x)
        return logits

    def setup(self, stage: str) -> None:
        """Convert the network if requested, find what is scale-invariant for the sphere, and compile.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ValueError: If neither ``elr`` nor ``optimizer`` is given, if trainable parameters are not
                scale-invariant and ``lr`` is not given, if ``granularity`` is ``filter`` and filters are not
                scale-invariant, if the strategy shards parameters, if ``optimizer`` cannot be stepped by hand, or if
                ``scheduler`` waits for a metric or cannot be stepped.
        """
        if stage != "fit":
            self.take_shape(getattr(self.trainer, "datamodule", None))
            if self.trainer.ckpt_path is None:  # else the checkpoint says how
                self._make_scale_invariant()
            return
        if self.elr is not None and isinstance(self.trainer.strategy, FSDPStrategy):
            raise ValueError("FSDP1 would normalise each shard by itself; use --trainer.strategy ddp")
        if not self._checked:
            self.check_trainable(getattr(self.trainer, "datamodule", None), self.trainer.max_epochs)
        self._checked = False  # another fit may train another network
        if self._compile:
            self.network.compile()

    def check_trainable(self, data: Any = None, epochs: int | None = None) -> None:
        """Find what is scale-invariant, and refuse what no fit can train; the next ``setup`` does not do it again.

        Args:
            data: Data module, whose images' shape is taken.
            epochs: For which a schedule is tried; None or below 0 tries 100.

        Raises:
            ValueError: As ``setup``, for an optimizer or a scheduler that fails at its first step, and for a network
                that does not take the images.
        """
        self.take_shape(data)
        self._make_scale_invariant()
        if self.elr is not None:
            assert isinstance(self.example_input_array, Tensor)
            known = self.conversion.groups if self.conversion is not None else ()
            if self._saved_spheres.get("of") == self._trained():
                self._sphere_names = self._saved_spheres["names"]
            else:
                self._sphere_names = find_spheres(
                    self.network, self.example_input_array, self.granularity, self.lr, known
                )
        elif self._optimizer is None:
            raise ValueError(
                "neither elr nor optimizer is given: --model.elr trains on the sphere, --model.optimizer SGD "
                "--model.optimizer.lr … in the whole space"
            )
        else:
            unused = {"granularity": self.granularity != "joint", "lr": self.lr is not None}
            for name in (name for name, is_given in unused.items() if is_given):
                rank_zero_warn(f"{name} (--model.{name}) is of training on the sphere: without elr it changes nothing")
            if self._has_shape_of_data:
                assert isinstance(self.example_input_array, Tensor)
                check_forward(self.network, self.example_input_array)
            epochs = 100 if epochs is None or epochs < 0 else epochs
            check_optimizer(self._optimizer, self._scheduler, epochs, class_name(self.hparams.get("scheduler")) or "")
        self._checked = True

    def take_shape(self, data: Any) -> None:
        """Take the shape of the images for the search of groups, unless ``input_shape`` is given.

        Args:
            data: Data module; one that does not know the shape changes nothing.
        """
        if self._uses_shape_of_data and hasattr(data, "in_channels") and hasattr(data, "image_size"):
            self._has_shape_of_data = True
            self.example_input_array = torch.zeros(2, data.in_channels, data.image_size, data.image_size)

    def _make_scale_invariant(self) -> None:
        if not self._convert or self._plan is not None:
            return
        assert isinstance(self.example_input_array, Tensor)
        self.conversion = make_scale_invariant(
            self.network,
            self.example_input_array,
            "weights" if self._convert is True else self._convert,
            free="freeze" if self.elr is None or self.lr is None else "train",
            head_norm=self._head_norm,
        )
        self._plan = self.conversion.plan
        rank_zero_info(str(self.conversion))

    def restore_structure(self, checkpoint: Mapping[str, Any]) -> None:
        """Convert the network as that of a checkpoint was, so that its weights can be loaded; done by loading, too.

        A run that is resumed has its spheres from there as well, and need not search for them.

        Args:
            checkpoint: Its content. Nothing is converted without ``convert``, or where the network is already.

        Raises:
            ValueError: If the checkpoint's network is another.
        """  # noqa: DOC502
        plan = checkpoint.get("conversion")
        if self._convert and self._plan is None and isinstance(plan, dict):
            apply_plan(self.network, plan)
            self._plan = dict(plan)
        spheres: Any = checkpoint.get("spheres")
        if isinstance(spheres, dict) and isinstance(spheres.get("names"), list):
            known = dict(self.network.named_parameters())
            fit = all(isinstance(each, list) and set(known).issuperset(each) for each in spheres["names"])
            self._saved_spheres = spheres if fit else {}

    def _trained(self) -> list[Any]:
        """What spheres depend on: how they are shared out, and what is trained."""
        trained = [[name, *p.shape] for name, p in self.network.named_parameters() if p.requires_grad]
        return [self.granularity, self.lr is None, trained]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; says where a strategy of forked processes brings home those of a converted network.

        Args:
            state_dict: As for any module.
            strict: As for any module.
            assign: As for any module.

        Returns:
            Missing and unexpected keys.
        """
        loaded = super().load_state_dict(state_dict, strict, assign)
        if self._convert and self._plan is None and loaded.unexpected_keys:
            rank_zero_warn(
                "the network was converted in other processes and not here, so that its weights do not come back: call "
                "check_trainable(datamodule) before fit, or take them from a checkpoint"
            )
        return loaded

    def configure_optimizers(self) -> Any:
        """Make one optimizer: a sphere and, with ``lr``, plain SGD for the rest; or the one given.

        Returns:
            The optimizer; with a schedule, a list of it and a list of the scheduler.

        Raises:
            RuntimeError: If ``setup("fit")`` has not been called.
        """
        trainable = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        if self.elr is None:
            assert self._optimizer is not None
            optimizer = self._optimizer(trainable.values())
            if self._scheduler is None:
                return optimizer
            self._scheduled, scheduler = 0, self._scheduler(optimizer)
            return [optimizer], [scheduler]
        if not self._sphere_names:
            raise RuntimeError("configure_optimizers was called before setup('fit'), which finds the sphere")
        granularity = "filter" if self.granularity == "filter" else "joint"
        groups: list[dict[str, Any]] = [
            {"params": [trainable.pop(name) for name in names], "granularity": granularity}
            for names in self._sphere_names
        ]
        if trainable:
            groups.append({"params": list(trainable.values()), "elr": None, "lr": self.lr})
        if self._optimizer is None:
            return SphereSGD(groups, elr=self.elr)
        return self._optimizer([{"elr": self.elr, **group} for group in groups])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Take one step of manual optimisation.

        Args:
            batch: Inputs (N, …) and labels (N,).
            batch_idx: Index in the epoch.

        Returns:
            ``loss`` and ``error`` of the batch, detached, for callbacks.
        """
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.zero_grad()
        if self._metrics_epoch != self.current_epoch:
            self._metrics_epoch = self.current_epoch
            self.train_metrics.reset()
            self.label_metrics.reset()
        means = self._backward(batch, batch_idx)
        optimizer.step()
        self.train_metrics.update(**means, samples=len(batch[1]))
        return means

    def _backward(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Compute the gradient of the batch's mean loss, one chunk after the other; give loss and error."""
        images, labels = batch
        data = getattr(self.trainer, "datamodule", None)
        corrupted_in = getattr(data, "corrupted_in", None)
        corrupted = None if corrupted_in is None else corrupted_in(batch_idx)
        bounds = training_bounds(len(labels), getattr(data, "chunk_size", None) or len(labels))
        parts = []
        for start, stop in bounds:
            logits = self(images[start:stop])
            loss, share = self.criterion(logits, labels[start:stop]), (stop - start) / len(labels)
            self.manual_backward(loss if len(bounds) == 1 else loss * share)
            if corrupted is not None:
                self._update_by_label(logits.detach(), labels[start:stop], corrupted[start:stop])
            parts.append((share, loss.detach(), _error(logits.detach(), labels[start:stop])))
        if len(parts) == 1:
            return dict(zip(("loss", "error"), parts[0][1:], strict=True))
        return {
            "loss": torch.stack([share * loss for share, loss, _ in parts]).sum(),
            "error": torch.stack([share * error for share, _, error in parts]).sum(),
        }

    def _update_by_label(self, logits: Tensor, labels: Tensor, corrupted: Tensor) -> None:
        if self.loss == "cross_entropy":
            losses = F.cross_entropy(logits, labels, reduction="none")
        else:
            losses = (logits - F.one_hot(labels, self.num_classes)).square().mean(1)
        self.label_metrics.update(losses, logits.argmax(1) != labels, corrupted)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to ``val/loss`` and ``val/error``."""
        self._evaluate(self.val_metrics, batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to ``test/loss`` and ``test/error``."""
        self._evaluate(self.test_metrics, batch)

    def _evaluate(self, metrics: MeanLossAndError, batch: tuple[Tensor, Tensor]) -> None:
        logits, labels = self(batch[0]), batch[1]
        metrics.update(self.criterion(logits, labels), _error(logits, labels), len(labels))

    def criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Give the loss of a batch; callbacks that evaluate the network elsewhere look for it under this name.

        Args:
            logits: Outputs of the network, shape (N, num_classes).
            labels: Classes, shape (N,).

        Returns:
            The mean loss over the batch, a scalar.
        """
        if self.loss == "cross_entropy":
            return F.cross_entropy(logits, labels)
        return F.mse_loss(logits, F.one_hot(labels, self.num_classes).to(logits.dtype))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Catch up with the schedule: an epoch whose last batch was the last thing saved is not ended again."""
        self._schedule(self.current_epoch)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means, and step the schedule."""
        self._log("train", self.train_metrics)
        self._log("train", self.label_metrics)  # nothing without label noise
        self._schedule(self.current_epoch + 1)

    def _schedule(self, epoch: int) -> None:
        if self._scheduler is None or self._scheduled >= epoch:
            return
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, LRScheduler)
        with warnings.catch_warnings():
            # In a resumed run torch has not seen the optimizer's steps.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            while self._scheduled < epoch:
                scheduler.step()
                self._scheduled += 1

    def on_validation_epoch_end(self) -> None:
        """Log loss and error of the validation images."""
        self._log("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log loss and error of the test images."""
        self._log("test", self.test_metrics)

    def _log(self, stage: str, metrics: MeanLossAndError | LossAndErrorByLabel) -> None:
        # torchmetrics has reduced over the ranks: to average equal values changes nothing but Lightning's mind.
        # The batch size is a weight in Lightning's mean of this one value, and would cost a rounding.
        values = {f"{stage}/{name}": value for name, value in metrics.compute().items()}
        self.log_dict(values, sync_dist=True, batch_size=1)
        metrics.reset()

    def on_validation_start(self) -> None:
        """Give all ranks rank 0's batch norm statistics, which the checkpoints hold."""
        if dist.is_available() and dist.is_initialized():
            for buffer in self.network.buffers():
                dist.broadcast(buffer, src=0)

    on_test_start = on_validation_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the running means of an unfinished epoch (rank 0's), and what the conversion has done."""
        if self._plan is not None:
            checkpoint["conversion"] = self._plan
        if self.elr is not None:
            checkpoint["spheres"] = {"of": self._trained(), "names": self._sphere_names}
        checkpoint["scheduled_epochs"] = self._scheduled
        checkpoint["train_metrics"] = {"epoch": self._metrics_epoch, **self.train_metrics.state()}
        checkpoint["label_metrics"] = self.label_metrics.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Convert as the checkpoint says, restore the running means, and note which options differ from its own."""
        self.restore_structure(checkpoint)
        if "train_metrics" in checkpoint:
            self.train_metrics.load_state(checkpoint["train_metrics"])
            self.label_metrics.load_state(checkpoint.get("label_metrics"))
            self._metrics_epoch = checkpoint["train_metrics"]["epoch"]
        self._scheduled_before = checkpoint.get("scheduled_epochs", 0) if checkpoint.get("lr_schedulers") else 0
        hparams = checkpoint.get("hyper_parameters", {})
        check_same_scheduler(hparams, dict(self.hparams))
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._check_same_optimizer(checkpoint.get("optimizer_states", []), hparams)
        saved = optimizer_options(hparams)
        given = optimizer_options(dict(self.hparams))
        self._changed = {
            key: (saved[key], value) for key, value in given.items() if key in saved and saved[key] != value
        }

    def _check_same_optimizer(self, states: list[Any], hparams: dict[str, Any]) -> None:
        made = self.configure_optimizers()
        saved = class_name(hparams.get("optimizer")) or ("SphereSGD" if hparams.get("elr") is not None else None)
        check_same_optimizer(made[0][0] if isinstance(made, tuple) else made, states, saved)

    def on_train_start(self) -> None:
        """Apply the options that differ from a resumed checkpoint's: its optimizer state has brought back the old."""
        self._scheduled, self._scheduled_before = self._scheduled_before, 0
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        check_sphere_kept(self.trainer.optimizers[0])
        for key, (old, new) in self._changed.items():
            groups = [group for group in optimizer.param_groups if group.get(key) is not None]
            if key == "lr":
                groups = [group for group in groups if group.get("elr") is None]  # a sphere's follows its elr
            if key == "elr" and not groups:
                rank_zero_warn(
                    f"elr: {new} changes nothing: the checkpoint's run had left the sphere; FineTuneSwitch enters it"
                )
                continue
            for group in groups:
                group[key] = new if key != "lr" or self._scheduler is None else group[key] * new / old
            if key == "lr" and self._scheduler is not None:
                scale_schedule(self.lr_schedulers(), optimizer.param_groups, new / old)
            rank_zero_info(f"{key}: {old} in the checkpoint, {new} from now on")
        self._changed = {}


def _error(logits: Tensor, labels: Tensor) -> Tensor:
    """Give the fraction of wrong predictions: float64, so that the number of samples times it is whole."""
    return (logits.argmax(1) != labels).double().mean()
