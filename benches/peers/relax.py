"""Relax the same molecules with scorefield and with ASE + torchani on one core.

    SCOREFIELD_PEERS_TORCH=VENV python3 benches/peers/relax.py MOLECULES.xyz WEIGHTS.safetensors

VENV holds torch, torchani 2.2, ase and safetensors.  Both programs read the
same ANI weights and start from the same coordinates; both use L-BFGS and stop
where no force is larger than --fmax.  torchani relaxes the first --peer-count
molecules, scorefield all of them and, for the ratio, these.  The energies of
the minima are compared molecule by molecule: two optimisers may find two.
"""

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from run import HERE, ROOT, BenchmarkError, cpu_model, execute, pin

EV = 96.48533212331  # kJ/mol


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("molecules", type=Path, help="distorted molecules, XYZ")
    parser.add_argument("weights", type=Path, help="ANI weights, safetensors")
    parser.add_argument("--model", default="ani2x", help="which ANI they are [ani2x]")
    parser.add_argument("--peers", type=Path, default=os.environ.get("SCOREFIELD_PEERS_TORCH"), help="[$SCOREFIELD_PEERS_TORCH]")
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "scorefield")
    parser.add_argument("--peer-count", type=int, default=25)
    parser.add_argument("--fmax", type=float, default=0.01, help="eV/Å")
    parser.add_argument("--cpu", type=int)
    parser.add_argument("--timeout", type=float, default=3600.0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def split(path):
    """Texts of the molecules of an XYZ file."""
    lines = path.read_text().splitlines()
    molecules, at = [], 0
    while at < len(lines) and lines[at].strip():
        n = int(lines[at])
        molecules.append("\n".join(lines[at : at + n + 2]) + "\n")
        at += n + 2
    return molecules


def scorefield(arguments, file, dtype, folder):
    table = folder / f"{file.stem}-{dtype}.csv"
    command = [arguments.binary, "relax", file, "--model", f"{arguments.model}:weights={arguments.weights.resolve()}"]
    command += ["--method", "lbfgs", "--fmax", f"{arguments.fmax} eV/A", "--max-steps", 1000, "--dtype", dtype]
    command += ["--threads", 1, "--table", table, "--quiet"]
    start = time.perf_counter()
    execute(command, arguments.timeout)
    seconds = time.perf_counter() - start
    with table.open() as rows:
        rows = list(csv.DictReader(rows))
    return {
        "seconds": seconds,
        "energies": [float(r["energy_kJ_mol"]) / EV for r in rows],
        "steps": [int(r["steps"]) for r in rows],
        "converged": sum(r["converged"] == "true" for r in rows),
    }


def torchani(arguments, file, double):
    command = [arguments.peers / "bin" / "python", HERE / "relax_torchani.py", file, arguments.weights.resolve()]
    command += ["--fmax", arguments.fmax, "--threads", 1] + (["--double"] if double else [])
    head, *rows = map(json.loads, execute(command, arguments.timeout).splitlines())
    return {
        "versions": head,
        "seconds": sum(r["seconds"] for r in rows),
        "energies": [r["energy"] for r in rows],
        "steps": [r["steps"] for r in rows],
        "converged": sum(r["converged"] for r in rows),
    }


def main():
    arguments = parse()
    if arguments.peers is None:
        raise BenchmarkError("name an environment with torchani: --peers or SCOREFIELD_PEERS_TORCH")
    cpu = pin(arguments.cpu)
    molecules = split(arguments.molecules)
    count = min(arguments.peer_count, len(molecules))
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        some = folder / "some.xyz"
        some.write_text("".join(molecules[:: len(molecules) // count][:count]))
        for dtype in ("f32", "f64"):
            ours = scorefield(arguments, some, dtype, folder)
            peer = torchani(arguments, some, dtype == "f64")
            whole = scorefield(arguments, arguments.molecules, dtype, folder)
            apart = [abs(a - b) for a, b in zip(ours["energies"], peer["energies"])]
            results[dtype] = {
                "molecules": len(molecules),
                "converged": whole["converged"],
                "median_steps": statistics.median(whole["steps"]),
                "molecules_per_second": len(molecules) / whole["seconds"],
                "of_the_same": count,
                "rate": count / ours["seconds"],
                "peer_rate": count / peer["seconds"],
                "peer_converged": peer["converged"],
                "peer_median_steps": statistics.median(peer["steps"]),
                "ratio": peer["seconds"] / ours["seconds"],
                "energies_within_1_meV": sum(d < 1e-3 for d in apart),
                "versions": peer["versions"],
            }
    print(f"{cpu_model()}, CPU {cpu}, load {os.getloadavg()[0]:.1f}, {results['f64']['versions']}")
    print("| | converged | median steps | molecules/s | ASE + torchani: converged | median steps | molecules/s | ratio on the same | same energy |")
    print("| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | --- |")
    for dtype, r in results.items():
        print(
            f"| {dtype} | {r['converged']} of {r['molecules']} | {r['median_steps']:.0f} | {r['molecules_per_second']:.1f} "
            f"| {r['peer_converged']} of {r['of_the_same']} | {r['peer_median_steps']:.0f} | {r['peer_rate']:.2f} "
            f"| {r['ratio']:.0f} | {r['energies_within_1_meV']} of {r['of_the_same']} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as error:
        sys.exit(f"relax.py: {error}")
