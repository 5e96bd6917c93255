"""Networks made scale-invariant: what is trained is on the sphere, the rest is frozen with a reason."""

import copy
import json
import pickle
import shlex
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torchvision
import yaml
from conftest import LitSphere
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from lit_sphere.conversion import Conversion, How, apply_plan, make_scale_invariant
from lit_sphere.data import Digits
from lit_sphere.groups import find_groups
from lit_sphere.modules import SIConvNet, SphereModule
from lit_sphere.networks import ConvNet, Resized

IMAGES = torch.zeros(2, 3, 16, 16)
TOKENS = torch.arange(16).view(2, 8) % 11


class Block(nn.Module):
    """ConvNeXt's, with layer scale: nothing of the branch is seen at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.narrow(F.gelu(self.wide(y)))
        return cast(Tensor, x + y.permute(0, 3, 1, 2))


def conv_next() -> nn.Module:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8))
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), Block(8), Block(8), pool, nn.Linear(8, 10))


class Attention(nn.Module):
    """nanoGPT's: one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in self.c_attn(x).chunk(3, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return cast(Tensor, self.c_proj(y.transpose(1, 2).flatten(2)))


class GPT(nn.Module):
    """A nanoGPT of one block, whose head is the embedding."""

    def __init__(self, is_tied: bool = True, width: int = 16) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, width), nn.Embedding(8, width)
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), Attention(width, 2), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, 11, bias=False)
        if is_tied:
            self.wte.weight = self.lm_head.weight

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return {"logits": self.lm_head(self.ln_f(x))}


def mlp(*widths: int) -> nn.Module:
    layers = [layer for pair in pairwise((3 * 16 * 16, *widths)) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def vit(side: int = 16, patch: int = 8) -> nn.Module:
    return torchvision.models.VisionTransformer(  # type: ignore[no-any-return]
        image_size=side, patch_size=patch, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10
    )


class Residual(nn.Module):
    """One residual branch whose last gain starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        nn.init.zeros_(self.norm.weight)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return cast(Tensor, self.head((x + self.norm(self.conv(x))).mean((2, 3))))


class Recurrent(nn.Module):
    """Keeps its weights in a list of its own, as recurrent modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(48, 8, batch_first=True), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.lstm(x.reshape(len(x), 16, 48))[0][:, -1]))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP": partial(mlp, 16, 16, 10),
    "ViT": vit,
    "ConvNeXt": conv_next,
    "GPT": GPT,
    "GPT with a head": partial(GPT, is_tied=False),
    "LSTM": Recurrent,
}


def made(name: str) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    return NETWORKS[name](), TOKENS if name.startswith("GPT") else IMAGES


def logits(network: Callable[..., Any], inputs: Tensor) -> Tensor:
    output = network(inputs)
    return cast(Tensor, output["logits"] if isinstance(output, dict) else output)


def actions(conversion: Conversion) -> dict[str, str]:
    return {each.name: each.action for each in conversion.tensors}


SPHERE = {"kept", "length fixed", "output normalised"}


@pytest.mark.parametrize("how", ["weights", "activations"])
@pytest.mark.parametrize("name", NETWORKS)
def test_all_that_is_trained_is_scale_invariant_afterwards(name: str, how: How) -> None:
    network, example = made(name)
    matrices = {n for n, p in network.named_parameters() if sum(size > 1 for size in p.shape) > 1}
    conversion = make_scale_invariant(network, example, how)
    trained = {p for p in network.parameters() if p.requires_grad}
    assert trained == {p for group in find_groups(network, example) for p in group.parameters}
    on_sphere = {n for n, action in actions(conversion).items() if action in SPHERE}
    heads = {n for n, action in actions(conversion).items() if action == "head"}
    assert len(trained) == len(on_sphere)
    assert on_sphere | heads == matrices, "no matrix is lost, and nothing else is trained"
    assert len(heads) == (name != "GPT"), "where the head is the embedding as well, it is no head"
    assert len(conversion.table().splitlines()) == len(conversion.tensors)
    assert all(each.reason for each in conversion.tensors)


