"""find_groups: what it finds, on which models, and that it leaves no trace."""

import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import lightning
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_sphere.groups import Group, find_groups, search_groups
from lit_sphere.groups.euler import euler_products
from lit_sphere.groups.precision import DOUBLE
from lit_sphere.groups.probe import Probe
from lit_sphere.groups.scaling_laws import ScalingLaws
from lit_sphere.groups.symmetries import GroupChoice, Symmetries
from lit_sphere.networks import ConvNet, ResNet18

IMAGES = torch.zeros(2, 3, 32, 32)
FEATURES = torch.zeros(2, 6)


def names(groups: list[Group]) -> list[tuple[str, ...]]:
    """Parameter names of every group."""
    return [group.names for group in groups]


def outputs_when_scaled(model: nn.Module, x: Tensor, group: Group, factor: float) -> tuple[Tensor, Tensor]:
    """Outputs before and after scaling a group in place, as a user would: in float64 with vanishing eps."""
    model.double().train()
    for module in model.modules():
        if "eps" in vars(module):
            vars(module)["eps"] = 1e-30
    with torch.no_grad():
        before: Tensor = model(x)
        for parameter in group.parameters:
            parameter[group.rows if group.rows is not None else slice(None)] *= factor
        return before, model(x)


class Chain(nn.Sequential):
    """A Sequential with types."""

    def forward(self, x: Tensor) -> Any:
        """Apply the modules in order."""
        for module in self:
            x = module(x)
        return x


