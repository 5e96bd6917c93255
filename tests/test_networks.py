import math
import re
from collections import Counter
from typing import Any, Literal

import pytest
import torch
from conftest import REPOSITORY

from lit_sphere import networks
from lit_sphere.groups import find_groups
from lit_sphere.networks import ConvNet, ResNet18, ResNet20
from lit_sphere.optim import squared_norms

ImageNormalisation = Literal["batch", "layer", "instance"]
NORMS: list[ImageNormalisation] = ["batch", "layer", "instance"]


def trainable(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]


def radius(network: torch.nn.Module) -> float:
    return math.sqrt(squared_norms(trainable(network)).sum().item())


@pytest.mark.parametrize(
    ("network", "width", "parameters", "rho"),
    [
        # TR §4; PyTorch's default initialisation gives each filter the squared norm 1/3 on average.
        (ConvNet, 32, 387_936, 12.65),
        (ConvNet, 64, 1_550_016, 17.9),
        (ResNet18, 32, 2_790_240, 28.3),
        (ResNet18, 64, 11_159_232, 40.0),
    ],
)
def test_parameters_and_radius_of_the_papers(
    network: type[ConvNet] | type[ResNet18], width: int, parameters: int, rho: float
) -> None:
    torch.manual_seed(0)
    net = network(width=width, scale_invariant=True)
    assert sum(p.numel() for p in trainable(net)) == parameters
    assert radius(net) == pytest.approx(rho, rel=3e-3)


@pytest.mark.parametrize("network", [ConvNet, ResNet18])
def test_the_head_is_frozen_at_norm_ten_with_its_initial_bias(
    network: type[ConvNet] | type[ResNet18],
) -> None:
    torch.manual_seed(1)
    net = network(width=4, scale_invariant=True)
    torch.manual_seed(1)
    practical = network(width=4)
    assert not any(p.requires_grad for p in net.head.parameters())
    assert torch.linalg.vector_norm(net.head.weight).item() == pytest.approx(10, rel=1e-6)
    direction = practical.head.weight / practical.head.weight.norm()
    torch.testing.assert_close(net.head.weight / 10, direction)
    if network is ConvNet:
        torch.testing.assert_close(net.head.bias, practical.head.bias)
    else:
        assert net.head.bias is None


@pytest.mark.parametrize("network", [ConvNet, ResNet18])
@pytest.mark.parametrize("factor", [0.5, 2.0, 1e3])
def test_outputs_do_not_change_when_all_weights_are_scaled(
    network: type[ConvNet] | type[ResNet18], factor: float
) -> None:
    torch.manual_seed(0)
    net = network(width=4, scale_invariant=True, eps=1e-30).double()
    x = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    before = net(x)
    with torch.no_grad():
        torch._foreach_mul_(list[torch.Tensor](trainable(net)), factor)
    torch.testing.assert_close(net(x), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_eps_breaks_scale_invariance_as_science_says(seed: int) -> None:
    """Outputs move by 3e-4 at half the weights, 1e-2 at a tenth, order 1 at a hundredth.

    Seen over 18 networks (w = 8, 32, 128): 0.9 to 2.5 times 3e-4, 0.9 to 2.5 times 1e-2, 1.0 to 2.8 times 1. To first
    order in eps they move like eps (1/factor² − 1), here by 99/3 from the first to the second; seen: 32.9 to 33.2.
    """
    torch.manual_seed(seed)
    net = ConvNet(width=8, scale_invariant=True).double()
    x = torch.randn(32, 3, 32, 32, dtype=torch.float64)
    before, weights, moved = net(x), [p.detach().clone() for p in trainable(net)], []
    for factor, said in ((0.5, 3e-4), (0.1, 1e-2), (0.01, 1.0)):
        with torch.no_grad():
            for p, w in zip(trainable(net), weights, strict=True):
                p.copy_(factor * w)
        moved.append((net(x) - before).abs().mean().item())
        assert 0.5 * said < moved[-1] < 4 * said
    assert moved[1] / moved[0] == pytest.approx(99 / 3, rel=0.05)


def test_the_practical_versions_train_everything_and_have_one_norm_less() -> None:
    for network in (ConvNet, ResNet18):
        assert all(p.requires_grad for p in network(width=4).parameters())
    count = {
        si: sum(isinstance(m, torch.nn.BatchNorm2d) for m in ResNet18(width=4, scale_invariant=si).modules())
        for si in (True, False)
    }
    assert count[True] == count[False] + 3, "one more batch norm before each of the three shortcut convolutions"


@pytest.mark.parametrize("size", [8, 16, 32])
def test_conv_net_takes_digits_and_cifar_sizes(size: int) -> None:
    assert ConvNet(width=2, in_channels=1, num_classes=7)(torch.zeros(2, 1, size, size)).shape == (2, 7)


def test_a_head_norm_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="head_norm must be positive"):
        ConvNet(width=2, scale_invariant=True, head_norm=0.0)


