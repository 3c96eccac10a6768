"""Attention by either way is the same function."""

import pytest
import torch
from torch.nn import functional as F

from trainer.models.attention import attention, written_out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(5, 7), (192, 193)])  # written out, and fused
def test_equals_its_three_products(queries, keys, masked):
    torch.manual_seed(0)
    q = torch.randn(1, 2, queries, 8, requires_grad=True)
    k, v = (torch.randn(1, 2, keys, 8, requires_grad=True) for _ in range(2))
    mask = (torch.arange(keys) % 3 != 1)[None, None, None] if masked else None
    ours, products = attention(q, k, v, mask), written_out(q, k, v, mask)
    torch.testing.assert_close(ours, products, atol=1e-5, rtol=1e-4)
    assert torch.equal(ours, products) is (queries == 5)
    with torch.no_grad():
        torch.testing.assert_close(attention(q, k, v, mask), products, atol=1e-5, rtol=1e-4)
    weights = torch.randn_like(ours)
    found, expected = (
        torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (ours, products)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_equals_torchs_attention(masked):
    torch.manual_seed(0)
    q = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 3, 7, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.rand(2, 1, 5, 7) > 0.4
    mask[..., 0] = True
    chosen = mask if masked else None
    ours = attention(q, k, v, chosen)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=chosen)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    ours_grads = torch.autograd.grad((ours * weights).sum(), (q, k, v))
    theirs_grads = torch.autograd.grad((theirs * weights).sum(), (q, k, v))
    for ours_grad, theirs_grad in zip(ours_grads, theirs_grads, strict=True):
        torch.testing.assert_close(ours_grad, theirs_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_masked_key_has_no_weight_in_half_precision(dtype):
    q, k = torch.ones(1, 1, 1, 4, dtype=dtype), torch.ones(1, 1, 2, 4, dtype=dtype)
    v = torch.tensor([[1.0], [100.0]], dtype=dtype).expand(1, 1, 2, 1)
    out = attention(q, k, v, torch.tensor([[[[True, False]]]]))
    assert out.item() == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("largest", [40.0, 4000.0])
def test_large_queries_and_keys_give_no_nan(dtype, largest):
    """Their products reach 10⁵ and 10⁹: fp16 ends at 65,504."""
    torch.manual_seed(0)
    q, k = (largest * torch.ones(1, 2, 3, 64, dtype=dtype) for _ in range(2))
    k = k * torch.tensor([1.0, 0.5, -1.0], dtype=dtype)[:, None]
    q, k = q.requires_grad_(), k.requires_grad_()
    v = torch.randn(1, 2, 3, 64, dtype=dtype)
    out = attention(q, k, v)
    assert out.dtype == dtype
    assert torch.equal(out, v[:, :, :1].expand_as(out))  # the first key is by far the nearest
    out.sum().backward()
    assert q.grad.isfinite().all()
    assert k.grad.isfinite().all()
