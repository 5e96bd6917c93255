"""On a GPU: no training step waits for the device."""

import torch
from fitted import fit
from lightning.pytorch import Trainer
from run_probes import SyncGuard
from settings import Settings

from lit_sphere.callbacks import EffectiveLearningRateMonitor, SharpnessMonitor
from lit_sphere.modules import SIConvNet


def check_hot_path(settings: Settings) -> dict[str, str]:
    """Train with synchronisation forbidden: by module and monitors alone, and with all default callbacks."""
    if settings.device != "cuda":
        return {"hot path": "not checked: needs --device cuda"}
    found = {}
    monitors = "SphereModule, EffectiveLearningRateMonitor and SharpnessMonitor"
    checks = {monitors: _monitors, "all default callbacks": _defaults}
    for name, check in checks.items():
        try:
            check(settings)
            found[name] = "no synchronisation"
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            found[name] = f"SYNCHRONISES: {_where(error)}: {error}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


def _monitors(settings: Settings) -> None:
    trainer = Trainer(
        accelerator="gpu", devices=1, max_steps=6, limit_val_batches=0, use_distributed_sampler=False,
        callbacks=[EffectiveLearningRateMonitor(), SharpnessMonitor(), SyncGuard()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(SIConvNet(settings.width, elr=1e-3), datamodule=settings.images_module())


def _defaults(settings: Settings) -> None:
    args = ["--model=SIConvNet", f"--model.width={settings.width}", "--trainer.max_epochs=1"]
    images = settings.images_arguments(settings.images, settings.test_images)
    fit([*args, *images, "--trainer.callbacks=run_probes.SyncGuard"], settings.device)


def _where(error: BaseException) -> str:
    """The innermost line of this project on the way to the error."""
    found, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "site-packages" not in file:
            found = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
