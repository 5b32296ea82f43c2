"""Peers of `harness bench index` and `harness bench layer`: how the MInference authors find an index, in PyTorch, and
cuDNN's dense causal attention.

Both estimates are written from the published descriptions, with a loop over the query heads as in the authors' code, and
read the keys of a group in place instead of repeating them. What is counted ends where top-k has answered: neither the
sorting of the lists nor their conversion to blocks of each row block, without which their attention kernel cannot start.
Run it on the GPU under test right before or after `harness bench`, so that both see the same machine. Output and argument
are those of timing.py.
"""

import math
import sys

import torch
from attention import cudnn_gqa
from timing import DEVICE, median_ms, normal, report, report_machine
from torch.nn.attention import SDPBackend, sdpa_kernel

WINDOW = 64
FORCED_COLUMNS = 30
FORCED_SLASHES = 100
POOL = 64


def diagonal_sums(weights):
    """Sum over each diagonal of [rows, keys], from the furthest offset to 0: `keys` of them."""
    rows, keys = weights.shape
    zeros = torch.zeros(rows, rows, device=weights.device, dtype=weights.dtype)
    padded = torch.cat([zeros, weights, zeros], dim=1)
    # Row i begins i elements further right, so that a diagonal becomes a column; the first would lie before key 0.
    skewed = padded.as_strided((rows, keys), (padded.shape[1] + 1, 1), 1)
    return skewed.sum(0)


def vertical_slash(q, k, hidden, columns, slashes):
    """Key columns and slash offsets of one head: `q` is its last queries, `hidden` what they may not see of as many
    last keys."""
    tokens, head_dim = k.shape
    scores = (q @ k.T) / math.sqrt(head_dim)
    scores[:, -len(q) :].masked_fill_(hidden, -torch.inf)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
    column_sums = weights.sum(0)
    column_sums[:FORCED_COLUMNS] = torch.inf
    slash_sums = diagonal_sums(weights)
    slash_sums[-FORCED_SLASHES:] = torch.inf
    best_columns = torch.topk(column_sums, min(tokens, columns)).indices
    best_slashes = (tokens - 1) - torch.topk(slash_sums, min(tokens, slashes)).indices
    return best_columns, best_slashes


def pooled(rows):
    """Means of blocks of 64 rows; the padding counts in the mean, and there is a block of it where none is needed."""
    padding = POOL - len(rows) % POOL
    return torch.nn.functional.pad(rows, (0, 0, 0, padding)).view(-1, POOL, rows.shape[1]).mean(1)


def block_sparse(q, k, blocks):
    """Key blocks of each row block of one head."""
    scores = pooled(q) @ pooled(k).T
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    scores.masked_fill_(future, -torch.inf)
    return torch.topk(scores, min(blocks, len(scores)), dim=-1).indices


def by_head(one, q, k):
    """Runs `one` for each query head of [heads, rows, head_dim], with the keys that its group shares."""
    group = len(q) // len(k)
    return lambda: [one(q[head], k[head // group]) for head in range(len(q))]


def name_of(heads, kv_heads):
    return f"{heads} heads" if heads == kv_heads else f"{heads}/{kv_heads} heads"


def vertical_slash_index(heads, kv_heads, tokens, columns=1000, slashes=6096, repeats=10):
    q, k = normal(heads, WINDOW, 128)[0], normal(kv_heads, tokens, 128)[0]
    hidden = torch.ones(WINDOW, WINDOW, device=DEVICE, dtype=torch.bool).triu(1)
    ms = median_ms(by_head(lambda q, k: vertical_slash(q, k, hidden, columns, slashes), q, k), repeats)
    report(f"index vertical-slash ({columns}, {slashes}) d128 {name_of(heads, kv_heads)} {tokens}", "torch", ms)


def block_sparse_index(heads, kv_heads, tokens, blocks=100, repeats=10):
    q, k = normal(heads, tokens, 128)[0], normal(kv_heads, tokens, 128)[0]
    ms = median_ms(by_head(lambda q, k: block_sparse(q, k, blocks), q, k), repeats)
    report(f"index block-sparse {blocks} d128 {name_of(heads, kv_heads)} {tokens}", "torch 64x64", ms)


def cudnn_one_head(heads, kv_heads, tokens, repeats=3):
    """All heads would take too long: one is measured, and the others are said to take as long."""
    q, k, v = (normal(1, tokens, 128) for _ in range(3))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        ms = median_ms(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True), repeats)
    report(f"dense causal d128 1 heads {tokens}", "cudnn", ms)
    report(f"dense causal d128 {name_of(heads, kv_heads)} {tokens}", f"cudnn: one head x {heads}", heads * ms)


def check():
    """The estimate against its definition, on a small case."""
    rows, keys = 3, 5
    weights = torch.arange(rows * keys, device=DEVICE, dtype=torch.float32).view(rows, keys)
    sums = [
        sum(float(weights[i, keys - rows + i - offset]) for i in range(rows) if keys - rows + i >= offset)
        for offset in reversed(range(keys))
    ]
    assert diagonal_sums(weights).tolist() == sums, (diagonal_sums(weights).tolist(), sums)


def main():
    torch.manual_seed(1)
    check()
    report_machine()
    for tokens in (8192, 32768, 131072, 1 << 20):
        vertical_slash_index(32, 8, tokens)
    vertical_slash_index(32, 32, 131072)
    block_sparse_index(32, 8, 131072)
    for tokens, repeats in ((8192, 20), (32768, 10), (131072, 3)):
        cudnn_gqa(32, 8, tokens, 1, repeats=repeats)
    cudnn_one_head(32, 8, 1 << 20)


if __name__ == "__main__":
    sys.exit(main())
