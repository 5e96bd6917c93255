"""A small vision transformer, practical and scale-invariant."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_sphere.networks.frozen_head import freeze_head
from lit_sphere.networks.images import check_images, check_sizes

TokenNorm = Literal["layer", "rms"]


def _make_norm(kind: TokenNorm, eps: float, affine: bool, size: int) -> nn.Module:
    if kind == "layer":
        return nn.LayerNorm(size, eps=eps, elementwise_affine=affine)
    return nn.RMSNorm(size, eps=eps, elementwise_affine=affine)


class Transformer(nn.Module):
    """A vision transformer: patches and their positions as tokens, pre-norm blocks of attention and MLP, mean pooling.

    With ``scale_invariant`` no norm has affine parameters, no layer a bias, the head is frozen, and what each trained
    tensor computes is normalised before anything is added to it, with N the norm of a token and N_h that of one head:

    - tokens: x = N(W_e patch) + N(P), so that the positions' trained embedding P is scale-invariant as well;
    - attention: q = N_h(W_q N(x)), k = N_h(W_k N(x)), x ← x + N(W_o softmax(qkᵀ/√d) W_v N(x)). The weights of the
      softmax do not depend on W_v and W_o, so that what N takes is linear in each of them;
    - MLP: x ← x + N(W_2 gelu(N(W_1 N(x))));
    - logits: W_head N(mean of x over the tokens) + b.

    Each of the 6 · ``depth`` + 2 trained tensors is then scale-invariant by itself. So are the rows of P and, of W_q
    and W_k, all rows of one head together; no other part is.

    The practical version has affine norms at the inputs of attention, MLP and head only, and biases; everything is
    trained.

    Args:
        width: Size of a token.
        num_classes: Outputs.
        in_channels: Channels of the images.
        scale_invariant: Scale-invariant version, with the frozen head; otherwise everything is trained.
        head_norm: Frobenius norm of the frozen head's weight. Unused in the practical version.
        eps: Added to the variance by the norms. It breaks scale invariance slightly; identities are exact in float64
            with 1e-30.
        image_size: Height and width of the images; taken from the data on the command line.
        patch_size: Height and width of the patches; divides ``image_size``. Digits are 8×8 pixels.
        depth: Number of blocks.
        heads: Number of heads of the attention; divides ``width``, into three or more: of two values layer norm
            leaves but their order, which has no gradient.
        norm: ``layer`` or ``rms``, of tokens and heads.

    Raises:
        ValueError: If a size is less than 1 or does not divide another, ``norm`` unknown, or ``eps`` or ``head_norm``
            not positive.
    """

    def __init__(
        self,
        width: int = 64,
        num_classes: int = 10,
        in_channels: int = 3,
        scale_invariant: bool = False,
        head_norm: float = 10.0,
        eps: float = 1e-5,
        image_size: int = 32,
        patch_size: int = 4,
        depth: int = 2,
        heads: int = 2,
        norm: TokenNorm = "layer",
    ) -> None:
        super().__init__()
        check_sizes(eps, width=width, image_size=image_size, patch_size=patch_size, depth=depth, heads=heads)
        if image_size % patch_size:
            fit = ", ".join(str(n) for n in range(1, image_size + 1) if image_size % n == 0)
            raise ValueError(f"patch_size must divide the images' {image_size} pixels, got {patch_size}; {fit} do")
        if width % heads or width < 3 * heads:
            fit = ", ".join(str(n) for n in range(1, width // 3 + 1) if width % n == 0)
            remedy = f"{fit} do" if fit else "take a width of 3 at least"
            raise ValueError(f"heads must divide width {width} into three or more each, got {heads}; {remedy}")
        if norm not in get_args(TokenNorm):
            raise ValueError(f"norm must be one of {', '.join(get_args(TokenNorm))}, got {norm!r}")
        self.image_shape = (in_channels, image_size, image_size)
        bias = not scale_invariant
        normalised: Callable[[int], nn.Module] = partial(_make_norm, norm, eps, not scale_invariant)
        after = normalised if scale_invariant else nn.Identity
        self.patch_size = patch_size
        self.patches = nn.Linear(in_channels * patch_size**2, width, bias=bias)
        self.positions = nn.Parameter(torch.empty((image_size // patch_size) ** 2, width))
        nn.init.kaiming_uniform_(self.positions, a=math.sqrt(5))  # rows as long as those of a linear layer
        self.patch_norm, self.position_norm = after(width), after(width)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(_Attention(width, heads, bias, normalised, after), _MLP(width, bias, normalised, after))
                for _ in range(depth)
            )
        )
        self.norm = normalised(width)
        self.head = nn.Linear(width, num_classes)
        if scale_invariant:
            freeze_head(self.head, head_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, image_size, image_size) to logits (N, num_classes)."""
        check_images(x, self)
        patches = F.unfold(x, self.patch_size, stride=self.patch_size).transpose(1, 2)
        tokens = self.patch_norm(self.patches(patches))
        tokens = self.blocks(tokens + self.position_norm(self.positions))
        logits: Tensor = self.head(self.norm(tokens.mean(1)))
        return logits


class _Attention(nn.Module):
    """Residual self-attention over tokens (N, T, width)."""

    def __init__(
        self,
        width: int,
        heads: int,
        bias: bool,
        normalised: Callable[[int], nn.Module],
        after: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm = normalised(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))
        self.query_norm, self.key_norm = after(width // heads), after(width // heads)
        self.out_norm = after(width)

    def forward(self, x: Tensor) -> Tensor:
        inputs = self.norm(x)
        query, key, value = (
            layer(inputs).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        query, key = self.query_norm(query), self.key_norm(key)
        # Written out, since torch's fused attention cannot be differentiated twice on a CPU.
        weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return x + self.out_norm(self.out(mixed))  # type: ignore[no-any-return]


class _MLP(nn.Module):
    """Residual MLP, of twice the width inside, for each token by itself."""

    def __init__(
        self, width: int, bias: bool, normalised: Callable[[int], nn.Module], after: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.norm = normalised(width)
        self.first, self.second = nn.Linear(width, 2 * width, bias=bias), nn.Linear(2 * width, width, bias=bias)
        self.first_norm, self.second_norm = after(2 * width), after(width)
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.gelu(self.first_norm(self.first(self.norm(x))))
        return x + self.second_norm(self.second(hidden))  # type: ignore[no-any-return]
