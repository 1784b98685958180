"""Compare ScoreMD's network in scorefield and in JAX on one core, interleaved.

    SCOREFIELD_PEERS_JAX=VENV python3 benches/peers/scoremd.py --json scoremd.json

VENV holds `jax` (CPU).  Per system the same network is timed as a force in
Langevin steps at several numbers of replicas, and in training steps with and
without the Fokker–Planck residual; also the time from the start of the
process to its end for a run of one step.  Contenders alternate; a ratio is
formed within a repeat, and the table shows medians.

Weights and data are made up, as speed does not depend on them.
"""

import argparse
import json
import os
import random
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path

from run import HERE, ROOT, BenchmarkError, execute, pin

BEADS = {"alanine-dipeptide": 5, "chignolin": 10, "bba": 28}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=os.environ.get("SCOREFIELD_PEERS_JAX"), help="environment with jax [$SCOREFIELD_PEERS_JAX]")
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "scorefield")
    parser.add_argument("--systems", nargs="+", choices=BEADS, default=["alanine-dipeptide", "bba"])
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 16, 128])
    parser.add_argument("--train", nargs="*", choices=("diffusion", "fokker-planck"), default=["diffusion", "fokker-planck"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--cpu", type=int, help="CPU to run on [the last one allowed]")
    parser.add_argument("--timeout", type=float, default=900.0)
    parser.add_argument("--json", type=Path, help="write all measurements here")
    arguments = parser.parse_args()
    if arguments.peers is None or not (arguments.peers / "bin" / "python").exists():
        parser.error("no environment with JAX: `python3 -m venv VENV; VENV/bin/pip install jax`, then give --peers VENV")
    if not os.access(arguments.binary, os.X_OK):
        parser.error(f"{arguments.binary} is not there: run `cargo build --release` or give --binary")
    return arguments


def write_data(folder, beads, frames=1024):
    """Random chains with bonds of 0.15 nm: an array [frames, beads, 3] in nm, and a PDB file of their beads."""
    draw = random.Random(1)
    values = []
    for _ in range(frames):
        for i in range(beads):
            values += [0.15 * i + draw.gauss(0, 0.01), draw.gauss(0, 0.05), draw.gauss(0, 0.05)]
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({frames}, {beads}, 3), }}"
    header += " " * (-(10 + len(header) + 1) % 64) + "\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + struct.pack(f"<{len(values)}f", *values)
    (folder / "data.npy").write_bytes(data)
    line = "ATOM  {:5d}  CA  ALA A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00  0.00           C  \n"
    (folder / "beads.pdb").write_text("".join(line.format(i + 1, i + 1, 1.5 * i, 0.0, 0.0) for i in range(beads)) + "END\n")


def train(arguments, folder, system, variant, steps):
    """Trains on a batch of 128, and gives the directory with the summary."""
    recipe, out = folder / f"{variant}.toml", folder / f"{variant}-{steps}"
    recipe.write_text(
        f'preset = "{system}"\nvariant = "{variant}"\n[data]\ntrajectory = "data.npy"\ntopology = "beads.pdb"\n'
        f'temperature = "300 K"\n[train]\nsteps = {steps}\nbatch = 128\nheld-out = 64\n[output]\nstart-frames = 64\ncheckpoint-minutes = 0.0\n'
    )
    command = [arguments.binary, "train", recipe, "--threads", 1, "--output", out, "--overwrite", "--quiet"]
    execute(command, arguments.timeout)
    return out


def simulate(arguments, folder, weights, replicas, steps):
    """Summary of a run at 2 fs without output, and the seconds that the whole process took."""
    summary = folder / "summary.json"
    command = [arguments.binary, "simulate", "--model", weights, "--replicas", replicas, "--steps", steps, "--dt", "2 fs"]
    command += ["--threads", 1, "--log-every", 0, "--trajectory-every", 0, "--out", folder / "run"]
    command += ["--summary", summary, "--quiet", "--overwrite", "--on-divergence", "freeze"]
    start = time.perf_counter()
    execute(command, arguments.timeout)
    return json.loads(summary.read_text()), time.perf_counter() - start


def jax(arguments, cpu, system, options):
    """Measurements of the peer program."""
    command = ["taskset", "-c", cpu, arguments.peers / "bin" / "python", HERE / "scoremd_jax.py", "--system", system]
    out = execute([*command, "--seconds", arguments.seconds, *options], arguments.timeout)
    return [json.loads(line) for line in out.splitlines()]


def measure(arguments, cpu, folder, system):
    """Seconds of every contender: {(what, size): {contender: [seconds per repeat]}}."""
    write_data(folder, BEADS[system])
    weights = train(arguments, folder, system, "diffusion", 2) / "model.safetensors"
    rows = {}

    def put(what, size, who, seconds):
        rows.setdefault((what, size), {}).setdefault(who, []).append(seconds)

    guess = 40e-6 * (BEADS[system] / 5) ** 1.5
    for repeat in range(arguments.repeats):
        for replicas in arguments.replicas:
            steps = max(int(arguments.seconds / (guess * replicas)), 10)
            summary, _ = simulate(arguments, folder, weights, replicas, steps)
            put("step", replicas, "scorefield", 1.0 / summary["steps_per_second"])
            for row in jax(arguments, cpu, system, ["--batch", replicas]):
                put("step", replicas, f"JAX {row['form']}", row["median_s"])
                put("compilation", replicas, f"JAX {row['form']}", row["compile_s"])
        put("first step", 1, "scorefield", simulate(arguments, folder, weights, 1, 1)[1])
        for variant in arguments.train:
            kind = "dsm" if variant == "diffusion" else variant
            short = train(arguments, folder, system, variant, 60)
            put(f"training, {variant}", 128, "scorefield", 128 / json.loads((short / "summary.json").read_text())["rows_per_second"])
            for row in jax(arguments, cpu, system, ["--batch", "--train", kind]):
                put(f"training, {variant}", 128, f"JAX {row['form']}", row["median_s"])
        print(f"{system}: repeat {repeat + 1} of {arguments.repeats}", file=sys.stderr)
    return rows


def table(system, rows):
    lines = [f"{system}", "| | size | scorefield | JAX, edges | ratio | JAX, edge-free | ratio |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for (what, size), times in rows.items():
        ours = times.get("scorefield")
        cells = [f"{1e6 * statistics.median(ours):.1f} µs" if ours else ""]
        for form in ("JAX edges", "JAX edge-free"):
            theirs = times.get(form)
            cells.append(f"{1e6 * statistics.median(theirs):.1f} µs" if theirs else "")
            both = ours and theirs
            cells.append(f"{statistics.median(b / a for a, b in zip(ours, theirs)):.1f}" if both else "")
        lines.append(f"| {what} | {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    arguments = parse()
    cpu = pin(arguments.cpu)
    measured = {}
    for system in arguments.systems:
        with tempfile.TemporaryDirectory(prefix="scorefield-scoremd-") as folder:
            rows = measure(arguments, cpu, Path(folder), system)
        print(table(system, rows), flush=True)
        measured[system] = [{"what": w, "size": s, "seconds": times} for (w, s), times in rows.items()]
    print(f"CPU {cpu}, load average {os.getloadavg()[0]:.2f}; steps are per system, training steps are of a batch of 128")
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1))


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as error:
        sys.exit(str(error))
