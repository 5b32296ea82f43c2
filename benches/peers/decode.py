"""Peers of the attention of decoding: PyTorch's cuDNN and FlashAttention backends, queries of a block over all keys.

Run it right before or after `harness bench decode`, as attention.py. Keys and values take turns in the same way: a step's own
are not in the L2 cache when it begins. The time is that of a step.
"""

import sys

import torch
from timing import DEVICE, median_ms, report, report_machine
from torch.nn.attention import SDPBackend, sdpa_kernel

HEAD_DIM = 128
TURN_BYTES = 256 << 20
PEERS = (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION))


def rows_by_heads(batch, rows, heads):
    """Heads of a token side by side, as engines have them."""
    tensor = torch.randn(batch, rows, heads, HEAD_DIM, device=DEVICE, dtype=torch.bfloat16)
    return tensor.transpose(1, 2)


def decode(rows, heads, kv_heads, prefix, batch, repeats=20):
    several = f" × {batch}" if batch > 1 else ""
    case = f"decode {rows} rows d{HEAD_DIM} {heads}/{kv_heads} heads {prefix}{several}"
    keys = prefix + rows
    turns = -(-TURN_BYTES // (2 * 2 * batch * keys * kv_heads * HEAD_DIM))
    q = rows_by_heads(batch, rows, heads)
    caches = [[rows_by_heads(batch, keys, kv_heads) for _ in range(2)] for _ in range(turns)]

    def steps():
        for k, v in caches:
            torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    for name, backend in PEERS:
        with sdpa_kernel(backend):
            try:
                report(case, name, median_ms(steps, repeats) / turns)
            except RuntimeError as error:
                print(f"{case}: {name} refuses: {error}", file=sys.stderr)


def main():
    torch.manual_seed(1)
    report_machine()
    for rows in (33, 8):
        for prefix, batch in ((4096, 1), (32768, 1), (131072, 1), (4096, 16), (32768, 4)):
            decode(rows, 28, 4, prefix, batch)


if __name__ == "__main__":
    sys.exit(main())