class LayerNormMLP(Chain):
    """Linear maps without bias, layer norm without affine parameters, a frozen head."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Linear(6, 6, bias=False), nn.LayerNorm(6, elementwise_affine=False), nn.ReLU()]
        super().__init__(*layers, nn.Linear(6, 4).requires_grad_(False))


class VisionTransformer(nn.Module):
    """A small pre-LN transformer, with dropout."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(12, width)
        self.position = nn.Parameter(torch.zeros(1, 5, width))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 4, 32, 0.1, activation="gelu", batch_first=True, norm_first=True)
                for _ in range(2)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map patches (N, 5, 12) to logits (N, 10)."""
        out: Tensor = self.head(self.norm(self.blocks(self.embed(x) + self.position).mean(1)))
        return out


# ---------------------------------------------------------------- the papers' networks and known ones


def test_si_convnet_has_its_four_convs_as_groups() -> None:
    model = ConvNet(width=8, scale_invariant=True)
    groups = find_groups(model, IMAGES)
    assert [group.name for group in groups] == [f"convs.{i}.weight" for i in range(4)]
    assert names(groups) == [(group.name,) for group in groups]
    assert all(group.rows is None for group in groups)
    assert [group.parameters[0] for group in groups] == [model.get_parameter(g.name) for g in groups]
    assert sum(group.numel for group in groups) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_filters_of_si_convnet_tile_its_convs() -> None:
    model = ConvNet(width=8, scale_invariant=True)
    groups = find_groups(model, torch.zeros(2, 3, 8, 8), "filter")
    assert len(groups) == 15 * 8
    expected = [(f"convs.{i}.weight[{k}]", slice(k, k + 1)) for i in range(4) for k in range(8 << i)]
    assert [(group.name, group.rows) for group in groups] == expected
    assert sum(group.numel for group in groups) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    before, after = outputs_when_scaled(model, torch.randn(6, 3, 8, 8, dtype=torch.float64), groups[3], 3.7)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)


def test_si_resnet18_has_eight_single_tensors_and_four_streams() -> None:
    model = ResNet18(width=4, scale_invariant=True)
    groups = find_groups(model, torch.zeros(2, 3, 16, 16))
    singles = [f"stages.{s}.{b}.conv1.weight" for s in range(4) for b in range(2)]
    assert [group.name for group in groups if len(group.parameters) == 1] == singles
    joint = [group for group in groups if len(group.parameters) > 1]
    assert len(joint) == 4
    for stage, group in enumerate(joint):
        entrance = "stem.weight" if stage == 0 else f"stages.{stage}.0.shortcut.1.weight"
        assert set(group.names) == {entrance, *(f"stages.{stage}.{b}.conv2.weight" for b in range(2))}
        assert group.name == group.names[0] + "+2"

    x = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    before, after = outputs_when_scaled(model, x, joint[1], 3.7)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    alone = Group(joint[1].names[0], joint[1].parameters[:1])
    before, after = outputs_when_scaled(model, x, alone, 3.7)
    assert (after - before).abs().max() > 1e-3


def test_filters_of_residual_streams_are_joint() -> None:
    groups = find_groups(ResNet18(width=4, scale_invariant=True), torch.zeros(2, 3, 16, 16), "filter")
    assert len(groups) == 3 * 15 * 4  # two first convs a stage, and the stream
    assert groups[3].name == "stem.weight+2[3]"
    assert groups[3].numel == 3 * 9 + 2 * 4 * 9


def test_torchvision_resnet18() -> None:
    groups = find_groups(torchvision.models.resnet18(), IMAGES)
    sizes = [len(group.parameters) for group in groups]
    assert len(groups) == 31
    assert (sizes.count(1), sizes.count(2), sizes.count(6)) == (20, 8, 3)
    assert all("conv" in g.name or "downsample.0" in g.name for g in groups if len(g.names) == 1)
    assert all("bn" in name or "downsample.1" in name for g in groups if len(g.names) > 1 for name in g.names)
    used = [name for group in groups for name in group.names]
    assert len(used) == len(set(used))
    assert not any(name.startswith("fc") for name in used)


def test_transformer_has_its_residual_stream() -> None:
    model = VisionTransformer()
    (group,) = find_groups(model, torch.zeros(2, 5, 12))
    writers = ("self_attn.out_proj.weight", "self_attn.out_proj.bias", "linear2.weight", "linear2.bias")
    blocks = {f"blocks.{i}.{name}" for i in range(2) for name in writers}
    assert set(group.names) == blocks | {"embed.weight", "embed.bias", "position"}
    assert names(find_groups(model, torch.zeros(2, 5, 12), "filter")) == [group.names]


# ---------------------------------------------------------------- norm layers


@pytest.mark.parametrize("granularity", ["tensor", "filter"])
def test_layer_norm_gives_whole_tensors(granularity: Any) -> None:
    groups = find_groups(LayerNormMLP(), FEATURES, granularity)
    assert [(group.name, group.rows) for group in groups] == [(f"{i}.weight", None) for i in (0, 3, 6)]


def test_group_norm_gives_blocks() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 3))
    assert [g.name for g in find_groups(model, torch.zeros(2, 3, 8, 8))] == ["0.weight+1"]
    groups = find_groups(model, torch.zeros(2, 3, 8, 8), "filter")
    assert [g.name for g in groups] == [f"0.weight+1[{k}:{k + 4}]" for k in (0, 4, 8, 12)]
    assert [g.rows for g in groups] == [slice(k, k + 4) for k in (0, 4, 8, 12)]
    assert groups[0].numel == 4 * (3 * 9 + 1)


def test_instance_norm_gives_filters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    groups = find_groups(model, torch.zeros(2, 3, 8, 8), "filter")
    # The norm takes the conv's bias out: it has no influence and is in no group.
    assert [group.name for group in groups] == [f"0.weight[{k}]" for k in range(8)]


def test_weight_norm_gives_its_direction() -> None:
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(6, 5)), nn.ReLU(), norm(nn.Linear(5, 4)))
    directions = [f"{i}.parametrizations.weight.original1" for i in (0, 2)]
    assert [group.name for group in find_groups(model, FEATURES)] == directions
    assert len(find_groups(model, FEATURES, "filter")) == 9


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_older_weight_norm_keeps_its_weight() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 4))
    weight = model[0].weight
    assert [group.name for group in find_groups(model, FEATURES)] == ["0.weight_v"]
    assert model[0].weight is weight


def test_functional_norm_with_its_own_eps() -> None:
    class Functional(LayerNormMLP):
        def forward(self, x: Tensor) -> Any:
            return self[-1](F.layer_norm(self[0](x), (6,), None, None, 1e-2))

    assert names(find_groups(Functional(), FEATURES)) == [("0.weight",)]


def test_hand_written_norm_with_eps_attribute() -> None:
    class Norm(nn.Module):
        variance_epsilon = 0.0

        def __init__(self) -> None:
            super().__init__()
            self.variance_epsilon = 1e-2

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    model = nn.Sequential(nn.Linear(6, 6, bias=False), Norm(), nn.ReLU(), nn.Linear(6, 3))
    assert names(find_groups(model, FEATURES)) == [("0.weight",)]
    assert model[1].variance_epsilon == 1e-2


# ---------------------------------------------------------------- symmetries that are no groups


@pytest.mark.parametrize("bias", [True, False])
def test_network_without_normalisation_has_none(bias: bool) -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6, bias), nn.ReLU()) for _ in range(6)), nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"no scale-invariant group found in Sequential: neither one of its \d+ .*Put"):
        find_groups(model, FEATURES)


def test_smaller_of_two_overlapping_groups() -> None:
    # {W₂, b₂} and {W₁, b₁, b₂} both are scale-invariant; W₁, b₁ against W₂ is a symmetry of mixed sign.
    model = nn.Sequential(
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.LayerNorm(6, elementwise_affine=False),
        nn.Linear(6, 3),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    assert names(find_groups(model, FEATURES)) == [("2.weight", "2.bias")]


def test_saturating_activation_makes_no_group() -> None:
    # With 4 samples, batch norm's output stays below √3: γ, β act as with a plain ReLU, until scaled up.
    def layers(activation: nn.Module) -> nn.Module:
        return nn.Sequential(
            nn.Linear(6, 6, bias=False),
            nn.BatchNorm1d(6),
            activation,
            nn.Linear(6, 6),
            nn.BatchNorm1d(6),
            nn.Linear(6, 3),
        )

    convs = [("0.weight",), ("3.weight",)]
    assert names(find_groups(layers(nn.ReLU6()), FEATURES)) == convs
    assert names(find_groups(layers(nn.Hardtanh(0, 12)), FEATURES)) == convs  # met by scaling only
    assert names(find_groups(layers(nn.ReLU()), FEATURES)) == [convs[0], ("1.weight", "1.bias"), convs[1]]


def test_deep_network_whose_inputs_hardly_matter() -> None:
    # At the default initialisation the signal fades, and all random inputs see one linear piece.
    torch.manual_seed(0)
    layers = [layer for _ in range(16) for layer in (nn.Linear(12, 12), nn.ReLU())]
    assert names(find_groups(nn.Sequential(*layers, nn.LayerNorm(12)), torch.zeros(2, 12))) == [
        ("30.weight", "30.bias")
    ]


def test_exponents_must_be_equal() -> None:
    # e₂ = 2 e₀ = 2 e₁ would be a symmetry, of unequal exponents; e₃ = e₄ is a group.
    symmetries = Symmetries()
    symmetries.require_zero({0: Fraction(1), 1: Fraction(-1)})
    symmetries.require_zero({0: Fraction(2), 2: Fraction(-1)})
    symmetries.require_zero({3: Fraction(1), 4: Fraction(-1)})
    assert GroupChoice(symmetries, dict.fromkeys(range(5), 1.0)).choose() == [(3, 4)]


@st.composite
def symmetry_equations(draw: st.DrawFn) -> tuple[int, list[dict[int, Fraction]]]:
    """Number of exponents, and equations between them with coefficients −1, 0, 1."""
    count = draw(st.integers(2, 6))
    rows = draw(st.lists(st.lists(st.integers(-1, 1), min_size=count, max_size=count), max_size=4))
    return count, [{column: Fraction(value) for column, value in enumerate(row) if value} for row in rows]


@settings(max_examples=60, deadline=None)
@given(symmetry_equations(), st.lists(st.integers(1, 50), min_size=6, max_size=6))
def test_choice_covers_the_most_of_all_unions_of_groups(
    case: tuple[int, list[dict[int, Fraction]]], weights: list[int]
) -> None:
    count, equations = case
    symmetries = Symmetries()
    for equation in equations:
        symmetries.require_zero(equation)
    # Reference: all subsets; a union of groups is one that solves the equations.
    solve = [
        subset
        for size in range(1, count + 1)
        for subset in itertools.combinations(range(count), size)
        if all(sum(equation.get(column, 0) for column in subset) == 0 for equation in equations)
    ]
    choice = GroupChoice(symmetries, {column: float(weights[column]) for column in range(count)})
    groups = choice.choose()
    covered = [column for group in groups for column in group]
    assert len(covered) == len(set(covered))
    assert all(group in solve for group in groups)
    assert not any(set(smaller) < set(group) for group in groups for smaller in solve)
    assert sum(weights[c] for c in covered) == max((sum(weights[c] for c in subset) for subset in solve), default=0)
    for other in choice.alternatives(groups):
        assert other in solve
        assert set(other) - set(covered)
        assert set(other) & set(covered)


class Block(nn.Module):
    """A transformer's block, its queries, keys and values apart or in one tensor, with QK-norm or not."""

    def __init__(self, width: int, fused: bool, qk_norm: bool) -> None:
        super().__init__()
        self.before, self.middle = nn.LayerNorm(width), nn.LayerNorm(width)
        sizes = [3 * width] if fused else [width] * 3
        self.qkv = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.qk_norm = qk_norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        q, k, v = self.qkv[0](y).chunk(3, -1) if len(self.qkv) == 1 else [layer(y) for layer in self.qkv]
        if self.qk_norm:
            q, k = (F.layer_norm(each, each.shape[-1:]) for each in (q, k))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        return x + cast(Tensor, self.down(F.relu(self.up(self.middle(x)))))


