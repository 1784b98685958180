"""Writes tests/data/molecule/centres.json and centres.smi: molecules with many stereo centres (sugars, steroids, bridged rings).

    python data/scripts/make_centres_fixture.py

Needs RDKit (made with 2026.09.1). The JSON file has one ETKDG conformer of each, which has the handedness that its SMILES says.
"""

import json
from pathlib import Path

from rdkit import Chem
from rdkit.Chem import AllChem

MOLECULES = {
    "ribose": "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H]1O",
    "xylose": "O[C@@H]1CO[C@@H](O)[C@H](O)[C@H]1O",
    "glucose": "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O",
    "mannose": "OC[C@H]1O[C@@H](O)[C@@H](O)[C@@H](O)[C@@H]1O",
    "galactose": "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@H]1O",
    "fructose": "OC[C@]1(O)OC[C@@H](O)[C@@H](O)[C@@H]1O",
    "sorbitol": "OC[C@@H](O)[C@@H](O)[C@H](O)[C@@H](O)CO",
    "quinic acid": "O[C@@H]1C[C@](O)(C[C@@H](O)[C@H]1O)C(=O)O",
    "trehalose": "OC[C@H]1O[C@H](O[C@H]2O[C@H](CO)[C@@H](O)[C@H](O)[C@H]2O)[C@H](O)[C@@H](O)[C@@H]1O",
    "menthol": "CC(C)[C@@H]1CC[C@@H](C)C[C@H]1O",
    "camphor": "CC1(C)[C@@H]2CC[C@@]1(C)C(=O)C2",
    "decalin": "C[C@H]1CC[C@@H]2[C@H](O)CCC[C@]2(C)C1",
    "estradiol": "C[C@]12CC[C@H]3[C@@H](CCc4cc(O)ccc34)[C@@H]1CC[C@@H]2O",
    "testosterone": "C[C@]12CC[C@H]3[C@@H](CCC4=CC(=O)CC[C@]34C)[C@@H]1CC[C@@H]2O",
    "androstanediol": "C[C@]12CC[C@@H](O)C[C@@H]1CC[C@@H]1[C@@H]2CC[C@]2(C)[C@@H](O)CC[C@@H]12",
    "cholesterol": "CC(C)CCC[C@@H](C)[C@H]1CC[C@H]2[C@@H]3CC=C4C[C@@H](O)CC[C@]4(C)[C@H]3CC[C@]12C",
}

entries, lines = [], []
for name, smiles in MOLECULES.items():
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(molecule, randomSeed=7) == 0, name
    positions = [round(float(v), 3) for p in molecule.GetConformer().GetPositions() for v in p]
    centres = len(Chem.FindMolChiralCenters(molecule, useLegacyImplementation=False))
    entries.append({"name": name, "smiles": smiles, "centres": centres, "positions": positions})
    lines.append(f"{smiles} {name}")
    print(f"{name}: {centres} centres, {molecule.GetNumHeavyAtoms()} heavy atoms")

folder = Path(__file__).resolve().parents[2] / "tests/data/molecule"
(folder / "centres.json").write_text(json.dumps(entries, separators=(",", ":")) + "\n")
(folder / "centres.smi").write_text("\n".join(lines) + "\n")
