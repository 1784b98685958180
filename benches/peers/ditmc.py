"""Compare DiTMC's networks of the base size, aPE or PE(3), in scorefield and in JAX on one core, interleaved.

    SCOREFIELD_PEERS_JAX=VENV python3 benches/peers/ditmc.py --json ditmc.json
    SCOREFIELD_PEERS_JAX=VENV python3 benches/peers/ditmc.py --network pe3 --json ditmc-pe3.json

VENV holds `jax` (CPU).  Per molecule a batch of conformers is predicted over and over: in scorefield by `conformers`, whose runs of more
and of fewer steps differ by evaluations alone; in JAX by the same network (`ditmc_jax.py`, `ditmc_pe3_jax.py`) in several forms.  Contenders
alternate; a ratio is formed within a repeat, and the table shows medians.  Evaluations are in CPU seconds of one thread, which other work on
the machine disturbs less than the clock on the wall; compilation, and a whole process that draws one conformer in 50 steps, are by that clock.

Weights are made up, as speed does not depend on them, so that conformers are wrong and nothing is written.  Those of PE(3) are one file that
both programs read, and first their predictions are compared: of structures at random from forces (`F = k_B T (x - y)/sigma^2`), at two
times and in both precisions; the committed small model as well, and tensors of the authors' code where `--authors` (or
$SCOREFIELD_REFERENCE) has them.  Predictions that differ end the run.
"""

import argparse
import json
import os
import random
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
FORMS = {"ape": ("pairs", "tables"), "pe3": ("literal", "unrolled", "factored")}
SMALL = ROOT / "data" / "models" / "conformers" / "pe3-small.safetensors"
SYMBOLS = {1: "H", 6: "C", 7: "N", 8: "O"}
# Noise levels (Å) that made-up networks are asked at, and the times that belong to them: s^2 t^2 = (1 - t)^2 + 1/4.
LEVELS = {0.5: 1.0, 1.0: 0.625}
KT = 0.00831446261815324 * 300.0  # kJ/mol


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=os.environ.get("SCOREFIELD_PEERS_JAX"), help="environment with jax [$SCOREFIELD_PEERS_JAX]")
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "scorefield")
    parser.add_argument("--network", choices=FORMS, default="ape")
    parser.add_argument("--batch", type=int, default=16, help="conformers at once")
    parser.add_argument("--form", nargs="+", help="of the network in JAX: pairs, tables (aPE); literal, unrolled, factored (PE(3)) [all]")
    reference = os.environ.get("SCOREFIELD_REFERENCE")
    authors = Path(reference) / "golden" / "ditmc" / "ditmc_pe3_small.safetensors" if reference else None
    parser.add_argument("--authors", type=Path, default=authors, help="tensors of the authors' PE(3)")
    parser.add_argument("--only", choices=("check", "times"), help="compare predictions, or measure, and not the other")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement in JAX")
    parser.add_argument("--cpu", type=int, help="CPU to run on [the last one allowed]")
    parser.add_argument("--timeout", type=float, default=900.0)
    parser.add_argument("--json", type=Path, help="write all measurements here")
    arguments = parser.parse_args()
    arguments.form = arguments.form or FORMS[arguments.network]
    if set(arguments.form) - set(FORMS[arguments.network]):
        parser.error(f"forms of {arguments.network} are {', '.join(FORMS[arguments.network])}")
    if arguments.peers is None or not (arguments.peers / "bin" / "python").exists():
        parser.error("no environment with JAX: `python3 -m venv VENV; VENV/bin/pip install jax`, then give --peers VENV")
    if not os.access(arguments.binary, os.X_OK):
        parser.error(f"{arguments.binary} is not there: run `cargo build --release` or give --binary")
    return arguments