def test_queries_and_keys_in_one_tensor_are_found_as_rows() -> None:
    model = nn.Sequential(nn.Linear(6, 8), Block(8, fused=True, qk_norm=True), nn.LayerNorm(8), nn.Linear(8, 3))
    groups = {group.name: group for group in find_groups(model, torch.zeros(2, 5, 6))}
    queries_and_keys = groups.pop("1.qkv.0.weight+1[0:16]")
    assert queries_and_keys.rows == slice(0, 16)
    assert queries_and_keys.numel == 16 * (8 + 1)
    (stream,) = groups.values()
    assert stream.names == ("0.weight", "0.bias", "1.out.weight", "1.out.bias", "1.down.weight", "1.down.bias")
    rows = [group.rows for group in find_groups(model, torch.zeros(2, 5, 6), "filter") if group.rows]
    assert rows == [slice(0, 8), slice(8, 16)]


def test_of_overlapping_groups_the_heavier_is_taken_and_the_other_named() -> None:
    class Scaled(nn.Module):
        """Layer scale: its gains could be taken in place of the matrix."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.gain = nn.Parameter(torch.full((6,), 1e-6))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.gain * cast(Tensor, self.linear(F.relu(F.layer_norm(x, (6,)))))

    model = nn.Sequential(nn.Linear(6, 6), Scaled(), Scaled(), nn.LayerNorm(6, elementwise_affine=False))
    search = search_groups(model, FEATURES)
    matrices = [f"{i}.{name}" for i in (1, 2) for name in ("linear.weight", "linear.bias")]
    assert names(search.groups) == [("0.weight", "0.bias", *matrices)]
    assert any("1.gain" in group.names for group in search.alternatives)
    assert any("2.gain" in group.names for group in search.alternatives)


class Dense(nn.Module):
    """Batch norm behind a concatenation, whose parts may scale apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Any:
        x = torch.cat([self.first(x), F.relu(self.second(x))], 1)
        return self.last(F.relu(F.batch_norm(x, None, None, training=True)))


