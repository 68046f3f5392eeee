"""softmax(QKᵀ / √d)·V on a CPU: the fused kernel of PyTorch, or the formula in chunks if that is faster.

In bfloat16 without AMX the fused kernel is two to four times slower than the formula, unless there are few scores. In float32 with AVX-512
and many queries and keys it takes half as long again as the formula with oneDNN's matrix products.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu.threads import omp_wait_is_passive
from daguerre.nn.torch_private import cpu_has

HAS_AMX = cpu_has("amx_tile")  # queried at import because torch.compile cannot trace it
SDPA_MAX_SCORES = 1 << 15  # B·heads·L·M up to which the fused kernel is always fastest
MIN_TOKENS_ONEDNN = 512  # queries and keys from which oneDNN's products are faster in float32
MAX_KEYS_TRAINING = 256  # keys up to which two plain products beat the fused kernel in bfloat16 training
SCORES_PER_CHUNK = 1 << 20  # scores computed at a time, so that they stay in the cache


def cpu_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by the fastest algorithm for these shapes; arguments and result as for `nn.attention.attention`."""
    if q.shape[:-1].numel() * k.shape[-2] <= SDPA_MAX_SCORES:
        return F.scaled_dot_product_attention(q, k, v)
    training = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if q.dtype == torch.bfloat16 and training and k.shape[-2] <= MAX_KEYS_TRAINING:
        scores = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1)  # (B, heads, L, M)
        return scores.to(v.dtype) @ v
    if q.dtype == torch.bfloat16 and not training and not HAS_AMX:
        return chunked_attention(q, k, v)
    large = q.dtype == torch.float32 and not training and min(q.shape[-2], k.shape[-2]) >= MIN_TOKENS_ONEDNN
    # torch.compile cannot trace the last two queries, so a compiled graph keeps the fused kernel.
    if large and not torch.compiler.is_compiling() and cpu_linear.prefers_onednn(q.dtype) and omp_wait_is_passive():
        return onednn_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, scores_per_chunk: int = SCORES_PER_CHUNK) -> Tensor:
    """The formula for some queries of one head, or for some whole heads, at a time; without gradients."""
    (_, _, L, d), M = q.shape, k.shape[-2]
    rows, heads = max(1, min(L, scores_per_chunk // M)), max(1, scores_per_chunk // (L * M))
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    tensors = y.flatten(0, 1), (q * d**-0.5).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)  # (B·heads, L or M, d)
    for y_heads, q_heads, k_heads, v_heads in zip(*(tensor.split(heads) for tensor in tensors), strict=True):
        for y_rows, q_rows in zip(y_heads.split(rows, dim=1), q_heads.split(rows, dim=1), strict=True):
            torch.bmm((q_rows @ k_heads.transpose(1, 2)).softmax(dim=-1), v_heads, out=y_rows)
    return y


def onednn_attention(q: Tensor, k: Tensor, v: Tensor, scores_per_chunk: int = SCORES_PER_CHUNK) -> Tensor:
    """The formula for some queries of one head at a time; both products are linear layers with keys and values as weights."""
    rows = max(1, scores_per_chunk // k.shape[-2])
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    scaled = torch.mul(q, q.shape[-1] ** -0.5).contiguous()
    for y_head, q_head, k_head, v_head in zip(*(tensor.flatten(0, 1) for tensor in (y, scaled, k, v)), strict=True):
        keys, values = k_head.contiguous(), v_head.t().contiguous()
        for y_rows, q_rows in zip(y_head.split(rows), q_head.split(rows), strict=True):
            y_rows.copy_(cpu_linear.linear(cpu_linear.linear(q_rows, keys).softmax(dim=-1), values))
    return y
