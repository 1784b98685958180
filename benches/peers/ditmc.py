"""Compare DiTMC's aPE network of the base size in scorefield and in JAX on one core, interleaved.

    SCOREFIELD_PEERS_JAX=VENV python3 benches/peers/ditmc.py --json ditmc.json

VENV holds `jax` (CPU).  Per molecule a batch of conformers is predicted over and over: in scorefield by `conformers`, whose runs of more
and of fewer steps differ by evaluations alone; in JAX by the same network (`ditmc_jax.py`) in two forms.  Contenders alternate; a ratio
is formed within a repeat, and the table shows medians.  Evaluations are in CPU seconds of one thread, which other work on the machine
disturbs less than the clock on the wall; compilation, and a whole process that draws one conformer in 50 steps, are by that clock.

Weights are made up, as speed does not depend on them, so that conformers are wrong and nothing is written.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from run import HERE, ROOT, BenchmarkError, execute, pin

# Paracetamol and hexadecanal, 20 and 49 atoms.
MOLECULES = {"CC(=O)Nc1ccc(O)cc1": 20, "CCCCCCCCCCCCCCCC=O": 49}
SHORT, LONG = 10, 60


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=os.environ.get("SCOREFIELD_PEERS_JAX"), help="environment with jax [$SCOREFIELD_PEERS_JAX]")
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "scorefield")
    parser.add_argument("--batch", type=int, default=16, help="conformers at once")
    parser.add_argument("--form", nargs="+", choices=("pairs", "tables"), default=["pairs", "tables"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement in JAX")
    parser.add_argument("--cpu", type=int, help="CPU to run on [the last one allowed]")
    parser.add_argument("--timeout", type=float, default=900.0)
    parser.add_argument("--json", type=Path, help="write all measurements here")
    arguments = parser.parse_args()
    if arguments.peers is None or not (arguments.peers / "bin" / "python").exists():
        parser.error("no environment with JAX: `python3 -m venv VENV; VENV/bin/pip install jax`, then give --peers VENV")
    if not os.access(arguments.binary, os.X_OK):
        parser.error(f"{arguments.binary} is not there: run `cargo build --release` or give --binary")
    return arguments


def weights(arguments, folder):
    """A network of the base size after one step of training."""
    (folder / "water.xyz").write_text("3\nwater\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n")
    recipe = folder / "recipe.toml"
    recipe.write_text('preset = "ditmc-ape-base"\n[data]\ntrajectory = "water.xyz"\n[train]\nsteps = 1\nbatch = 1\nheld-out = 0\n')
    execute([arguments.binary, "train", recipe, "--threads", 1, "--output", folder / "run", "--quiet"], arguments.timeout)
    return folder / "run" / "model.safetensors"


def conformers(arguments, folder, model, smiles, count, steps):
    """CPU seconds and seconds of a run; that its conformers are wrong (exit code 1) is no matter."""
    command = [arguments.binary, "conformers", "--model", model, "--smiles", smiles, "--count", count, "--steps", steps, "--attempts", 1]
    command += ["--stereo", "redraw", "--threads", 1, "--out", folder / "out.sdf", "--quiet"]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=arguments.timeout)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1) or f"of {count} drawn" not in done.stdout:
        raise BenchmarkError(f"scorefield conformers: {done.stdout}{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def graph(smiles):
    """Atomic numbers and hops of a chain or ring molecule, from its SMILES without RDKit: hydrogens by valence."""
    numbers, valences = {"C": 6, "c": 6, "N": 7, "O": 8}, {6: 4, 7: 3, 8: 2}
    atoms, bonds, used, stack, last, order, rings = [], [], [], [], None, 1, {}
    for letter in smiles:
        if letter in numbers:
            atoms.append(numbers[letter])
            used.append(1 if letter == "c" else 0)
            if last is not None:
                bonds.append((last, len(atoms) - 1))
                used[last] += order
                used[-1] += order
            last, order = len(atoms) - 1, 1
        elif letter == "(":
            stack.append(last)
        elif letter == ")":
            last = stack.pop()
        elif letter == "=":
            order = 2
        elif letter in rings:
            bonds.append((rings.pop(letter), last))
            used[bonds[-1][0]] += 1
            used[last] += 1
        else:
            rings[letter] = last
    for i in range(len(atoms)):
        for _ in range(valences[atoms[i]] - used[i]):
            bonds.append((i, len(atoms)))
            atoms.append(1)
    n = len(atoms)
    hops = [[0 if i == j else 510 for j in range(n)] for i in range(n)]
    for i, j in bonds:
        hops[i][j] = hops[j][i] = 1
    for k in range(n):
        for i in range(n):
            for j in range(n):
                hops[i][j] = min(hops[i][j], hops[i][k] + hops[k][j])
    return {"atoms": atoms, "hops": hops}


def jax(arguments, cpu, path):
    """Measurements of the peer program."""
    command = ["taskset", "-c", cpu, arguments.peers / "bin" / "python", HERE / "ditmc_jax.py", "--graph", path, "--batch", arguments.batch]
    out = execute([*command, "--seconds", arguments.seconds, "--form", *arguments.form], arguments.timeout)
    return [json.loads(line) for line in out.splitlines()]


def measure(arguments, cpu, folder):
    """Seconds of every contender: {(what, atoms): {contender: [seconds per repeat]}}; evaluations are per molecule."""
    rows, model = {}, weights(arguments, folder)

    def put(what, atoms, who, seconds):
        rows.setdefault((what, atoms), {}).setdefault(who, []).append(seconds)

    for repeat in range(arguments.repeats):
        for smiles, atoms in MOLECULES.items():
            described = graph(smiles)
            if len(described["atoms"]) != atoms:
                raise BenchmarkError(f"{smiles} has {len(described['atoms'])} atoms, not {atoms}")
            path = folder / f"{atoms}.json"
            path.write_text(json.dumps(described))
            runs = [conformers(arguments, folder, model, smiles, arguments.batch, steps) for steps in (SHORT, LONG)]
            put("evaluation", atoms, "scorefield", (runs[1][0] - runs[0][0]) / (LONG - SHORT) / arguments.batch)
            put("one conformer, whole process", atoms, "scorefield", conformers(arguments, folder, model, smiles, 1, 50)[1])
            for row in jax(arguments, cpu, path):
                put("evaluation", atoms, f"JAX {row['form']}", row["cpu_s"] / arguments.batch)
                put("compilation", atoms, f"JAX {row['form']}", row["compile_s"])
        print(f"repeat {repeat + 1} of {arguments.repeats}", file=sys.stderr)
    return rows


def table(rows):
    lines = ["| | atoms | scorefield | JAX, pairs | ratio | JAX, tables | ratio |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for (what, atoms), times in rows.items():
        ours = times.get("scorefield")
        cells = [f"{1e3 * statistics.median(ours):.2f} ms" if ours else ""]
        for form in ("JAX pairs", "JAX tables"):
            theirs = times.get(form)
            cells.append(f"{1e3 * statistics.median(theirs):.2f} ms" if theirs else "")
            cells.append(f"{statistics.median(b / a for a, b in zip(ours, theirs)):.1f}" if ours and theirs else "")
        lines.append(f"| {what} | {atoms} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    arguments = parse()
    cpu = pin(arguments.cpu)
    with tempfile.TemporaryDirectory(prefix="scorefield-ditmc-") as folder:
        rows = measure(arguments, cpu, Path(folder))
    print(table(rows), flush=True)
    print(f"CPU {cpu}, load average {os.getloadavg()[0]:.2f}; evaluations are per molecule of a batch of {arguments.batch}")
    if arguments.json:
        arguments.json.write_text(json.dumps([{"what": w, "atoms": n, "seconds": times} for (w, n), times in rows.items()], indent=1))


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as error:
        sys.exit(str(error))