class Apart(nn.Module):
    """Parts of one tensor that scale differently, put together and taken apart again."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed, self.head, self.how = nn.Linear(6, 6), nn.Linear(6, 3), how

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        normalised = F.layer_norm(x, (6,))
        if self.how == "cat":
            y = torch.cat([normalised, x], 1)[:, :6]
        elif self.how == "stack":
            y = torch.stack([normalised, x])[0]
        elif self.how == "written":
            z = x.new_zeros(len(x), 12)
            z[:, :6] = x
            z[:, 6:] = 1
            y = F.layer_norm(z[:, :6], (6,))
        elif self.how == "added":
            y = F.layer_norm((torch.cat([normalised, x], 1) + torch.cat([normalised, x], 1))[:, 6:], (6,))
        else:  # mixed: nothing scales
            y = torch.cat([normalised, x], 1).mean(1, keepdim=True).expand(-1, 6)
        return self.head(y)


@pytest.mark.parametrize("how", ["cat", "stack", "written", "added", "mixed"])
def test_parts_of_a_tensor_scale_apart_until_they_are_mixed(how: str) -> None:
    groups = search_groups(Apart(how), FEATURES).groups
    assert names(groups) == ([] if how == "mixed" else [("embed.weight", "embed.bias")])


REFERENCED: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "resnet": lambda: (ResNet18(width=2), torch.zeros(2, 3, 8, 8)),
    "dense": lambda: (Dense(), FEATURES),
    "written": lambda: (Apart("written"), FEATURES),
    "mixed": lambda: (Apart("mixed"), FEATURES),
    "vit": lambda: (VisionTransformer(), torch.zeros(2, 5, 12)),
    "apart": lambda: (
        nn.Sequential(nn.Linear(6, 8), Block(8, False, False), nn.LayerNorm(8), nn.Linear(8, 3)),
        torch.zeros(2, 5, 6),
    ),
    "qk_norm": lambda: (
        nn.Sequential(nn.Linear(6, 8), Block(8, False, True), Block(8, False, True), nn.LayerNorm(8)),
        torch.zeros(2, 5, 6),
    ),
    # Wide: a layer whose units are all dead says nothing.
    "relu": lambda: (
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)),
        FEATURES,
    ),
    "lstm": lambda: (Chain(nn.LSTM(6, 4), First(), nn.LayerNorm(4), nn.Linear(4, 3)), FEATURES),
    "instance": lambda: (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.MaxPool2d(2), nn.Conv2d(4, 3, 3)),
        torch.zeros(2, 3, 12, 12),
    ),
}


class First(nn.Module):
    """First of several outputs."""

    def forward(self, outputs: tuple[Any, ...]) -> Any:
        return outputs[0]


@pytest.mark.parametrize("name", REFERENCED)
def test_scaling_laws_know_all_symmetries_of_whole_functions(name: str) -> None:
    # Slow reference: the null space of Euler products of many functions has one dimension for each symmetry.
    torch.manual_seed(0)
    model, example = REFERENCED[name]()
    probe = Probe(model, None, (example,), {}, DOUBLE, seed=0, real=False)
    with probe.opened():
        assert probe.try_out(1)
        products = euler_products(probe, lambda _: None, functions=len(probe.names) + 16)
        used = [column for column in range(len(probe.names)) if products.influential[column]]
        idle = set(range(len(probe.names))) - set(used)
        with probe.zeroed(idle):
            laws = ScalingLaws({column: probe.leaves[column] for column in used}, DOUBLE)
            laws.require_constant(probe.outputs(0, laws))
    matrix = torch.from_numpy(products.sums[:, used] / products.scales[used])
    singular = torch.linalg.svdvals(matrix)
    assert int((singular < 1e-9 * singular[0]).sum()) == len(used) - len(laws.symmetries.equations())


# ---------------------------------------------------------------- models of all sorts


class Wrapped(lightning.LightningModule):
    """A LightningModule around a network, with state that must not be copied."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Pass on."""
        out: Tensor = self.network(x)
        return out

    def __deepcopy__(self, memo: object) -> "Wrapped":
        raise AssertionError("copied")


