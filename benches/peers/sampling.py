"""Peers of `harness bench sampling`: sampling in PyTorch as Dream and Dimple do it, written from the description of their
`sample_tokens`.

Softmax of the logits, temperature, top-p by a sort of the whole row, and a categorical draw, all in the type of the logits; a
margin sorts once more. Greedy decoding is a softmax and its maximum. `torch compiled` is the same through `torch.compile`. What
follows is not counted: which rows are kept, with its waits for the host. Logits take turns as in ours, so that few rows are not
in the L2 cache; "in cache" reads one tensor again and again. Run it on the GPU under test right before or after `harness
bench`. Output and argument are those of timing.py.
"""

import functools

import torch
from timing import DEVICE, median_ms, report, report_machine

SPREAD = 4.0
TURN_BYTES = 256 << 20


def greedy(logits):
    return torch.softmax(logits, dim=-1).max(dim=-1)


def nucleus(logits, top_p):
    """Drops each rank before which the ranks have more than top_p, but not the first."""
    ordered, ids = torch.sort(logits, descending=True)
    over = torch.cumsum(torch.softmax(ordered, dim=-1), dim=-1) > top_p
    dropped = torch.zeros_like(over)
    dropped[..., 1:] = over[..., :-1]
    dropped = torch.zeros_like(over).scatter_(-1, ids, dropped)
    return logits.masked_fill(dropped, torch.finfo(logits.dtype).min)


def sampled(logits, temperature, top_p, margin=False):
    raw = torch.softmax(logits, dim=-1)
    tempered = logits / temperature
    if top_p < 1:
        tempered = nucleus(tempered, top_p)
    tokens = torch.multinomial(torch.softmax(tempered, dim=-1), 1)
    if margin:
        best = torch.sort(raw, dim=-1, descending=True).values
        return best[..., 0] - best[..., 1], tokens
    return raw.gather(-1, tokens), tokens


plain = functools.partial(sampled, temperature=1.0, top_p=1.0)
narrow = functools.partial(sampled, temperature=0.2, top_p=0.95)
CASES = [
    (1024, 152064, "greedy", greedy),
    (1024, 152064, "T 0.2, top-p 0.95, margin", functools.partial(narrow, margin=True)),
    (1024, 152064, "T 1", plain),
    (32, 152064, "greedy", greedy),
    (32, 152064, "T 0.2, top-p 0.95", narrow),
    (32, 152064, "T 0.2, top-p 0.95, in cache", narrow),
    (1024, 126464, "greedy", greedy),
    (32, 126464, "T 0.2, top-p 0.95", narrow),
]


def main():
    report_machine()
    for rows, vocab, what, sample in CASES:
        turns = 1 if what.endswith("in cache") else -(-TURN_BYTES // (2 * rows * vocab))
        logits = [torch.randn(rows, vocab, device=DEVICE, dtype=torch.bfloat16) * SPREAD for _ in range(turns)]
        for peer, call in [("torch", sample), ("torch compiled", torch.compile(sample, dynamic=False))]:

            def run(call=call):
                for tensor in logits:
                    call(tensor)

            report(f"sampling {rows} rows {vocab}, {what}", peer, median_ms(run, 10) / turns)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
