"""How the scripts here time a peer: the median of CUDA-event times after a warm-up, as `harness bench` does.

The first argument of each script is the warm-up in milliseconds (50), as `--warm-up` there. Each prints one JSON object a
line: {"case": ..., "peer": ..., "ms": ...}.
"""

import json
import statistics
import sys
import time

import torch

DEVICE = "cuda"
# Before what is timed, at least three calls: the same as `--warm-up` of `harness bench`.
WARM_UP_MS = float(sys.argv[1]) if len(sys.argv) > 1 else 50.0


def median_ms(call, repeats):
    begin, turn = time.perf_counter(), 0
    while turn < 3 or time.perf_counter() - begin < WARM_UP_MS / 1e3:
        call()
        torch.cuda.synchronize()
        turn += 1
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def normal(heads, tokens, head_dim, batch=1):
    return torch.randn(batch, heads, tokens, head_dim, device=DEVICE, dtype=torch.bfloat16)


def report(case, peer, ms):
    print(json.dumps({"case": case, "peer": peer, "ms": ms}), flush=True)


def report_machine():
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__}), flush=True)