def test_pooling_before_relu_changes_neither_values_nor_gradients() -> None:
    torch.manual_seed(0)
    net = ConvNet(width=4, scale_invariant=True)
    x = torch.randn(16, 3, 32, 32)
    logits = net(x)
    logits.square().sum().backward()
    fast = [p.grad for p in trainable(net)]
    net.zero_grad()
    features = x
    for depth, (conv, norm) in enumerate(zip(net.convs, net.norms, strict=True)):
        features = norm(conv(features)).relu()  # the papers' order
        features = torch.nn.functional.max_pool2d(features, 2) if depth > 0 else features
    slow = net.head(features.amax((2, 3)))
    assert torch.equal(slow, logits)
    slow.square().sum().backward()
    for p, grad in zip(trainable(net), fast, strict=True):
        assert grad is not None
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-6 * grad.abs().max().item())


def test_resnet20_has_the_parameters_of_the_original() -> None:
    assert sum(p.numel() for p in ResNet20().parameters()) == 269_722
    plain = ResNet20(affine=False)
    assert sum(p.numel() for p in plain.parameters()) == 269_722 - 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert ResNet20(width=2, in_channels=1, num_classes=7)(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize("normalisation", ["batch", "weight"])
def test_every_convolution_of_resnet20_is_scale_invariant_by_itself(normalisation: Literal["batch", "weight"]) -> None:
    torch.manual_seed(0)
    net = ResNet20(width=2, scale_invariant=True, normalisation=normalisation)
    groups = find_groups(net, torch.zeros(2, 3, 8, 8))
    assert len(groups) == len(trainable(net)) == 19
    assert all(len(group.parameters) == 1 for group in groups)
    filters = find_groups(net, torch.zeros(2, 3, 8, 8), "filter")
    assert len(filters) == sum(len(p) for p in trainable(net))


def test_weight_normed_resnet20_keeps_the_variance_of_its_inputs() -> None:
    torch.manual_seed(0)
    net = ResNet20(normalisation="weight")
    stem = net.stem(torch.randn(8, 3, 32, 32))
    assert 1.3 < stem.var() < 2.7  # twice the input's, of which ReLU leaves half
    assert net(torch.randn(8, 3, 32, 32)).abs().max() < 100
    lengths = [p for name, p in net.named_parameters() if name.endswith("original0")]
    assert len(lengths) == 19
    assert all(p.requires_grad for p in lengths)


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="normalisation must be one of batch, weight"):
        ResNet20(normalisation="layer")  # type: ignore[arg-type]


@pytest.mark.parametrize("normalisation", NORMS)
def test_what_is_scale_invariant_depends_on_the_norm(normalisation: ImageNormalisation) -> None:
    """Batch and instance norm: every filter; layer norm: whole tensors only. The groups of tensors are the same."""
    torch.manual_seed(0)
    net = ConvNet(width=2, in_channels=1, scale_invariant=True, normalisation=normalisation)
    groups = find_groups(net, torch.zeros(2, 1, 8, 8))
    assert [group.names for group in groups] == [(f"convs.{depth}.weight",) for depth in range(4)]
    filters = find_groups(net, torch.zeros(2, 1, 8, 8), "filter")
    assert len(filters) == (4 if normalisation == "layer" else 2 * (1 + 2 + 4 + 8))