def test_lightning_module_with_trainer() -> None:
    module = Wrapped(LayerNormMLP())
    module.trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert [group.name for group in find_groups(module, FEATURES)] == [f"network.{i}.weight" for i in (0, 3, 6)]


def test_eval_mode_and_frozen_parameters() -> None:
    model = ConvNet(width=2, scale_invariant=True).eval()
    model.norms[1].train()
    model.convs[2].requires_grad_(False)
    groups = find_groups(model, torch.zeros(2, 3, 8, 8))
    assert [group.name for group in groups] == [f"convs.{i}.weight" for i in (0, 1, 3)]
    assert [module for module in model.modules() if module.training] == [model.norms[1]]


def test_frozen_member_breaks_its_joint_group() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)).requires_grad_(False)
    model[0].weight.requires_grad_(True)
    with pytest.raises(ValueError, match="no scale-invariant group found"):
        find_groups(model, FEATURES)


def test_tied_weights_appear_once() -> None:
    model = LayerNormMLP()
    model[3].weight = model[0].weight
    assert names(find_groups(model, FEATURES)) == [("0.weight",), ("6.weight",)]


def test_a_head_tied_to_the_embedding_is_named_as_the_reason() -> None:
    model = nn.Sequential(nn.Embedding(8, 5), nn.LayerNorm(5), nn.Linear(5, 8, bias=False))
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match=r"no scale-invariant group .*0\.weight is 2\.weight as well: untied"):
        find_groups(model, torch.tensor([[3, 4, 5, 6], [7, 7, 3, 4]]))


