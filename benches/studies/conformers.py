"""Conformers of a model beside RDKit's ETKDGv3, against reference ensembles.

    python3 benches/studies/conformers.py ensembles/test.sdf --model model.safetensors

Takes molecules of a file of ensembles (`scorefield generate-ensembles`), draws twice as many conformers of each as
its ensemble has, embeds as many with ETKDGv3 (unrelaxed), and evaluates both with `scorefield evaluate-conformers`.
Prints both tables, the delivered and the failed, and the time.  Needs rdkit.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

from rdkit import Chem, RDLogger, rdBase
from rdkit.Chem import AllChem

ROOT = Path(__file__).resolve().parent.parent.parent


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ensembles", type=Path, help="conformers of one molecule after the other, SDF")
    parser.add_argument("--model", help="a conformer model [the embedded one]")
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "scorefield")
    parser.add_argument("--molecules", type=int, default=200, help="so many of them, evenly through the file")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="directory for the conformers and scores")
    return parser.parse_args()


def read(path):
    """Records of each molecule, which follow each other under one title."""
    molecules = []
    for record in path.read_text().split("$$$$\n"):
        if not record.strip():
            continue
        title = record.split("\n", 1)[0]
        if not molecules or molecules[-1][0] != title:
            molecules.append((title, []))
        molecules[-1][1].append(record)
    return molecules


def embed(molecules, path, seed):
    """Twice as many conformers as there are records; the number of molecules that could not be embedded."""
    failed = 0
    with Chem.SDWriter(str(path)) as writer:
        for title, records in molecules:
            # Handedness and E/Z are those of the first conformer.
            molecule = Chem.MolFromMolBlock(records[0], removeHs=False)
            if molecule is None:
                failed += 1
                continue
            Chem.AssignStereochemistryFrom3D(molecule)
            options = AllChem.ETKDGv3()
            options.randomSeed = seed + 1
            ids = list(AllChem.EmbedMultipleConfs(molecule, 2 * len(records), options))
            failed += not ids
            molecule.SetProp("_Name", title)
            for i in ids:
                writer.write(molecule, confId=i)
    return failed


def evaluate(binary, generated, reference, scores, seed):
    command = [binary, "evaluate-conformers", generated, "--reference", reference, "--thresholds", "0.1,0.5", "--json", scores]
    print(subprocess.run([*command, "--seed", str(seed)], check=True, capture_output=True, text=True).stdout)
    return json.loads(scores.read_text())


def main():
    options = parse()
    RDLogger.DisableLog("rdApp.*")
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        molecules = read(options.ensembles)
        count = min(options.molecules, len(molecules))
        molecules = [molecules[i * len(molecules) // count] for i in range(count)]
        reference = out / "reference.sdf"
        reference.write_text("".join(r + "$$$$\n" for _, records in molecules for r in records))
        print(f"{count} molecules with {sum(len(r) for _, r in molecules)} conformers\n")

        generated = out / "generated.sdf"
        command = [options.binary, "conformers", "--input", reference, "-n", "2K", "--steps", str(options.steps), "-o", generated]
        command += ["--seed", str(options.seed), "--threads", str(options.threads)] + (["--model", options.model] if options.model else [])
        begin = time.perf_counter()
        # Status 1: some molecules are left without conformers, as the evaluation will say.
        drawn = subprocess.run(command, capture_output=True, text=True)
        if drawn.returncode > 1 or not generated.exists():
            raise SystemExit(drawn.stderr)
        print(drawn.stdout)
        print(f"in {time.perf_counter() - begin:.1f} s on {options.threads} threads\n")
        evaluate(options.binary, generated, reference, out / "generated.json", options.seed)

        embedded = out / "etkdg.sdf"
        begin = time.perf_counter()
        failed = embed(molecules, embedded, options.seed)
        print(f"ETKDGv3 of RDKit {rdBase.rdkitVersion}: {failed} molecules failed, {time.perf_counter() - begin:.1f} s on one thread\n")
        evaluate(options.binary, embedded, reference, out / "etkdg.json", options.seed)


if __name__ == "__main__":
    main()