@pytest.mark.slow
@pytest.mark.parametrize("normalisation", NORMS)
def test_residual_streams_are_scale_invariant_jointly_under_every_norm(normalisation: ImageNormalisation) -> None:
    torch.manual_seed(0)
    net = ResNet18(width=2, in_channels=1, scale_invariant=True, normalisation=normalisation)
    groups = find_groups(net, torch.zeros(2, 1, 16, 16))
    assert sorted(len(group.parameters) for group in groups) == 8 * [1] + 4 * [3]
    filters = find_groups(net, torch.zeros(2, 1, 16, 16), "filter")
    assert any(group.rows is not None for group in filters) == (normalisation != "layer")


@pytest.mark.parametrize("network", [ConvNet, ResNet18])
@pytest.mark.parametrize("normalisation", ["layer", "instance"])
def test_layer_and_instance_norm_treat_each_image_by_itself(
    network: type[ConvNet] | type[ResNet18], normalisation: ImageNormalisation
) -> None:
    """So they are scale-invariant in eval mode too."""
    torch.manual_seed(0)
    net = network(width=2, scale_invariant=True, eps=1e-30, normalisation=normalisation).double().eval()
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    before = net(x)
    torch.testing.assert_close(net(x[:1]), before[:1], rtol=1e-10, atol=1e-10)
    assert (before[0] - before[1]).abs().max() > 1e-3, "the output does not depend on the image"
    with torch.no_grad():
        torch._foreach_mul_(list[torch.Tensor](trainable(net)), 0.5)
    torch.testing.assert_close(net(x), before, rtol=1e-9, atol=1e-9)


def test_practical_layer_and_instance_norms_have_a_gain_and_a_bias_for_each_channel() -> None:
    counts = {n: sum(p.numel() for p in ConvNet(width=2, normalisation=n).parameters()) for n in NORMS}
    assert len(set(counts.values())) == 1
    assert counts["batch"] - sum(p.numel() for p in trainable(ConvNet(2, scale_invariant=True))) == 2 * 30 + 17 * 10


def test_instance_norm_of_one_pixel_is_refused() -> None:
    net = ResNet18(width=2, in_channels=1, normalisation="instance")
    with pytest.raises(ValueError, match=r"images of 8×8 have one pixel .*; take images from 9×9"):
        net(torch.zeros(2, 1, 8, 8))
    assert net(torch.zeros(2, 1, 9, 9)).shape == (2, 10)
    with pytest.raises(ValueError, match="normalisation must be one of batch, layer, instance, got 'weight'"):
        ConvNet(normalisation="weight")  # type: ignore[arg-type]


_ROWS = re.findall(
    r"^\| `(\w+)(?:\((.*)\))?` \| ([\d,]+) \| ([\d,]+) \| (.*?) \| (.*?) \|$",
    (REPOSITORY / "docs" / "networks.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


def test_the_page_names_each_network() -> None:
    assert {row[0] for row in _ROWS} == set(networks.__all__) - {"Resized"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "option", "weights", "practical", "groups", "parts"), _ROWS)
def test_the_pages_table_of_networks(
    name: str, option: str, weights: str, practical: str, groups: str, parts: str
) -> None:
    torch.manual_seed(0)
    options = dict([option.replace('"', "").split("=")]) if option else {}
    make: Any = getattr(networks, name)
    net = make(scale_invariant=True, **options)
    assert f"{sum(p.numel() for p in trainable(net)):,}" == weights
    assert f"{sum(p.numel() for p in make(**options).parameters()):,}" == practical
    sizes = Counter(len(group.parameters) for group in find_groups(net, torch.zeros(2, 3, 32, 32)))
    joint = f" and {sizes[3]} of three tensors" if sizes[3] else ""
    assert f"{sizes[1]} tensors{joint}" == groups
    assert set(sizes) <= {1, 3}
    found = [group for group in find_groups(net, torch.zeros(2, 3, 32, 32), "filter") if group.rows is not None]
    kinds = Counter(group.names[0].rpartition(".")[0].rpartition(".")[2] or group.names[0] for group in found)
    if name == "Transformer":
        assert kinds == {"positions": 64, "query": 4, "key": 4}, "two heads in each of two blocks"
    else:
        assert (f"{len(found):,} filters" if found else "none") == parts
