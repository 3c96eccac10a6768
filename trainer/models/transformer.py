"""The transformer block that the priors are made of, and the keys and values that it remembers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attention


class KeysValues:
    """What one block remembers of up to `size` tokens, so that each goes through it once.

    Only where no gradient is taken: later tokens are written beside earlier ones, in place. They
    may be those of the first samples alone.
    """

    def __init__(self, size: int) -> None:
        self.length = 0  # tokens so far
        self._size = size
        self._held: tuple[Tensor, Tensor] | None = None  # each [B, heads, size, head width]

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of new tokens, [B, heads, n, d] each; give those of all, in order."""
        if self._held is None:
            shape = (*k.shape[:2], self._size, k.shape[3])
            self._held = (k.new_empty(shape), v.new_empty(shape))
        first, self.length = self.length, self.length + k.shape[2]
        for held, new in zip(self._held, (k, v), strict=True):
            held[: len(new), :, first : self.length] = new
        keys, values = (held[: len(k), :, : self.length] for held in self._held)
        return keys, values

    def forget(self, length: int) -> None:
        """All tokens but the first `length`, which others may now follow."""
        self.length = length


class Block(nn.Module):
    """Pre-norm transformer block: masked self-attention, then a GELU MLP, four times as wide."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor, earlier: KeysValues | None = None, answers: int | None = None
    ) -> Tensor:
        """x [B, N, width]; mask bool, broadcastable to [B, heads, N, M], True where a key is seen.

        The M keys are those of x, after those that `earlier` remembers, which learns them too.
        With `answers` only so many of the last tokens go on; N of the mask and the output is that.
        """
        b, n, w = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(b, n, 3, self.heads, w // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, N, head width]
        if earlier is not None:
            k, v = earlier.extend(k, v)
        if answers is not None:
            q, x = q[:, :, n - answers :], x[:, n - answers :]
        attended = attention(q, k, v, mask)
        x = x + self.dropout(self.out(attended.transpose(1, 2).reshape(x.shape)))
        hidden = F.gelu(self.expand(self.norm_mlp(x)))
        out: Tensor = x + self.dropout(self.contract(hidden))
        return out

    def shrink_outputs(self, layers: int) -> None:
        """Let residual outputs start small, so that depth does not scale the signal (GPT-2)."""
        for layer in (self.out, self.contract):
            layer.weight.data.mul_((2 * layers) ** -0.5)


def causal_mask(keep: Tensor) -> Tensor:
    """Which keys each token sees: itself, and those before it that are kept.

    keep bool [B, N], True where a token is real. Returns bool [B, 1, N, N]. A padded token's own
    row must keep one key, or its softmax has none and gives NaN.
    """
    causal = keep.new_ones(keep.shape[1], keep.shape[1]).tril()
    diagonal = keep.new_ones(keep.shape[1]).diag()
    return ((causal & keep[:, None, :]) | diagonal)[:, None]


def initialise(model: nn.Module, layers: int) -> None:
    """Weights of linear layers that keep a signal's variance, and blocks that begin small."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Block):
            module.shrink_outputs(layers)
