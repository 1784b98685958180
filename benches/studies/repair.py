"""Repair distorted molecules with a pseudo-force field, with ANI, and with both.

    python3 benches/studies/repair.py QM9.xyz --ani ani2x.safetensors

Takes molecules at their minima, displaces every coordinate by Gaussian noise,
and relaxes them four ways: following the pseudo-forces (`relax`), direct
denoising (`denoise`), ANI alone, and ANI from where the pseudo-forces ended.
A molecule is repaired if it is the same molecule as before (canonical SMILES
with stereo centres).  Prints, for each noise, the share that is repaired, the
median RMSD to the original after superposition, the median energy above the
original's ANI minimum of the repaired ones, evaluations and time.
Needs numpy.
"""

import argparse
import csv
import json
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("molecules", type=Path, help="molecules at their minima, XYZ")
    parser.add_argument("--ani", type=Path, required=True, help="weights of ANI-2x")
    parser.add_argument("--gpff", default="gpff", help="the pseudo-force field [the embedded one]")
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "scorefield")
    parser.add_argument("--noise", nargs="+", type=float, default=[0.1, 0.2, 0.3, 0.5], help="Å")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def read(path):
    """Elements and positions (Å) of the molecules of an XYZ file."""
    lines, at, molecules = path.read_text().splitlines(), 0, []
    while at < len(lines) and lines[at].strip():
        n = int(lines[at])
        rows = [line.split() for line in lines[at + 2 : at + 2 + n]]
        molecules.append(([r[0] for r in rows], np.array([[float(x) for x in r[1:4]] for r in rows])))
        at += n + 2
    return molecules


def write(path, molecules):
    text = []
    for elements, x in molecules:
        text += [str(len(elements)), ""] + [f"{e} {a:.6f} {b:.6f} {c:.6f}" for e, (a, b, c) in zip(elements, x)]
    path.write_text("\n".join(text) + "\n")


def rmsd(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    u, s, v = np.linalg.svd(a.T @ b)
    s[-1] *= np.sign(np.linalg.det(u) * np.linalg.det(v))
    return np.sqrt(max(0.0, (a * a).sum() + (b * b).sum() - 2 * s.sum()) / len(a))


class Program:
    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder
        self.ani = f"ani2x:weights={arguments.ani.resolve()}"

    def run(self, *words):
        command = [str(w) for w in (self.arguments.binary, *words, "--threads", self.arguments.threads, "--quiet")]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in (0, 1, 3):
            raise SystemExit(f"exit status {done.returncode} of: {' '.join(command)}\n{done.stderr[-2000:]}")
        return time.perf_counter() - start

    def table(self, name):
        with (self.folder / name).open() as rows:
            return list(csv.DictReader(rows))

    def relax(self, source, model, method):
        """Relaxed structures, evaluations of each and seconds of all."""
        out, table = self.folder / "relaxed.xyz", self.folder / "relaxed.csv"
        flags = ["--fmax", "0.01 eV/A" if method == "lbfgs" else "0.02 eV/A", "--max-steps", 1000, "--allow-unconverged"]
        seconds = self.run("relax", source, "--model", model, "--method", method, *flags, "--out", out, "--table", table)
        return out, [int(r["steps"]) for r in self.table("relaxed.csv")], seconds

    def denoise(self, source):
        out, table = self.folder / "denoised.xyz", self.folder / "denoised.csv"
        seconds = self.run("denoise", source, "--model", self.arguments.gpff, "-o", out, "--table", table)
        return out, [int(float(r["evaluations"])) for r in self.table("denoised.csv")], seconds

    def smiles(self, source):
        self.run("evaluate-molecules", source, "--table", self.folder / "smiles.csv")
        return [r["smiles"] for r in self.table("smiles.csv")]

    def energies(self, source):
        """kJ/mol."""
        out = self.folder / "energies.json"
        self.run("evaluate", source, "--model", self.ani, "--json", out)
        return [frame["energy"] for frame in json.loads(out.read_text())["frames"]]


def main():
    arguments = parse()
    draw = random.Random(arguments.seed)
    molecules = read(arguments.molecules)
    molecules = draw.sample(molecules, min(arguments.count, len(molecules)))
    print("| noise / Å | | repaired / % | RMSD / Å | above the minimum / kJ/mol | evaluations | molecules/s |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        program = Program(arguments, folder)
        clean = folder / "clean.xyz"
        write(clean, molecules)
        # Some molecules of QM9 have no bonds by the rules of perception.
        molecules = [m for m, name in zip(molecules, program.smiles(clean)) if name]
        write(clean, molecules)
        names = program.smiles(clean)
        minima = program.energies(program.relax(clean, program.ani, "lbfgs")[0])
        for noise in arguments.noise:
            start = folder / "start.xyz"
            write(start, [(e, x + [[draw.gauss(0, noise) for _ in range(3)] for _ in e]) for e, x in molecules])

            def row(label, out, evaluations, seconds):
                found, energies = read(out), program.energies(out)
                same = [a == b for a, b in zip(program.smiles(out), names)]
                above = [e - m for e, m, ok in zip(energies, minima, same) if ok]
                distance = statistics.median(rmsd(a, b) for (_, a), (_, b) in zip(found, molecules))
                error = 100 * (sum(same) * (len(same) - sum(same)) / len(same) ** 3) ** 0.5
                print(
                    f"| {noise} | {label} | {100 * sum(same) / len(same):.1f} ± {error:.1f} | {distance:.3f} "
                    f"| {statistics.median(above) if above else float('nan'):.1f} | {statistics.mean(evaluations):.0f} | {len(found) / seconds:.1f} |",
                    flush=True,
                )

            row("pseudo-forces, FIRE", *program.relax(start, arguments.gpff, "fire"))
            out, evaluations, seconds = program.denoise(start)
            row("pseudo-forces, DD", out, evaluations, seconds)
            kept = folder / "kept.xyz"
            kept.write_bytes(out.read_bytes())
            row("ANI-2x, L-BFGS", *program.relax(start, program.ani, "lbfgs"))
            out, more, longer = program.relax(kept, program.ani, "lbfgs")
            row("DD, then ANI-2x", out, [a + b for a, b in zip(evaluations, more)], seconds + longer)


if __name__ == "__main__":
    main()