def weights(arguments, folder):
    """A network of the base size: made up (PE(3)), or after one step of training."""
    if arguments.network == "pe3":
        peer(arguments, "--write", folder / "model.safetensors")
        return folder / "model.safetensors"
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
    """A chain, or molecule with one ring, from its SMILES without RDKit: atomic numbers and what features are made of, bonds (kinds single,
    double, triple, aromatic), and hops.  Hydrogens by valence; kinds of hybrids are sp, sp2, sp3 and others."""
    numbers, valences = {"C": 6, "c": 6, "N": 7, "O": 8}, {6: 4, 7: 3, 8: 2}
    atoms, aromatic, bonds, used, stack, last, order, rings, closures = [], [], [], [], [], None, 1, {}, []

    def bond(i, j, order):
        ring = aromatic[i] and aromatic[j] and order == 1
        bonds.append((i, j, 3 if ring else order - 1))
        used[i] += order
        used[j] += order

    for letter in smiles:
        if letter in numbers:
            atoms.append(numbers[letter])
            aromatic.append(letter == "c")
            used.append(1 if letter == "c" else 0)
            if last is not None:
                bond(last, len(atoms) - 1, order)
            last, order = len(atoms) - 1, 1
        elif letter == "(":
            stack.append(last)
        elif letter == ")":
            last = stack.pop()
        elif letter == "=":
            order = 2
        elif letter in rings:
            closures.append((rings.pop(letter), last))
            bond(*closures[-1], 1)
        else:
            rings[letter] = last
    heavy = len(atoms)
    for i in range(heavy):
        for _ in range(valences[atoms[i]] - used[i]):
            atoms.append(1)
            aromatic.append(False)
            used.append(0)
            bond(i, len(atoms) - 1, 1)

    n = len(atoms)
    hops = paths(n, bonds)
    ring = [0] * n
    for a, b in closures:
        # Without the closing bond the ring is the way from one of its ends to the other.
        other = paths(n, [edge for edge in bonds if edge[:2] != (a, b)])
        for k in range(n):
            if other[a][k] + other[k][b] == other[a][b]:
                ring[k] = other[a][b] + 1
    neighbours = [[(j if i == k else i, kind) for i, j, kind in bonds if k in (i, j)] for k in range(n)]
    flat = [any(kind in (1, 3) for _, kind in neighbours[k]) for k in range(n)]
    # A lone pair beside a double bond joins it.
    joined = [flat[k] or (atoms[k] in (7, 8) and any(flat[j] for j, _ in neighbours[k])) for k in range(n)]
    hybrids = [5 if z == 1 else 1 if joined[k] else 2 for k, z in enumerate(atoms)]
    degrees = [len(x) for x in neighbours]
    return {"atoms": atoms, "bonds": bonds, "hops": hops, "degrees": degrees, "aromatic": aromatic, "hybrids": hybrids, "rings": ring}


def paths(n, bonds):
    """Bonds on the shortest path between each two atoms."""
    hops = [[0 if i == j else 510 for j in range(n)] for i in range(n)]
    for i, j, _ in bonds:
        hops[i][j] = hops[j][i] = 1
    for k in range(n):
        for i in range(n):
            for j in range(n):
                hops[i][j] = min(hops[i][j], hops[i][k] + hops[k][j])
    return hops


def peer(arguments, *words):
    """The lines that the program in JAX prints."""
    program = HERE / ("ditmc_jax.py" if arguments.network == "ape" else "ditmc_pe3_jax.py")
    return [json.loads(line) for line in execute([arguments.peers / "bin" / "python", program, *words], arguments.timeout).splitlines()]


def forces(arguments, folder, model, smiles, described, positions, level, dtype):
    """What scorefield's network predicts of structures (Å), from its forces at a noise level."""
    symbols, path = [SYMBOLS[z] for z in described["atoms"]], folder / "check.xyz"
    frame = lambda x: f"{len(x)}\n\n" + "".join(f"{s} {a!r} {b!r} {c!r}\n" for s, (a, b, c) in zip(symbols, x))
    path.write_text("".join(map(frame, positions)))
    command = [arguments.binary, "evaluate", path, "--model", f"ditmc:weights={model},smiles={smiles},sigma={level}A", "--json", "-"]
    frames = json.loads(execute([*command, "--dtype", dtype, "--threads", 1, "--quiet"], arguments.timeout))["frames"]
    # Forces are in kJ/mol/nm, k_B T/sigma^2 in kJ/mol/Å^2.
    return [[[a + f * level**2 / (10 * KT) for a, f in zip(x, force)] for x, force in zip(x, frame["forces"])]
            for x, frame in zip(positions, frames)]


