"""find_groups: what it finds, on which models, and that it leaves no trace."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_sphere.groups import Group, find_groups
from lit_sphere.groups.null_space import _extreme_rays, minimal_groups
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
    with pytest.raises(ValueError, match=r"no scale-invariant group found in Sequential: none of its \d+ .*Put"):
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
    null = torch.tensor([[1.0, 1, 2, 0, 0], [0, 0, 0, 1, 1]], dtype=torch.float64)
    matrix = torch.randn(21, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = matrix - matrix @ torch.linalg.pinv(null) @ null
    assert minimal_groups(matrix, torch.ones(5, dtype=torch.float64)) == [(3, 4)]


@st.composite
def symmetries(draw: st.DrawFn) -> tuple[int, list[tuple[int, ...]], list[list[int]], int]:
    """Columns, disjoint groups in them, mixed-sign exponents on the columns left, a seed."""
    sizes = draw(st.lists(st.integers(2, 5), min_size=1, max_size=4))
    columns = draw(st.permutations(range(sum(sizes) + draw(st.integers(2, 6)))))
    ends = list(itertools.accumulate(sizes))
    groups = sorted(tuple(sorted(columns[end - size : end])) for end, size in zip(ends, sizes, strict=True))
    rest = columns[ends[-1] :]
    mixed = [0] * len(columns)
    for column in rest:
        mixed[column] = draw(st.sampled_from([-2, -1, 0, 1, 2]))
    return len(columns), groups, [mixed], draw(st.integers(0, 2**16))


@settings(max_examples=60, deadline=None)
@given(symmetries())
def test_groups_are_read_off_a_smeared_null_space(
    case: tuple[int, list[tuple[int, ...]], list[list[int]], int],
) -> None:
    count, groups, mixed, seed = case
    assume(min(mixed[0]) < 0 < max(mixed[0]))
    generator = torch.Generator().manual_seed(seed)
    rows = [[float(column in group) for column in range(count)] for group in groups] + mixed
    null = torch.tensor(rows, dtype=torch.float64)
    matrix = torch.randn(count + 16, count, generator=generator, dtype=torch.float64)
    matrix = matrix - matrix @ torch.linalg.pinv(null) @ null
    # Tensors of very different weight: tiny layer scales beside large embeddings.
    scales = matrix.square().mean(0).sqrt().clamp(min=1e-3)
    assert sorted(minimal_groups(matrix, scales)) == groups


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**16))
def test_extreme_rays_equal_brute_force(rank: int, extra: int, seed: int) -> None:
    entries = torch.randint(-2, 3, (rank, extra), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [[int(i == j) for j in range(rank)] + entries[i] for i in range(rank)]
    found = {tuple(value > 0 for value in ray) for ray in _extreme_rays(rows, range(rank), rank + extra)}
    # Reference: non-negative vectors of least support, from every choice of rank − 1 columns set to zero.
    matrix = torch.tensor(rows, dtype=torch.float64)
    supports = set()
    for zeros in itertools.combinations(range(rank + extra), rank - 1):
        left = matrix[:, list(zeros)]
        if zeros and torch.linalg.matrix_rank(left) < rank - 1:
            continue
        weights = torch.linalg.svd(left, full_matrices=True)[0][:, -1] if zeros else torch.ones(1).double()
        vector = weights @ matrix
        vector = vector * vector[vector.abs().argmax()].sign()
        if vector.min() > -1e-9:
            supports.add(tuple((vector > 1e-9).tolist()))
    assert found == supports


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
    assert [len(group.parameters) for group in groups] == [3, 2, 1, 2, 1, *([6, 1, 3, 2, 1] * 3)]


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
        (LayerNormMLP(), (FEATURES, 3), {}, r"example_input must be .* got \[\(2, 6\), 'int'\]"),
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
    assert "scale-invariant groups" in capsys.readouterr().err
