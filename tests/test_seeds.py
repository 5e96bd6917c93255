"""Initialisation, order of the batches and head: three seeds, each of which changes nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet, SIResNet18, SphereModule
from lit_sphere.networks import ConvNet


def parts(seed: int = 0, order_seed: int | None = 0, head_seed: int | None = 0, **options: Any) -> dict[str, Tensor]:
    """What the seeds are for, of a run, flat."""
    torch.manual_seed(seed)
    module = SIConvNet(width=4, in_channels=1, elr=0.1, head_seed=head_seed)
    after = torch.rand(3)  # what is drawn next
    data = Digits(train_size=200, batch_size=50, label_noise=0.3, augment=True, order_seed=order_seed, **options)
    data.setup()
    network: Any = module.network
    loader = data.train_dataloader()
    return {
        "initialisation": torch.cat([p.detach().flatten() for p in network.convs.parameters()]),
        "head": torch.cat([p.detach().flatten() for p in network.head.parameters()]),
        "order": torch.cat([images.flatten() for images, _ in loader]),
        "subset": data.train_set.pixels.flatten().float(),
        "labels": data.train_set.labels.float(),
        "later": after,
    }


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"seed": 1}, {"initialisation", "later"}),
        ({"head_seed": 1}, {"head"}),
        ({"order_seed": 1}, {"order"}),
        ({"order_seed": 1, "head_seed": 1}, {"order", "head"}),
    ],
)
def test_each_seed_changes_its_own_part_alone(changed: dict[str, int], what: set[str]) -> None:
    before, after = parts(), parts(**changed)
    assert {name for name in before if not torch.equal(before[name], after[name])} == what


def test_without_them_all_is_as_before() -> None:
    with_seed = parts(order_seed=0, head_seed=None)
    plain = parts(order_seed=None, head_seed=None)
    assert all(torch.equal(plain[name], with_seed[name]) for name in plain)
    torch.manual_seed(0)
    network = ConvNet(4, in_channels=1, scale_invariant=True)
    assert torch.equal(plain["head"], torch.cat([p.detach().flatten() for p in network.head.parameters()]))
    other = parts(order_seed=None, head_seed=None, seed=1)
    assert not torch.equal(plain["head"], other["head"])


def test_a_head_is_not_the_numbers_of_an_initialisation_and_keeps_its_norm() -> None:
    torch.manual_seed(3)
    seen: Any = SIResNet18(width=2, in_channels=1, elr=0.1, head_norm=7.0, head_seed=3).network
    torch.manual_seed(3)
    plain = nn.Linear(16, 10, bias=False)
    assert seen.head.weight.norm().item() == pytest.approx(7.0)
    cosine = torch.cosine_similarity(seen.head.weight.flatten(), plain.weight.flatten(), dim=0)
    assert abs(cosine.item()) < 0.4
    assert not seen.head.weight.requires_grad


def test_the_last_linear_map_of_any_network_is_its_head() -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))

    one, two = (SphereModule(network(), elr=0.1, head_seed=seed).network for seed in (1, 2))
    changed = {name for name, p in one.named_parameters() if not torch.equal(p, two.get_parameter(name))}
    assert changed == {"2.weight", "2.bias"}
    bound = 1 / 5**0.5
    assert float(one.get_parameter("2.weight").detach().abs().max()) <= bound, (
        "drawn as torch does, and trained: no fixed norm"
    )


@pytest.mark.parametrize(
    ("network", "seed", "message"),
    [
        (nn.Sequential(nn.Linear(4, 5)), -1, "head_seed .* must not be negative, got -1"),
        (nn.Sequential(nn.Conv2d(1, 2, 3)), 0, "Sequential has no linear map"),
    ],
)
def test_refused(network: nn.Module, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SphereModule(network, elr=0.1, head_seed=seed)


def test_a_checkpoint_holds_the_seed_and_the_head(tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    torch.manual_seed(0)
    module = SIConvNet(width=4, in_channels=1, elr=0.1, head_seed=5)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_steps=1, limit_val_batches=0, default_root_dir=tmp_path, accelerator="cpu", **quiet)
    trainer.fit(module, Digits(train_size=100, batch_size=100))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    torch.manual_seed(8)
    loaded: Any = SIConvNet.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu")
    assert loaded.hparams["head_seed"] == 5
    assert torch.equal(
        loaded.network.head.weight, parts(head_seed=5)["head"][: loaded.network.head.weight.numel()].view(10, -1)
    )
