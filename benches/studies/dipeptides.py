"""A transferable model on dipeptides that it was not trained on: samples and simulation against reference dynamics.

    python3 benches/studies/dipeptides.py beads/test --model data/models/dipeptides/both-0.safetensors

Runs `scorefield consistency` on every NAME.pdb and NAME.dcd of the folder (data/scripts/simulate_dipeptides.sh makes them), over
φ of the second and ψ of the first residue, and prints JS divergence and PMF error of samples and simulation beside their
floors, and mean and standard deviation over the molecules as they are published (ScoreMD, arXiv 2506.17139).
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# Among N CA C O CB of both residues.
PHI, PSI = "2,5,6,7", "0,1,2,5"


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of molecules [all]")
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "scorefield")
    parser.add_argument("--count", type=int, default=1000, help="independent samples")
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20000, help="steps of each chain")
    parser.add_argument("--every", type=int, default=20, help="steps between frames")
    parser.add_argument("--dt", default="1 fs")
    parser.add_argument("--limit", type=int, default=16000, help="most frames that are compared")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--out", type=Path, default=Path("dipeptide-reports"))
    return parser.parse_args()


def report(options, name):
    folder = options.out / name
    command = [options.binary.resolve(), "consistency", "--reference", options.folder / f"{name}.dcd", "--topology", options.folder / f"{name}.pdb"]
    command += ["--reference-replicas", "8", "--phi", PHI, "--psi", PSI, "--model", options.model, "--temperature", "310 K"]
    command += ["--dt", options.dt, "--friction", "1 /ps", "--chains", options.chains, "--steps", options.steps, "--every", options.every]
    command += ["--count", options.count, "--limit", options.limit, "--residual-times", "0", "--threads", options.threads]
    command += ["--out", folder, "--overwrite", "--quiet"]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "report.json").read_text())


def main():
    options = parse()
    names = options.only or sorted(path.stem for path in options.folder.glob("*.dcd"))
    options.out.mkdir(parents=True, exist_ok=True)
    columns = [(key, which) for key in ("js", "pmf") for which in (0, 1)]
    collected = {column: [] for column in columns}
    print(f"{'molecule':10}" + "".join(f"{label:>22}" for label in ("samples JS", "simulation JS", "samples PMF", "simulation PMF")) + "  broken frames")
    for name in names:
        found = report(options, name)
        rows = {row["key"]: row for row in found["rows"]}
        cells = []
        for key, which in columns:
            value = rows[key]["values"][which]
            collected[key, which].append(value["value"])
            cells.append(f"{value['value']:.4f} ({value['floor']['mean']:.4f})")
        broken = found["sets"][-1]["broken_frames"]
        print(f"{name:10}" + "".join(f"{cell:>22}" for cell in cells) + f"  {broken} of {found['sets'][-1]['frames']}", flush=True)
    if len(names) > 1:
        cells = [f"{statistics.mean(v):.4f} ± {statistics.stdev(v):.4f}" for v in collected.values()]
        print(f"{'mean':10}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
