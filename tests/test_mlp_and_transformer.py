"""The MLP and the transformer: every trained tensor is scale-invariant by itself; what does not fit is refused."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from lit_sphere.groups import find_groups
from lit_sphere.networks import MLP, Transformer

NORMS: list[Literal["layer", "rms"]] = ["layer", "rms"]
DIGITS: dict[str, Any] = {"in_channels": 1, "image_size": 8}


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def small(scale_invariant: bool = True, **options: Any) -> Transformer:
    options = {"eps": 1e-30, "patch_size": 4, "heads": 2, **DIGITS, **options}
    return Transformer(8, scale_invariant=scale_invariant, **options).double()


def images(network: MLP | Transformer, count: int = 5) -> Tensor:
    return torch.randn(count, *network.image_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


NETWORKS: dict[str, Callable[[], MLP | Transformer]] = {
    "MLP": lambda: MLP(6, scale_invariant=True, eps=1e-30, **DIGITS).double(),
    "deep MLP": lambda: MLP(6, scale_invariant=True, eps=1e-30, depth=5, **DIGITS).double(),
    "Transformer": small,
    "Transformer, RMS norm": lambda: small(norm="rms"),
    "deep Transformer": lambda: small(depth=3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_trained_tensor_is_a_group_and_can_be_scaled_alone(name: str) -> None:
    torch.manual_seed(0)
    net = NETWORKS[name]()
    groups = find_groups(net, images(net, 2))
    assert sorted(group.names for group in groups) == sorted((each,) for each in trained(net))
    x = images(net)
    before = net(x)
    assert before.std(0).min() > 1e-2, "the output does not depend on the image"
    for group in groups:
        for factor in (2.0, 0.5):
            with torch.no_grad():
                group.parameters[0].mul_(factor)
            torch.testing.assert_close(net(x), before, rtol=1e-9, atol=1e-9)
            with torch.no_grad():
                group.parameters[0].div_(factor)


@pytest.mark.parametrize(
    ("network", "tensors", "weights"),
    [
        (lambda: MLP(scale_invariant=True), 2, 256 * (3072 + 256)),
        (lambda: Transformer(scale_invariant=True), 14, 64 * (48 + 64) + 2 * 8 * 64 * 64),
        (lambda: Transformer(scale_invariant=True, norm="rms"), 14, 64 * (48 + 64) + 2 * 8 * 64 * 64),
    ],
    ids=["MLP", "Transformer", "Transformer, RMS norm"],
)
def test_groups_at_default_size_and_eps(network: Any, tensors: int, weights: int) -> None:
    torch.manual_seed(0)
    net = network()
    groups = find_groups(net, torch.zeros(2, 3, 32, 32))
    assert {name for group in groups for name in group.names} == trained(net).keys()
    assert len(groups) == tensors
    assert sum(p.numel() for p in trained(net).values()) == weights


def test_parts_that_are_scale_invariant_by_themselves() -> None:
    """Each position, and in W_q and W_k each head; nothing of the other tensors."""
    torch.manual_seed(0)
    net = small()
    parts = [group for group in find_groups(net, images(net, 2), "filter") if group.rows is not None]
    rows = {
        name: {(g.rows.start, g.rows.stop) for g in parts if g.rows and g.names == (name,)} for name in trained(net)
    }
    assert rows.pop("positions") == {(i, i + 1) for i in range(4)}
    heads = {name for name in rows if name.endswith(("query.weight", "key.weight"))}
    assert len(heads) == 4
    for name, found in rows.items():
        assert found == ({(0, 4), (4, 8)} if name in heads else set()), name


@pytest.mark.parametrize("norm", NORMS)
def test_practical_versions_train_everything_and_are_the_usual_ones(norm: Literal["layer", "rms"]) -> None:
    net = small(scale_invariant=False, norm=norm)
    assert all(p.requires_grad for p in net.parameters())
    norms = [m for m in net.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm)]
    assert len(norms) == 2 * 2 + 1  # before attention and MLP of each block, and before the head
    assert all(m.weight is not None for m in norms)
    assert all(m.bias is not None for m in net.modules() if isinstance(m, nn.Linear))
    mlp = MLP(4, **DIGITS)
    assert all(p.requires_grad for p in mlp.parameters())
    assert sum(p.numel() for p in mlp.parameters()) == 64 * 4 + 4 * 4 + 2 * 8 + 4 * 10 + 10


def test_attention_is_torchs_own() -> None:
    torch.manual_seed(0)
    net = small(scale_invariant=False)
    block = net.get_submodule("blocks.0.0")
    x = torch.randn(3, 4, 8, dtype=torch.float64)
    inputs = block.get_submodule("norm")(x)
    query, key, value = (
        block.get_submodule(name)(inputs).view(3, 4, 2, 4).transpose(1, 2) for name in ("query", "key", "value")
    )
    mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(3, 4, 8)
    torch.testing.assert_close(block(x), x + block.get_submodule("out")(mixed))


def test_positions_matter_and_a_batch_is_no_context() -> None:
    torch.manual_seed(0)
    net = small()
    x = images(net)
    torch.testing.assert_close(net(x[:1]), net(x)[:1])
    moved = x.roll(4, -1)  # exchanges the patches
    assert (net(moved) - net(x)).abs().max() > 1e-2
    with torch.no_grad():
        net.positions.copy_(net.positions[:1].expand_as(net.positions).clone())
    torch.testing.assert_close(net(moved), net(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(0), "width must be at least 3, got 0"),
        (lambda: MLP(depth=0), "depth must be at least 1, got 0"),
        (lambda: MLP(image_size=0), "image_size must be at least 1, got 0"),
        (lambda: MLP(eps=0), "eps must be positive, got 0"),
        (lambda: Transformer(-1), "width must be at least 1, got -1"),
        (
            lambda: Transformer(patch_size=5),
            "divide the images' 32 pixels, got 5; 1, 2, 4, 8, 16, 32 do",
        ),
        (lambda: Transformer(heads=3), "into three or more each, got 3; 1, 2, 4, 8, 16 do"),
        (lambda: Transformer(heads=32), "heads must divide width 64 into three or more each, got 32"),
        (
            lambda: Transformer(2),
            "heads must divide width 2 into .*, got 2; take a width of 3",
        ),
        (lambda: Transformer(heads=0), "heads must be at least 1, got 0"),
        (lambda: Transformer(norm="batch"), "norm must be one of layer, rms, got 'batch'"),  # type: ignore[arg-type]
        (lambda: MLP(4)(torch.zeros(1, 1, 8, 8)), r"made for images of 3×32×32 .*, got 1×8×8; set its in_channels"),
        (lambda: small()(torch.zeros(1, 3, 8, 8)), r"made for images of 1×8×8 .*, got 3×8×8; set its in_channels"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: MLP(8, scale_invariant=True), lambda: Transformer(12, scale_invariant=True)])
def test_bfloat16_and_compiled(make: Any) -> None:
    torch.manual_seed(0)
    net, x = make(), torch.randn(4, 3, 32, 32)

    def run() -> tuple[Tensor, list[Tensor]]:
        logits = net(x)
        net.zero_grad()
        logits.float().square().mean().backward()
        return logits.detach(), [p.grad.clone() for p in trained(net).values() if p.grad is not None]

    plain, gradients = run()
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    with torch.autocast("cpu", torch.bfloat16):
        rough, others = run()
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), plain, rtol=0.1, atol=0.3)
    flat, other = (torch.cat([g.flatten() for g in each]) for each in (gradients, others))
    assert torch.cosine_similarity(flat, other, 0) > 0.9
    net.compile(backend="eager", fullgraph=True)  # a C++ compiler takes a minute for what is the same graph
    compiled, others = run()
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(others, gradients, rtol=1e-3, atol=1e-4)
