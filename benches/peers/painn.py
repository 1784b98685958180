"""Compare PaiNN in scorefield and in PyTorch on one core, one after the other.

    SCOREFIELD_PEERS_TORCH=VENV python3 benches/peers/painn.py

Runs `cargo bench --bench painn` (forces and training steps of 18 atoms) and
painn_torch.py, both pinned to one CPU, and prints milliseconds per molecule.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from run import HERE, ROOT, BenchmarkError, cpu_model, execute, pin


def ours():
    """Fastest seconds of a batch by (what, name, batch), from criterion's files."""
    execute(["cargo", "bench", "--manifest-path", ROOT / "Cargo.toml", "--bench", "painn"], 3600)
    found = {}
    for group, what in (("painn forces, 18 atoms", "forces"), ("painn training, 18 atoms", "training")):
        for file in (ROOT / "target" / "criterion" / group).glob("*/*/new/sample.json"):
            sample = json.loads(file.read_text())
            seconds = min(t / n for t, n in zip(sample["times"], sample["iters"])) * 1e-9
            found[what, file.parts[-4], int(file.parts[-3])] = seconds
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=os.environ.get("SCOREFIELD_PEERS_TORCH"), help="[$SCOREFIELD_PEERS_TORCH]")
    parser.add_argument("--cpu", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.peers is None:
        raise BenchmarkError("name an environment with torch: --peers or SCOREFIELD_PEERS_TORCH")
    cpu = pin(arguments.cpu)
    mine = ours()
    head, *rows = map(json.loads, execute([arguments.peers / "bin" / "python", HERE / "painn_torch.py"], 3600).splitlines())
    print(f"{cpu_model()}, CPU {cpu}, load {os.getloadavg()[0]:.1f}, torch {head['torch']}")
    print("| | batch | scorefield / ms per molecule | PyTorch / ms per molecule | ratio |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        key = row["what"], row["name"], row["batch"]
        a, b = (1e3 * s / row["batch"] for s in (mine[key], row["seconds"]))
        print(f"| {row['what']}, {row['name']} | {row['batch']} | {a:.3f} | {b:.3f} | {b / a:.1f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ours": {" / ".join(map(str, k)): v for k, v in mine.items()}, "peer": rows}, indent=1))


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as error:
        sys.exit(f"painn.py: {error}")
