"""Writes tests/data/molecule/conformers.json: ETKDG conformers of small molecules and RDKit's distances between them.

    python data/scripts/make_conformer_fixture.py

Needs RDKit (made with 2026.09.1). Distances are `rdMolAlign.GetBestRMS` without hydrogens: least over rotations, translations and
exchanges of equivalent atoms. Coordinates are rounded before they are compared.
"""

import json
from pathlib import Path

from rdkit import Chem
from rdkit.Chem import AllChem, rdMolAlign
from rdkit.Geometry import Point3D

SMILES = [
    "CCO", "CC(=O)Nc1ccc(O)cc1", "CC(C)(C)CO", "OC(=O)CCC(=O)O", "C[N+](=O)[O-]", "CC(C)Cc1ccc(cc1)C(C)C(=O)O", "FC(F)(F)CCO",
    "NC(=N)NCCC", "C1CCCCC1CC", "CS(=O)(=O)NC", "OP(=O)(O)OC", "CC(=O)[O-]", "c1ccccc1-c1ccccc1", "N[C@@H](C)C(=O)O", "F/C=C/CCO",
]
CONFORMERS = 3

entries = []
for smiles in SMILES:
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    ids = list(AllChem.EmbedMultipleConfs(molecule, CONFORMERS, randomSeed=7))
    positions = []
    for k in ids:
        conformer = molecule.GetConformer(k)
        flat = [round(float(v), 3) for p in conformer.GetPositions() for v in p]
        for i in range(molecule.GetNumAtoms()):
            conformer.SetAtomPosition(i, Point3D(*flat[3 * i : 3 * i + 3]))
        positions.append(flat)
    heavy = Chem.RemoveHs(molecule)
    distances = [rdMolAlign.GetBestRMS(Chem.Mol(heavy), Chem.Mol(heavy), a, b) for a in ids for b in ids if a < b]
    entries.append({"smiles": smiles, "positions": positions, "distances": distances})

target = Path(__file__).resolve().parents[2] / "tests/data/molecule/conformers.json"
target.write_text(json.dumps(entries, separators=(",", ":")) + "\n")