def timm_conv_next() -> tuple[nn.Module, Tensor]:
    timm = pytest.importorskip("timm")
    return timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=10), torch.zeros(2, 3, 32, 32)


def gpt_2() -> tuple[nn.Module, Tensor]:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 11, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config), TOKENS


def resnet() -> tuple[nn.Module, Tensor]:
    blocks = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(blocks, [1, 1, 1, 1], num_classes=10, zero_init_residual=True), IMAGES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "counts"),
    [
        (resnet, {"kept": 12, "head": 1, "set to 1": 4, "frozen": 21}),
        (timm_conv_next, {"kept": 11, "length fixed": 5, "head": 1, "set to 1": 4, "frozen": 35}),
        (gpt_2, {"length fixed": 10, "frozen": 18}),
    ],
)
def test_networks_of_libraries(make: Callable[[], tuple[nn.Module, Tensor]], counts: dict[str, int]) -> None:
    torch.manual_seed(0)
    network, example = make()
    conversion = make_scale_invariant(network, example)
    assert Counter(actions(conversion).values()) == counts
    trained = {p for p in network.parameters() if p.requires_grad}
    assert trained == {p for group in find_groups(network, example) for p in group.parameters}


def test_fixed_lengths_change_nothing_of_the_function() -> None:
    network, tokens = made("GPT")
    before = logits(network, tokens)
    conversion = make_scale_invariant(network, tokens)
    assert set(actions(conversion).values()) == {"length fixed", "frozen"}
    torch.testing.assert_close(logits(network, tokens), before, rtol=1e-5, atol=1e-6)
    assert network.wte.weight.equal(network.lm_head.weight), "they stay tied"
    assert network.wte.parametrizations.weight.original is network.lm_head.parametrizations.weight.original
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(3 if p.requires_grad else 1)
    torch.testing.assert_close(logits(network, tokens), before, rtol=1e-5, atol=1e-6)


def test_normalised_outputs_have_unit_variance() -> None:
    network, images = made("MLP")[0], torch.randn(32, 3, 16, 16)
    make_scale_invariant(network, IMAGES, "activations")
    hidden = network[:2](images)
    torch.testing.assert_close(hidden.var(1, correction=0), torch.ones(32), rtol=1e-3, atol=0)
    assert not network[1].bias.any()
    convolution: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 10))
    make_scale_invariant(convolution, IMAGES, "activations")
    channels = convolution[0](images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.var(1, correction=0), torch.ones(4), rtol=1e-3, atol=0)
    assert "0.output_norm.running_var" in convolution.state_dict()


def test_the_head_is_frozen_at_its_norm() -> None:
    network, example = made("GPT with a head")
    conversion = make_scale_invariant(network, example, head_norm=3.0)
    assert actions(conversion)["lm_head.weight"] == "head"
    head = network.get_parameter("lm_head.weight")
    assert head.norm().item() == pytest.approx(3, rel=1e-6)
    assert not head.requires_grad


def test_of_several_linear_maps_in_a_row_the_last_is_the_head() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    assert [n for n, a in actions(make_scale_invariant(network, torch.zeros(2, 4))).items() if a == "head"] == [
        "2.weight"
    ]


def test_each_output_has_its_head() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x = torch.relu(self.body(x))
            return self.a(x), self.b(x), x

    found = actions(make_scale_invariant(Two(), torch.zeros(2, 4)))
    assert [n for n, action in found.items() if action == "head"] == ["a.weight", "b.weight"]


