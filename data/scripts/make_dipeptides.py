"""Dipeptides for transferable models: an OpenMM System and a PDB file for each, and the split into training and test.

The molecules are plain dipeptides (charged ends) of the nineteen amino acids other than glycine, the setting of transferable
coarse-grained models with ten heavy beads, N CA CB C O of both residues (ScoreMD, arXiv 2506.17139).  The force field is
amber14-all with ``implicit/obc1.xml``; no cut-off, no constraint, no motion remover.  Structures come from RDKit's distance
geometry and are minimised in the force field.  The split is drawn with a fixed seed so that every amino acid is in the
training set at both ends.

    python data/scripts/make_dipeptides.py --out dipeptides [--train 40] [--test 15]

Writes ``train/XY.pdb``, ``train/XY.xml``, ``test/...`` and ``beads.json`` with the indices of the beads (from 0).
Needs OpenMM and RDKit.
"""

import argparse
import io
import json
import random
from pathlib import Path

from openmm import LangevinMiddleIntegrator, LocalEnergyMinimizer, Context, Platform, XmlSerializer, unit
from openmm.app import ForceField, Modeller, NoCutoff, PDBFile
from rdkit import Chem
from rdkit.Chem import AllChem

AMINO_ACIDS = "ACDEFHIKLMNPQRSTVWY"
BEADS = ["N", "CA", "CB", "C", "O"]


def structure(sequence, seed):
    """Heavy atoms with PDB names, and hydrogens as the force field wants them at pH 7."""
    molecule = Chem.AddHs(Chem.MolFromSequence(sequence))
    if AllChem.EmbedMolecule(molecule, randomSeed=seed) != 0:
        raise SystemExit(f"{sequence}: no structure was found; change --seed")
    molecule = Chem.RemoveHs(molecule)
    name_isoleucine(molecule)
    pdb = PDBFile(io.StringIO(Chem.MolToPDBBlock(molecule)))
    return Modeller(pdb.topology, pdb.positions)


def name_isoleucine(molecule):
    """CG1 is the carbon that bears CD1, whatever order the atoms have."""
    for atom in molecule.GetAtoms():
        info = atom.GetPDBResidueInfo()
        if info.GetResidueName() == "ILE" and info.GetName().strip() in ("CG1", "CG2"):
            bears = any(n.GetPDBResidueInfo().GetName().strip() == "CD1" for n in atom.GetNeighbors())
            info.SetName(" CG1" if bears else " CG2")


def check_chirality(topology, positions, sequence):
    """All alpha carbons must be L: looking from H, CO-R-N turn clockwise."""
    for residue in topology.residues():
        at = {atom.name: positions[atom.index].value_in_unit(unit.nanometer) for atom in residue.atoms()}
        a, b, c = (at[name] - at["CA"] for name in ("N", "C", "CB"))
        volume = a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])
        if volume < 0:
            raise SystemExit(f"{sequence}: {residue.name} is a D amino acid")


def write(sequence, folder, forcefield, seed):
    modeller = structure(sequence, seed)
    modeller.addHydrogens(forcefield, pH=7.0, platform=Platform.getPlatformByName("Reference"))
    system = forcefield.createSystem(modeller.topology, nonbondedMethod=NoCutoff, constraints=None, rigidWater=False, removeCMMotion=False)
    context = Context(system, LangevinMiddleIntegrator(310, 0.3, 0.0005), Platform.getPlatformByName("Reference"))
    context.setPositions(modeller.positions)
    LocalEnergyMinimizer.minimize(context, 10.0, 500)
    positions = context.getState(getPositions=True).getPositions()
    check_chirality(modeller.topology, positions, sequence)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{sequence}.pdb", "w") as file:
        PDBFile.writeFile(modeller.topology, positions, file, keepIds=True)
    (folder / f"{sequence}.xml").write_text(XmlSerializer.serialize(system))
    names = [{atom.name: atom.index for atom in residue.atoms()} for residue in modeller.topology.residues()]
    return [residue[bead] for residue in names for bead in BEADS]


def split(train, test, seed):
    """Disjoint sets of dipeptides; the training set has every amino acid at both ends."""
    draw = random.Random(seed)
    first, second = list(AMINO_ACIDS), list(AMINO_ACIDS)
    draw.shuffle(first)
    draw.shuffle(second)
    chosen = [a + b for a, b in zip(first, second)]
    others = [a + b for a in AMINO_ACIDS for b in AMINO_ACIDS if a + b not in chosen]
    draw.shuffle(others)
    if not len(chosen) <= train <= len(chosen) + len(others) - test:
        raise SystemExit(f"--train is between {len(chosen)} and {len(chosen) + len(others) - test}")
    chosen += others[: train - len(chosen)]
    return sorted(chosen), sorted([s for s in others if s not in chosen][:test])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=40)
    parser.add_argument("--test", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    forcefield = ForceField("amber14-all.xml", "implicit/obc1.xml")
    beads = {}
    for name, sequences in zip(("train", "test"), split(options.train, options.test, options.seed)):
        for sequence in sequences:
            beads[f"{name}/{sequence}"] = write(sequence, options.out / name, forcefield, options.seed)
            print(f"{name}/{sequence}")
    (options.out / "beads.json").write_text(json.dumps(beads, indent=1) + "\n")


if __name__ == "__main__":
    main()
