"""find_groups on small networks of timm, transformers and torchvision, against the null space of whole functions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from lit_sphere.groups import Group, GroupSearch, search_groups
from lit_sphere.groups.euler import euler_products
from lit_sphere.groups.precision import DOUBLE
from lit_sphere.groups.probe import Probe
from lit_sphere.groups.scaling_laws import ScalingLaws

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SEED = torch.Generator().manual_seed(0)
SMALL, IMAGES = (torch.randn(2, 3, size, size, generator=SEED) for size in (16, 32))
TOKENS = torch.randint(0, 50, (2, 8), generator=SEED)


def text(kind: str, **options: Any) -> nn.Module:
    import transformers

    config = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, **options}
    family = kind.removesuffix("LMHeadModel").removesuffix("ForCausalLM").removesuffix("EncoderModel")
    family = family.removesuffix("Model")
    made: nn.Module = getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**config))
    return made


def decoder(kind: str, **options: Any) -> nn.Module:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    return text(kind, **sizes, **options)


def vit(**options: Any) -> nn.Module:
    import timm

    sizes: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    made: nn.Module = timm.models.VisionTransformer(num_classes=5, **sizes, **options)
    return made


def of_timm(kind: str, **options: Any) -> nn.Module:
    import timm

    made: nn.Module = getattr(timm.models, kind)(num_classes=5, **options)
    return made


GPT2 = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16}
T5 = {"num_layers": 2, "num_heads": 2, "d_model": 16, "d_kv": 8, "d_ff": 32}
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2)}
CAIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
MIXER = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "num_blocks": 2}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
DENSE: dict[str, Any] = {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 8, "num_classes": 5}

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "gpt2_tied": (lambda: text("GPT2LMHeadModel", **GPT2), TOKENS),
    "gpt2": (lambda: text("GPT2LMHeadModel", tie_word_embeddings=False, **GPT2), TOKENS),
    "llama": (lambda: decoder("LlamaForCausalLM"), TOKENS),
    "qwen3": (lambda: decoder("Qwen3ForCausalLM", num_key_value_heads=1, head_dim=8), TOKENS),
    "olmo2": (lambda: decoder("Olmo2ForCausalLM"), TOKENS),
    "bert": (lambda: decoder("BertModel"), TOKENS),
    "t5": (lambda: text("T5EncoderModel", **T5), TOKENS),
    "vit": (vit, SMALL),
    "vit_qk_norm": (lambda: vit(qk_norm=True), SMALL),
    "vit_layer_scale": (lambda: vit(init_values=1e-6), SMALL),
    "cait": (lambda: of_timm("Cait", **CAIT), SMALL),
    "convnext": (lambda: of_timm("ConvNeXt", **CONVNEXT), IMAGES),
    "mixer": (lambda: of_timm("MlpMixer", **MIXER), SMALL),
    "swin": (lambda: of_timm("SwinTransformer", **SWIN), IMAGES),
    "densenet": (lambda: torchvision.models.DenseNet(**DENSE), IMAGES),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_laws_know_every_symmetry_and_each_group_holds(name: str) -> None:
    make, example = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = search_groups(model, example)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    probe = Probe(model, None, (example,), {}, DOUBLE, seed=1, real=False)
    with probe.opened():
        assert probe.try_out(1)
        # Slow reference: one dimension of the null space of many functions' Euler products for each symmetry.
        products = euler_products(probe, lambda _: None, functions=len(probe.names) + 16)
        used = [column for column in range(len(probe.names)) if products.influential[column]]
        with probe.zeroed(set(range(len(probe.names))) - set(used)):
            laws = ScalingLaws({column: probe.leaves[column] for column in used}, DOUBLE)
            laws.require_constant(probe.outputs(0, laws))
        singular = torch.linalg.svdvals(torch.from_numpy(products.sums[:, used] / products.scales[used]))
        assert int((singular < 1e-9 * singular[0]).sum()) == len(used) - len(laws.symmetries.equations())
        with torch.no_grad():
            plain = probe.outputs(0)
            for group in [*found.groups, *found.alternatives]:
                for factor in (2.0, 0.5):
                    with probe.scaled({probe.names.index(each): rows(group, each, factor) for each in group.names}):
                        for before, after in zip(plain, probe.outputs(0), strict=True):
                            torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9 * float(before.abs().max()))


def rows(group: Group, name: str, factor: float) -> float | Tensor:
    if group.rows is None:
        return factor
    parameter = group.parameters[group.names.index(name)]
    factors = torch.ones(len(parameter), *[1] * (parameter.dim() - 1), dtype=torch.float64)
    factors[group.rows] = factor
    return factors


def of(name: str) -> GroupSearch:
    make, example = NETWORKS[name]
    torch.manual_seed(0)
    return search_groups(make(), example)


def names(search: GroupSearch) -> set[str]:
    return {name for group in search.groups for name in group.names}


def test_matrices_are_taken_rather_than_gains() -> None:
    qwen = of("qwen3")
    assert "model.layers.0.self_attn.o_proj.weight" in names(qwen)
    assert "model.layers.0.input_layernorm.weight" not in names(qwen)
    assert any("model.layers.0.input_layernorm.weight" in group.names for group in qwen.alternatives)
    for scaled in ("vit_layer_scale", "cait"):
        found = of(scaled)
        assert {f"blocks.{i}.{part}.weight" for i in (0, 1) for part in ("attn.proj", "mlp.fc2")} <= names(found)
        assert not any("gamma" in name for name in names(found))
        assert any("gamma" in name for group in found.alternatives for name in group.names)


def test_queries_and_keys_are_rows_of_one_tensor() -> None:
    parts = [group for group in of("vit_qk_norm").groups if group.rows is not None]
    assert [(group.names[0], group.rows) for group in parts] == [
        (f"blocks.{i}.attn.qkv.weight", slice(0, 32)) for i in (0, 1)
    ]


def test_tied_language_models_have_no_exact_group_and_t5_trains_on() -> None:
    assert not of("gpt2_tied").groups
    make, example = NETWORKS["t5"]
    model = make()
    search_groups(model, example)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())
    model(example).last_hidden_state.sum().backward()


def test_masks_that_numpy_draws_are_the_same_in_every_forward() -> None:
    import transformers

    kind: Any = transformers.Wav2Vec2Config
    config = kind(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8),
        conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, mask_time_prob=0.5, mask_time_length=2, layerdrop=0.0,
    )  # fmt: skip
    model = transformers.Wav2Vec2Model(config)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    found = search_groups(model, torch.randn(2, 400))
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]
    assert len(found.groups) >= 2


@pytest.mark.parametrize("seed", range(4))
def test_experts_that_run_in_float32_only(seed: int) -> None:
    torch.manual_seed(seed)
    model = decoder("MixtralForCausalLM", num_key_value_heads=1, num_local_experts=3)
    writers = {
        f"model.layers.{i}.{part}" for i in (0, 1) for part in ("self_attn.o_proj.weight", "mlp.experts.down_proj")
    }
    tokens = torch.tensor([[0, 3, 4, 5, 6, 7, 8, 0], [9, 0, 11, 12, 13, 14, 15, 16]])  # 0 pads: its embedding is zero
    assert names(search_groups(model, tokens)) == {"model.embed_tokens.weight", *writers}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_switches_of_the_libraries(reentrant: bool) -> None:
    model: Any = decoder("LlamaForCausalLM")
    expected = names(search_groups(model, TOKENS))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert names(search_groups(model, TOKENS)) == expected
    net: Any = vit()
    expected = names(search_groups(net, SMALL))
    net.set_grad_checkpointing()
    assert names(search_groups(net, SMALL)) == expected