@pytest.mark.parametrize("make", [conv_next, Residual])
def test_closed_gates_are_opened(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = make()
    conversion = make_scale_invariant(network, IMAGES)
    opened = {n for n, action in actions(conversion).items() if action == "set to 1"}
    assert opened == ({"1.gamma", "2.gamma"} if make is conv_next else {"norm.weight"})
    for name in opened:
        assert network.get_parameter(name).eq(1).all()
        assert not network.get_parameter(name).requires_grad


def test_gates_stay_as_they_are_where_they_are_trained() -> None:
    network = Residual()
    conversion = make_scale_invariant(network, IMAGES, free="train")
    assert not network.norm.weight.any()
    assert network.norm.weight.requires_grad
    assert {n for n, action in actions(conversion).items() if action == "free"} >= {"head.bias", "norm.bias"}


def test_a_zero_head_is_drawn_anew() -> None:
    network, example = made("ViT")
    assert not network.heads.head.weight.any()
    conversion = make_scale_invariant(network, example)
    (head,) = [each for each in conversion.tensors if each.action == "head"]
    assert head.reason == "the last linear map, frozen at norm 10; was zero, drawn anew"
    assert network.heads.head.weight.norm().item() == pytest.approx(10, rel=1e-6)
    assert logits(network, torch.randn(4, 3, 16, 16)).std(0).min() > 1e-3


def test_nothing_is_changed_where_all_is_scale_invariant() -> None:
    torch.manual_seed(0)
    network = ConvNet(4, scale_invariant=True)
    before = copy.deepcopy(network.state_dict())
    conversion = make_scale_invariant(network, IMAGES)
    assert not conversion.is_changed
    assert str(conversion) == "ConvNet: scale-invariant already, nothing was changed"
    assert network.state_dict().keys() == before.keys()
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    converted, example = made("ViT")
    make_scale_invariant(converted, example)
    assert not make_scale_invariant(converted, example).is_changed


def test_only_what_is_not_scale_invariant_is_touched() -> None:
    torch.manual_seed(0)
    network = ConvNet(4)
    conversion = make_scale_invariant(network, IMAGES)
    assert {n: a for n, a in actions(conversion).items() if a != "frozen"} == {
        **{f"convs.{i}.weight": "kept" for i in range(4)},
        "head.weight": "head",
    }
    assert "6,156 of 6,606 trained weights are on the sphere" in str(conversion)


def test_what_is_parametrised_otherwise_is_frozen() -> None:
    class Symmetric(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.triu() + x.triu(1).T

    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    parametrize.register_parametrization(network[2], "weight", Symmetric())
    found = actions(make_scale_invariant(network, torch.zeros(2, 4)))
    assert found["2.parametrizations.weight.original"] == "frozen"
    assert found["0.weight"] == "length fixed"
    assert not network.get_parameter("2.parametrizations.weight.original").requires_grad


@pytest.mark.parametrize("how", ["weights", "activations"])
@pytest.mark.parametrize("name", ["ViT", "ConvNeXt", "GPT"])
def test_a_plan_and_a_state_make_the_same_network(name: str, how: How) -> None:
    network, example = made(name)
    conversion = make_scale_invariant(network, example, how)
    plan = json.loads(json.dumps(conversion.plan))
    other = NETWORKS[name]()
    apply_plan(other, plan)
    other.load_state_dict(network.state_dict())
    inputs = torch.randn(4, 3, 16, 16) if example.is_floating_point() else TOKENS
    assert logits(other.eval(), inputs).equal(logits(network.eval(), inputs))
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in network.parameters()]


def test_the_plan_of_another_network_is_refused() -> None:
    plan = make_scale_invariant(*made("ViT")).plan
    with pytest.raises(ValueError, match="of class_token, which Residual does not have; give the network that was"):
        apply_plan(Residual(), plan)


@pytest.mark.parametrize("how", ["weights", "activations"])
def test_converted_networks_are_copied_pickled_and_compiled(how: How) -> None:
    network: nn.Module = made("GPT with a head")[0]
    inputs = torch.randint(11, (4, 8))
    make_scale_invariant(network, TOKENS, how)
    expected = logits(network, inputs)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(copy.deepcopy(network)))):
        assert logits(other, inputs).equal(expected)
        assert other.state_dict().keys() == network.state_dict().keys()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled, inputs), expected)


