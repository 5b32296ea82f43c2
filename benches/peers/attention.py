"""Peers of the attention kernels: PyTorch's cuDNN attention and FlexAttention, on the standard workloads.

Run it on the GPU under test right before or after `harness bench attention`, so that both see the same machine. Output
and argument are those of timing.py.
"""

import sys

import torch
from timing import DEVICE, median_ms, normal, report, report_machine
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

def cudnn_dense(heads, tokens, head_dim, causal, repeats=20, batch=1):
    q, k, v = (normal(heads, tokens, head_dim, batch) for _ in range(3))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        ms = median_ms(
            lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal), repeats
        )
    kind = "causal" if causal else "full"
    several = f" × {batch}" if batch > 1 else ""
    report(f"dense {kind} d{head_dim} {heads} heads {tokens}{several}", "cudnn", ms)


def cudnn_gqa(heads, kv_heads, tokens, batch, head_dim=128, repeats=20):
    q, k, v = (normal(h, tokens, head_dim, batch) for h in (heads, kv_heads, kv_heads))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        ms = median_ms(
            lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), repeats
        )
    several = f" × {batch}" if batch > 1 else ""
    report(f"dense causal d{head_dim} {heads}/{kv_heads} heads {tokens}{several}", "cudnn", ms)


def flex(case, heads, tokens, head_dim, mask, repeats=10):
    q, k, v = (normal(heads, tokens, head_dim) for _ in range(3))
    compiled = torch.compile(flex_attention, dynamic=False)
    report(case, "flex", median_ms(lambda: compiled(q, k, v, block_mask=mask), repeats))


def a_shape_mask(tokens, sink, local):
    def keep(b, h, q, k):
        return (k <= q) & ((q - k < local) | (k < sink))

    return create_block_mask(keep, None, None, tokens, tokens, device=DEVICE, _compile=True)


def causal(b, h, q, k):
    return k <= q


def standard_blocks(row, density):
    """Diagonal block, block 0 and evenly spaced others: the same rule as `workloads::blocks`."""
    count = max(1, -(-int(density * 1_000_000) * (row + 1) // 1_000_000))
    return [row] if count == 1 else [i * row // (count - 1) for i in range(count)]


def block_sparse_mask(tokens, density, block=128):
    rows = tokens // block
    full_counts = torch.zeros(1, 1, rows, dtype=torch.int32)
    full_indices = torch.zeros(1, 1, rows, rows, dtype=torch.int32)
    counts = torch.ones(1, 1, rows, dtype=torch.int32)
    indices = torch.zeros(1, 1, rows, rows, dtype=torch.int32)
    for row in range(rows):
        below = [b for b in standard_blocks(row, density) if b != row]
        full_counts[0, 0, row] = len(below)
        full_indices[0, 0, row, : len(below)] = torch.tensor(below, dtype=torch.int32)
        indices[0, 0, row, 0] = row
    tensors = (t.to(DEVICE) for t in (counts, indices, full_counts, full_indices))
    return BlockMask.from_kv_blocks(*tensors, BLOCK_SIZE=block, mask_mod=causal)


def main():
    torch.manual_seed(1)
    report_machine()
    for tokens in (8192, 16384):
        for is_causal in (True, False):
            cudnn_dense(16, tokens, 128, is_causal)
            cudnn_dense(32, tokens, 64, is_causal)
    for is_causal in (True, False):
        cudnn_dense(16, 8192, 128, is_causal, batch=2)
    for tokens in (1024, 2048, 4096):
        cudnn_gqa(32, 8, tokens, 1)
        cudnn_gqa(32, 8, tokens, 16384 // tokens)
    cudnn_dense(32, 131072, 128, True, repeats=3)
    flex("a-shape 128/3968 d128 32 heads 131072", 32, 131072, 128, a_shape_mask(131072, 128, 3968), 5)
    flex("block-sparse 128x128 0.125 d128 16 heads 32768", 16, 32768, 128, block_sparse_mask(32768, 0.125))


if __name__ == "__main__":
    sys.exit(main())