def test_dropout_keeps_its_mask_between_comparisons() -> None:
    model = nn.Sequential(
        nn.Linear(6, 6, bias=False),
        nn.LayerNorm(6),
        nn.Dropout(0.5),
        nn.Linear(6, 6, bias=False),
        nn.LayerNorm(6),
    )
    assert names(find_groups(model, FEATURES)) == [("0.weight",), ("1.weight", "1.bias"), ("3.weight",)]


def test_layers_dropped_by_python_random() -> None:
    class Dropped(LayerNormMLP):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) * (1 + random.random())

    state = random.getstate()
    assert len(find_groups(Dropped(), FEATURES)) == 3
    assert random.getstate() == state


def test_zero_initialised_tensors_take_part() -> None:
    model = ResNet18(width=4)
    expected = names(find_groups(model, torch.zeros(2, 3, 16, 16)))
    for name, parameter in model.named_parameters():
        if "norm2" in name:
            nn.init.zeros_(parameter)
    assert names(find_groups(model, torch.zeros(2, 3, 16, 16))) == expected
    assert any("stages.1.0.norm2.weight" in group for group in expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_parameters(dtype: torch.dtype) -> None:
    model = ConvNet(width=2, scale_invariant=True).to(dtype)
    assert len(find_groups(model, torch.zeros(2, 3, 8, 8, dtype=dtype))) == 4
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_integer_input() -> None:
    class Text(Chain):
        def forward(self, x: Tensor) -> Any:
            assert x.dtype == torch.long
            assert 3 <= int(x.min()) <= int(x.max()) <= 7
            return super().forward(x)

    model = Text(nn.Embedding(8, 5), nn.LayerNorm(5), nn.Flatten(), nn.Linear(20, 3))
    tokens = torch.tensor([[3, 4, 5, 6], [7, 7, 3, 4]])
    assert names(find_groups(model, tokens)) == [("0.weight",)]


@pytest.mark.parametrize(
    "cast", [torch.Tensor.float, lambda x: x.to(torch.float32), lambda x: x.to(dtype=torch.float32)]
)
def test_bytes_cast_inside_the_model(cast: Callable[[Tensor], Tensor]) -> None:
    class Pixels(Chain):
        def forward(self, x: Tensor) -> Any:
            assert x.dtype == torch.uint8
            return super().forward(cast(x) / 255)

    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    assert len(find_groups(Pixels(ConvNet(width=2, scale_invariant=True)), images)) == 4


def test_buffers_that_a_forward_updates() -> None:
    class Counting(LayerNormMLP):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.ones(()))

        def forward(self, x: Tensor) -> Any:
            self.count.add_(1)
            for module in list(self)[:-1]:
                x = module(x)
            return x * self.count

    model = Counting()
    assert len(find_groups(model, FEATURES)) == 3
    assert model.count == 1