def test_half_precision() -> None:
    network, example = made("MLP")
    make_scale_invariant(network.bfloat16(), example.bfloat16())
    assert network(torch.randn(2, 3, 16, 16).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (nn.ReLU, {}, "ReLU has no trainable weight matrix, nothing that could be made scale-invariant"),
        (partial(nn.BatchNorm2d, 3), {}, "BatchNorm2d has no trainable weight matrix"),
        (partial(mlp, 10), {}, "Sequential has no weight matrix but its head"),
        (vit, {"how": "weight"}, "how must be one of weights, activations, got 'weight'"),
        (vit, {"free": "frozen"}, "free must be one of freeze, train, got 'frozen'"),
        (vit, {"head_norm": 0.0}, "head_norm must be positive and finite, got 0.0"),
        (partial(nn.LazyLinear, 3), {}, "LazyLinear has lazy parameters: run it once"),
        (partial(vit, 32), {}, r"the forward of VisionTransformer fails on .*Wrong image height"),
    ],
)
def test_bad_input_is_refused_in_one_line(make: Callable[[], nn.Module], options: Any, message: str) -> None:
    network = make()
    before = copy.deepcopy(network.state_dict()) if not isinstance(network, nn.LazyLinear) else {}
    with pytest.raises(ValueError, match=message) as caught:
        make_scale_invariant(network, IMAGES, **options)
    assert "\n" not in str(caught.value)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items() if before)


def module(**options: Any) -> SphereModule:
    torch.manual_seed(0)
    return SphereModule(Resized(vit(8, 4), channels=3), **{"elr": 1e-3, "convert": True, **options})


