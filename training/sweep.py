"""Trains several variants of the records model at once, one on each GPU, and names the best.

A variant is an object of options of train.py: `{"name": "deep", "layers": 6, "mlp": 320}`. Each gets a folder below
`--out`, with its log, its model and its figures. See README.md beside it.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys


def gpus():
    """What CUDA_VISIBLE_DEVICES may be set to; nothing to choose from if there is no GPU."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        listed = ""
    return [str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU"))] or [""]


def start(variant, gpu, threads, options):
    folder = options.out / variant["name"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.json").unlink(missing_ok=True)
    script = pathlib.Path(__file__).with_name("train.py")
    command = [sys.executable, str(script), "--corpus", options.corpus, "--out", str(folder)]
    for name, value in {"minutes": options.minutes, **variant}.items():
        if name != "name":
            command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    # The generators would otherwise start as many threads as there are cores, each.
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    if gpu:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with open(folder / "log.txt", "w") as log:
        return folder, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def worst(table):
    """The lowest share of right answers of any length, kind and form."""
    shares = [row["kind"][kind][form] for row in table.values() for kind in row["kind"] for form in ("sentence", "json")]
    return min(share for share in shares if share is not None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", required=True, help="the built `corpus` example of kernel-tests")
    parser.add_argument("--variants", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=9, help="wall clock of every variant, its evaluation included")
    options = parser.parse_args()

    variants, devices = json.loads(options.variants.read_text()), gpus()
    for variant in variants[len(devices) :]:
        print(f"{variant['name']}: no GPU left, not run", flush=True)
    threads = max(1, (os.cpu_count() or 1) // (2 * len(devices)))
    runs = [start(variant, gpu, threads, options) for variant, gpu in zip(variants, devices)]
    results = []
    for folder, process in runs:
        if process.wait() == 0:
            results.append((folder, json.loads((folder / "training.json").read_text())))
        else:
            print(f"{folder.name}: failed", *(folder / "log.txt").read_text().splitlines()[-5:], sep="\n    ", flush=True)
    if not results:
        sys.exit("no variant came to its end")
    results.sort(key=lambda result: -worst(result[1]["held_out"]))
    print(f"{'variant':16} {'worst':>6} " + " ".join(f"{length:>6}" for length in results[0][1]["held_out"]) + "   steps")
    for folder, figures in results:
        table = figures["held_out"]
        right = " ".join(f"{row['right']:6.2f}" for row in table.values())
        print(f"{folder.name:16} {worst(table):6.2f} {right} {figures['steps']:7}")
    print(f"best: {results[0][0]}")


if __name__ == "__main__":
    main()
