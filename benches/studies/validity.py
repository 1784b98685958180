"""Validity of generated molecules against evaluations per molecule, for every sampler.

    python3 benches/studies/validity.py --out validity --reference qm9-test.xyz

Every point is one call of `scorefield sample` (compositions as in QM9) and one
of `scorefield evaluate-molecules`, which judges with and without charged atoms.  Writes
points.csv, table.md and, where matplotlib is there, validity.svg with the
published points (arXiv 2605.19050) beside ours.
"""

import argparse
import csv
import json
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# Name, model, flags, and whether evaluations are 2 S - 1.
PSEUDO = [
    ("DD", "gpff", ["--sampler", "dd"], "cap"),
    ("SDD", "gpff", ["--sampler", "sdd"], "steps"),
    ("DD + shape", "gpff", ["--sampler", "dd", "--shape", "predicted"], "cap"),
    ("SDD + shape", "gpff", ["--sampler", "sdd", "--shape", "predicted"], "steps"),
    ("ancestral", "gpff", ["--sampler", "ancestral"], "steps"),
    ("Heun", "gpff", ["--sampler", "heun"], "pairs"),
    ("stochastic Heun", "gpff", ["--sampler", "stochastic-heun"], "pairs"),
    ("ancestral, adaptive", "gpff", ["--sampler", "ancestral", "--adaptive"], "steps"),
    ("Heun, adaptive", "gpff", ["--sampler", "heun", "--adaptive"], "pairs"),
]
NOISE = [
    ("DM ancestral", "noise", ["--sampler", "ancestral"], "steps"),
    ("DM Heun", "noise", ["--sampler", "heun"], "pairs"),
    ("DM stochastic Heun", "noise", ["--sampler", "stochastic-heun"], "pairs"),
]
# Figures and text of arXiv 2605.19050, sections 4.1 and 4.2: (evaluations, % valid).
PUBLISHED = {
    "DD": [(6, 50.0), (256, 93.0)],
    "SDD": [(256, 100.0)],
    "SDD + shape": [(4, 40.0), (6, 70.0), (256, 99.0)],
    "ancestral": [(256, 94.0)],
    "Heun": [(255, 87.0)],
    "stochastic Heun": [(255, 97.0)],
    "DM ancestral": [(256, 91.0)],
    "DM Heun": [(255, 84.0)],
    "DM stochastic Heun": [(255, 95.0)],
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "scorefield")
    parser.add_argument("--gpff", default="gpff", help="the pseudo-force field [the embedded one]")
    parser.add_argument("--noise", help="the noise-predicting model to compare with")
    parser.add_argument("--evaluations", nargs="+", type=int, default=[4, 6, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--samplers", nargs="+", help="only these names")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--reference", type=Path, help="molecules to compare sizes with, XYZ")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def run(command):
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(f"exit status {done.returncode} of: {' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def point(arguments, model, flags, kind, evaluations, folder):
    file, table = folder / "molecules.xyz", folder / "table.csv"
    steps = {"cap": ["--max-evaluations", evaluations], "steps": ["--steps", evaluations], "pairs": ["--steps", (evaluations + 1) // 2]}[kind]
    common = ["--threads", arguments.threads] if arguments.threads else []
    command = [arguments.binary, "sample", "--model", model, "-n", arguments.count, "--seed", arguments.seed, "--quiet"]
    start = time.perf_counter()
    run([*command, *flags, *steps, *common, "-o", file, "--table", table])
    seconds = time.perf_counter() - start
    with table.open() as rows:
        used = [float(r["evaluations"]) for r in csv.DictReader(rows) if r["evaluations"]]
    judge = [arguments.binary, "evaluate-molecules", file, "--json", "-", "--quiet", *common]
    if arguments.reference:
        judge += ["--reference", arguments.reference]
    found = json.loads(run(judge))
    # Molecules that failed are not in the file: they are not valid either.
    for key in ("valid", "valid_by_the_other_convention"):
        p = found[key]["value"] * found["structures"] / arguments.count
        found[key] = {"value": p, "error": (p * (1 - p) / arguments.count) ** 0.5}
    return {"evaluations": sum(used) / len(used), "seconds": seconds, **found}


def main():
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    contenders = PSEUDO + (NOISE if arguments.noise else [])
    if arguments.samplers:
        contenders = [c for c in contenders if c[0] in arguments.samplers]
    models = {"gpff": arguments.gpff, "noise": arguments.noise}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, model, flags, kind in contenders:
            for evaluations in arguments.evaluations:
                if kind == "pairs" and evaluations < 4:
                    continue
                found = point(arguments, models[model], flags, kind, evaluations, Path(folder))
                rows.append({"sampler": name, "budget": evaluations, **found})
                (arguments.out / "points.json").write_text(json.dumps(rows, indent=1))
                print(name, evaluations, f"{found['evaluations']:.1f}", describe(found), flush=True)
    write(arguments, rows)


def share(found, key="valid"):
    """Per cent and its standard error."""
    return 100 * found[key]["value"], 100 * found[key]["error"]


def neutral(found):
    return share(found, "valid_by_the_other_convention")


def describe(found):
    return "{:.1f} ± {:.1f} %, without charges {:.1f} ± {:.1f} %".format(*share(found), *neutral(found))


def write(arguments, rows):
    with (arguments.out / "points.csv").open("w") as file:
        out = csv.writer(file)
        out.writerow(["sampler", "budget", "evaluations", "valid_percent", "error", "valid_neutral_percent", "error_neutral", "molecules_per_second"])
        for r in rows:
            numbers = [*share(r), *neutral(r)]
            rate = r["structures"] / r["seconds"]
            out.writerow([r["sampler"], r["budget"], f"{r['evaluations']:.2f}", *(f"{x:.2f}" for x in numbers), f"{rate:.1f}"])
    budgets = sorted({r["budget"] for r in rows})
    lines = ["| sampler | " + " | ".join(map(str, budgets)) + " |", "| --- |" + " ---: |" * len(budgets)]
    for name in dict.fromkeys(r["sampler"] for r in rows):
        cells = {r["budget"]: r for r in rows if r["sampler"] == name}
        text = [f"{share(cells[b])[0]:.1f} ({neutral(cells[b])[0]:.1f})" if b in cells else "" for b in budgets]
        lines.append(f"| {name} | " + " | ".join(text) + " |")
    (arguments.out / "table.md").write_text("\n".join(lines) + "\n")
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys(r["sampler"] for r in rows):
        mine = [r for r in rows if r["sampler"] == name]
        style = "--" if name.startswith("DM") else "-"
        x, y = [r["evaluations"] for r in mine], [share(r) for r in mine]
        line = axes.errorbar(x, [v for v, _ in y], [e for _, e in y], fmt="o", ls=style, ms=3, lw=1, label=name)
        for n, v in PUBLISHED.get(name, []):
            axes.plot(n, v, "*", ms=9, color=line[0].get_color())
    axes.set(xscale="log", xlabel="evaluations per molecule", ylabel="valid / %", ylim=(0, 102), title="stars: published")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(arguments.out / "validity.svg")


if __name__ == "__main__":
    main()