def trainer(epochs: int, folder: Path, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(
        max_epochs=epochs, logger=False, num_sanity_val_steps=0, default_root_dir=folder, **{**quiet, **options}
    )


def digits() -> Digits:
    return Digits(train_size=256, batch_size=64)


def test_the_module_trains_what_it_has_converted_on_the_sphere(tmp_path: Path) -> None:
    ours = module()
    trainer(1, tmp_path, enable_checkpointing=False).fit(ours, digits())
    assert ours.conversion is not None
    (sphere,) = cast(torch.optim.Optimizer, ours.optimizers()).param_groups
    assert sphere["elr"] == 1e-3
    assert set(sphere["params"]) == {p for p in ours.parameters() if p.requires_grad}
    norm = torch.cat([p.detach().flatten() for p in sphere["params"]]).norm().item()
    assert norm == pytest.approx(sphere["radius"], rel=1e-5)
    ours.trainer.save_checkpoint(tmp_path / "one.ckpt", weights_only=False)
    loaded = SphereModule.load_from_checkpoint(tmp_path / "one.ckpt", network=Resized(vit(8, 4), channels=3))
    images = torch.randn(4, 1, 8, 8)
    assert loaded.eval()(images).equal(ours.eval()(images))


def test_with_a_learning_rate_gains_and_biases_are_trained_too(tmp_path: Path) -> None:
    ours = module(lr=1e-2)
    trainer(1, tmp_path, enable_checkpointing=False).fit(ours, digits())
    _, rest = cast(torch.optim.Optimizer, ours.optimizers()).param_groups
    assert rest["lr"] == 1e-2
    assert any(p is ours.get_parameter("network.network.heads.head.bias") for p in rest["params"])


def test_in_the_whole_space_too(tmp_path: Path) -> None:
    ours = module(elr=None, optimizer=partial(torch.optim.SGD, lr=0.1, weight_decay=1e-3), convert="activations")
    trainer(1, tmp_path, enable_checkpointing=False).fit(ours, digits())
    assert ours.conversion is not None
    assert "output normalised" in actions(ours.conversion).values()


@pytest.mark.slow
def test_checkpoints_of_converted_modules_load_and_resume(tmp_path: Path) -> None:
    whole, first, resumed = module(), module(), module()
    trainers = [trainer(epochs, tmp_path, enable_checkpointing=False) for epochs in (2, 1, 2)]
    for ours, each, path in zip((whole, first, resumed), trainers, (None, None, tmp_path / "half.ckpt"), strict=True):
        torch.manual_seed(0)  # the head, zero at first, is drawn anew
        each.fit(ours, digits(), ckpt_path=path)
        each.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    for (name, value), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert value.equal(other), name
    loaded = SphereModule.load_from_checkpoint(tmp_path / "half.ckpt", network=Resized(vit(8, 4), channels=3))
    tested = [
        trainer(1, tmp_path, enable_checkpointing=False).test(each, digits(), verbose=False, ckpt_path=path)[0]
        for each, path in ((resumed, None), (loaded, None), (module(), tmp_path / "half.ckpt"))
    ]
    assert tested[0] == tested[1] == tested[2]


@pytest.mark.slow
@pytest.mark.parametrize("is_checked", [True, False])
def test_two_processes_train_the_converted_network(is_checked: bool, tmp_path: Path) -> None:
    ours = module()
    options: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
    two = trainer(1, tmp_path, enable_checkpointing=False, **options)
    if not is_checked:
        with pytest.warns(UserWarning, match="so that its weights do not come back: call check_trainable"):
            two.fit(ours, digits())
        return
    ours.check_trainable(digits())
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    two.fit(ours, digits())
    assert ours.conversion is not None
    for name, p in ours.named_parameters():
        assert p.equal(before[name]) != p.requires_grad, name


def test_of_a_ready_module_nothing_is_changed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = SIConvNet(width=4, in_channels=1, elr=1e-2, convert=True)
    trainer(1, tmp_path, enable_checkpointing=False).fit(ours, digits())
    assert ours.conversion is not None
    assert not ours.conversion.is_changed


VIT = shlex.split(
    "--model SphereModule --model.convert true --model.elr 1e-3 --model.network Resized --model.network.channels 3 "
    "--model.network.network torchvision.models.VisionTransformer --data.train_size 128 --wandb disabled"
)
SMALL = {"image_size": 8, "patch_size": 4, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
VIT += [each for name, value in SMALL.items() for each in (f"--model.network.network.{name}", str(value))]


@pytest.mark.slow
def test_the_command_trains_tests_resumes_and_interpolates(empty_folder: Path, lit_sphere: LitSphere) -> None:
    done = lit_sphere("fit", *VIT, "--trainer.max_epochs", "1", "--run", "run")
    assert done.status == 0, done.err
    assert "Resized made scale-invariant: " in done.out + done.err
    checkpoint = "run/checkpoints/last.ckpt"
    options = yaml.safe_load(Path("run/config.yaml").read_text())["model"]["init_args"]
    assert options["convert"] is True
    assert "norm_layer" not in options["network"]["init_args"]["network"]["init_args"], "a default that has no text"
    for command in (
        ("test", "--ckpt_path", checkpoint),
        ("fit", "--ckpt_path", checkpoint, "--trainer.max_epochs", "2", "--run", "run", "--wandb", "disabled"),
        ("interpolate", checkpoint, checkpoint, "--points", "3"),
        ("fit", "--ckpt_weights", checkpoint, "--trainer.max_epochs", "1", "--wandb", "disabled"),
    ):
        result = lit_sphere(*command)
        assert result.status == 0, result.err
    plain = lit_sphere("test", "--ckpt_path", checkpoint, "--model.convert", "false")
    assert plain.status == 2
    assert "of another architecture" in plain.err


def test_the_command_takes_functions_that_make_networks(empty_folder: Path, lit_sphere: LitSphere) -> None:
    network = shlex.split("--model.network torchvision.models.squeezenet1_1 --model.network.num_classes 10")
    args = shlex.split("--model SphereModule --model.elr 1e-3 --wandb disabled --model.convert")
    wrong = lit_sphere("fit", *args, "weights", *network)
    assert wrong.status == 1
    assert wrong.err.splitlines()[-1].startswith("lit-sphere: the forward of SqueezeNet fails on")
    unknown = lit_sphere("fit", *args, "weight", *network)
    assert unknown.status == 2
    assert "--model.convert" in unknown.err
    assert unknown.err.count("\n") == 1


def test_inputs_may_be_given_by_name() -> None:
    class Named(nn.Sequential):
        def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Any:
            assert mask is not None
            return cast(Any, super().forward)(tokens * mask)

    network = Named(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    conversion = make_scale_invariant(network, {"mask": torch.ones(2, 4), "tokens": torch.zeros(2, 4)})
    assert [each.action for each in conversion.tensors] == ["length fixed", "frozen", "head", "frozen"]