def test_constant_initialisation() -> None:
    model = LayerNormMLP()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    assert len(find_groups(model, FEATURES)) == 3


def test_filters_are_confirmed_by_scaling() -> None:
    class Ranked(nn.Module):
        """Batch norm times the rank of each filter's size: its gradient sees single filters as invariant."""

        def forward(self, x: Tensor) -> Tensor:
            ranks = x.detach().abs().amax(0).argsort().argsort()
            return F.batch_norm(x, None, None, training=True) * (1 + ranks)

    model = nn.Sequential(nn.Linear(6, 16, bias=False), Ranked(), nn.ReLU(), nn.Linear(16, 3))
    assert [(g.name, g.rows) for g in find_groups(model, FEATURES, "filter")] == [("0.weight", None)]


def test_several_inputs_and_inputs_without_batch() -> None:
    class Two(LayerNormMLP):
        def forward(self, x: Tensor, y: Tensor, offset: Tensor) -> Any:  # type: ignore[override]
            assert x.shape == y.shape == (len(x), 6)
            assert offset.shape == (6,)
            return super().forward(x * y + offset)

    assert len(find_groups(Two(), (FEATURES, FEATURES, torch.zeros(6)))) == 3


@dataclass
class Answer:
    """An output of named parts."""

    label: str
    logits: Tensor


@pytest.mark.parametrize(
    "pack",
    [
        lambda y: (torch.zeros(3, dtype=torch.long), [y]),
        lambda y: {"count": 1, "logits": y},
        lambda y: Answer("x", y),
        lambda y: y.square().sum(),
    ],
    ids=["nested", "dict", "dataclass", "scalar"],
)
def test_outputs_of_many_forms(pack: Callable[[Tensor], Any]) -> None:
    class Packing(LayerNormMLP):
        def forward(self, x: Tensor) -> Any:
            return pack(super().forward(x))

    assert len(find_groups(Packing(), FEATURES)) == 3


def test_compiled_model_runs_eagerly() -> None:
    def backend(*_: Any) -> Any:
        raise AssertionError("compiled")

    model = LayerNormMLP()
    model.compile(backend=backend)
    assert len(find_groups(model, FEATURES)) == 3
    wrapped: Any = torch.compile(LayerNormMLP(), backend=backend)
    assert names(find_groups(wrapped, FEATURES))[0] == ("_orig_mod.0.weight",)


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference", "autocast"],
)
def test_callers_context(context: Callable[[], Any]) -> None:
    with context():
        assert len(find_groups(LayerNormMLP(), torch.randn(2, 6, requires_grad=True))) == 3