def check(arguments, folder, base):
    """Differences of both programs' predictions, relative to the largest entry."""
    rows, rng = [], random.Random(0)

    def put(what, dtype, limit, words):
        for row in peer(arguments, *words, *(["--double"] if dtype == "f64" else [])):
            rows.append({"check": what, "dtype": dtype, **row})
            differences = ", ".join(f"{form} {d:.1e}" for form, d in row["differences"].items())
            print(f"{what}, {row['parameters']} parameters, {row['atoms']} atoms, t = {row['t']:g}, {dtype}: {differences}", flush=True)
            if not all(d < limit for d in row["differences"].values()):
                raise BenchmarkError(f"predictions differ by more than {limit}")

    if arguments.authors:
        # Their binomials are exact to 8e-6 and 8e-9.
        put("authors' code", "f32", 1e-4, ["--authors", arguments.authors])
        put("authors' code", "f64", 1e-8, ["--authors", arguments.authors])
    for model, smiles, atoms, levels in [(base, s, n, LEVELS) for s, n in MOLECULES.items()] + [(SMALL, *[*MOLECULES.items()][0], [0.5])]:
        described = graph(smiles)
        if len(described["atoms"]) != atoms:
            raise BenchmarkError(f"{smiles} has {len(described['atoms'])} atoms, not {atoms}")
        (folder / f"{atoms}.json").write_text(json.dumps(described))
        structures = []
        for _ in range(arguments.batch):
            x = [[rng.gauss(0, 1.5) for _ in range(3)] for _ in range(atoms)]
            structures.append([[a - sum(row[k] for row in x) / atoms for k, a in enumerate(row)] for row in x])
        for dtype, limit in (("f32", 1e-4), ("f64", 1e-10)):
            # In single precision the batch is that which is timed: programs are compiled for it.
            structures = structures if dtype == "f32" else structures[:2]
            asked = {"t": [], "x": [], "clean": []}
            for level in levels:
                asked["t"] += [LEVELS[level]] * len(structures)
                asked["x"] += [[[LEVELS[level] * a for a in row] for row in x] for x in structures]
                asked["clean"] += forces(arguments, folder, model, smiles, described, structures, level, dtype)
            (folder / "check.json").write_text(json.dumps(asked))
            put("scorefield", dtype, limit, ["--weights", model, "--graph", folder / f"{atoms}.json", "--check", folder / "check.json"])
    return rows


def jax(arguments, path, model):
    """Measurements of the peer program."""
    words = ["--graph", path, "--batch", arguments.batch, "--seconds", arguments.seconds, "--form", *arguments.form]
    return peer(arguments, *words, *(["--weights", model] if arguments.network == "pe3" else []))


def measure(arguments, folder, model):
    """Seconds of every contender: {(what, atoms): {contender: [seconds per repeat]}}; evaluations are per molecule."""
    rows = {}

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
            for row in jax(arguments, path, model):
                put("evaluation", atoms, f"JAX {row['form']}", row["cpu_s"] / arguments.batch)
                put("compilation", atoms, f"JAX {row['form']}", row["compile_s"])
        print(f"repeat {repeat + 1} of {arguments.repeats}", file=sys.stderr)
    return rows


def table(rows, forms):
    lines = ["| | atoms | scorefield |" + "".join(f" JAX, {form} | ratio |" for form in forms)]
    lines.append("| --- | --- | ---: |" + " ---: | ---: |" * len(forms))
    for (what, atoms), times in rows.items():
        ours = times.get("scorefield")
        cells = [f"{1e3 * statistics.median(ours):.2f} ms" if ours else ""]
        for form in forms:
            theirs = times.get(f"JAX {form}")
            cells.append(f"{1e3 * statistics.median(theirs):.2f} ms" if theirs else "")
            cells.append(f"{statistics.median(b / a for a, b in zip(ours, theirs)):.1f}" if ours and theirs else "")
        lines.append(f"| {what} | {atoms} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    arguments = parse()
    cpu = pin(arguments.cpu)
    with tempfile.TemporaryDirectory(prefix="scorefield-ditmc-") as folder:
        model = weights(arguments, Path(folder))
        checks = check(arguments, Path(folder), model) if arguments.network == "pe3" and arguments.only != "times" else []
        rows = measure(arguments, Path(folder), model) if arguments.only != "check" else {}
    if rows:
        print(table(rows, arguments.form), flush=True)
    print(f"CPU {cpu}, load average {os.getloadavg()[0]:.2f}; evaluations are per molecule of a batch of {arguments.batch}")
    if arguments.json:
        times = [{"what": w, "atoms": n, "seconds": times} for (w, n), times in rows.items()]
        arguments.json.write_text(json.dumps([*checks, *times], indent=1))


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as error:
        sys.exit(str(error))