@pytest.mark.parametrize("seed", range(4))
def test_result_does_not_depend_on_the_seed(seed: int) -> None:
    torch.manual_seed(seed)
    groups = find_groups(ResNet18(width=2), torch.zeros(2, 3, 8, 8), seed=seed)
    # Of a stage's stream the convolutions that write to it, rather than the norms before them.
    assert [len(group.parameters) for group in groups] == [3, 2, 1, 2, 1, *([4, 1, 5, 2, 1] * 3)]


# ---------------------------------------------------------------- no trace, and bad input


class Remembering(Chain):
    """Stores what it saw."""

    def forward(self, x: Tensor) -> Any:
        """Apply the modules and store the result."""
        self.last = super().forward(x)
        return self.last


class Failing(Remembering):
    """Fails after the norm layers have run."""

    def forward(self, x: Tensor) -> Any:
        """Fail."""
        super().forward(x)
        raise RuntimeError("boom")


@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_as_it_was(fails: bool) -> None:
    network = ConvNet(width=2, scale_invariant=True, eps=1e-3)
    model = (Failing if fails else Remembering)(network, nn.Dropout(0.5))
    network.norms[0].eval()
    network(torch.randn(4, 3, 8, 8)).sum().backward()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    attributes = [dict(vars(module)) for module in model.modules()]
    generators = torch.get_rng_state(), random.getstate()

    if fails:
        with pytest.raises(ValueError, match=r"Failing fails .* \(4, 3, 8, 8\).*boom") as caught:
            find_groups(model, torch.zeros(2, 3, 8, 8), "filter")
        assert isinstance(caught.value.__cause__, RuntimeError)
    else:
        assert find_groups(model, torch.zeros(2, 3, 8, 8), "filter")

    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert [dict(vars(module)) for module in model.modules()] == attributes
    assert network.norms[0].eps == 1e-3
    assert not network.norms[0].training
    assert model.training
    assert len(gradients) == 4
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name not in gradients)
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name])
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == tensors[name]
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize(
    ("model", "example", "options", "message"),
    [
        (LayerNormMLP(), FEATURES, {"granularity": "layer"}, "granularity must be one of .* got 'layer'"),
        (LayerNormMLP(), [FEATURES], {}, r"example_input must be .* got \['list'\]"),
        (LayerNormMLP(), (3,), {}, r"example_input must be .* got \['int'\]"),
        (LayerNormMLP(), torch.zeros(0, 6), {}, r"example_input must be .* got \[\(0, 6\)\]"),
        (LayerNormMLP(), torch.zeros(2, 5), {}, r"LayerNormMLP fails on random inputs of shape \(4, 5\)"),
        (LayerNormMLP().requires_grad_(False), FEATURES, {}, "no trainable parameter"),
        (nn.Sequential(nn.LazyLinear(3)), FEATURES, {}, "lazy parameters"),
        (nn.Embedding(4, 4), torch.zeros(2, dtype=torch.long), {}, "no scale-invariant group"),
    ],
)
def test_bad_input(model: nn.Module, example: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        find_groups(model, example, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda y: y.argmax(1), "no floating-point tensor"),
        (lambda y: y * float("nan"), "not finite"),
        (lambda y: y.detach(), "no output of the model depends"),
    ],
)
def test_useless_outputs(convert: Callable[[Tensor], Tensor], message: str) -> None:
    class Output(LayerNormMLP):
        def forward(self, x: Tensor) -> Any:
            return convert(super().forward(x))

    with pytest.raises(ValueError, match=message):
        find_groups(Output(), FEATURES)


def test_progress_bar_on_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    find_groups(LayerNormMLP(), FEATURES)
    find_groups(LayerNormMLP(), FEATURES, progress=False)
    assert capsys.readouterr().err == ""
    find_groups(LayerNormMLP(), FEATURES, progress=True)
    shown = capsys.readouterr().err
    assert "scale-invariant groups" in shown
    assert re.search(r"\d+%\|.*\| \d+:\d+ < ", shown), "no time left"
