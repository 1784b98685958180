"""Converts GEOM's pickled RDKit molecules to SDF ensembles that `scorefield train` and `evaluate-conformers` read.

    python data/scripts/convert_geom.py rdkit_folder/qm9 --output geom-qm9 --split split0.npy
    python data/scripts/convert_geom.py test_mols.pkl --output geom-qm9-test

Needs RDKit (tested with 2026.9.1; pickles are read by RDKit of their own or a later version) and numpy. GEOM (S. Axelrod and R.
Gomez-Bombarelli, Sci. Data 9, 185, 2022) is at Harvard Dataverse, doi 10.7910/DVN/JNGTDF: `rdkit_folder.tar.gz` holds `qm9`, `drugs`
and a summary of each. A pickle is a molecule: its SMILES and its conformers, each with `rd_mol`, `totalenergy` (hartree), `relativeenergy`
(kcal/mol) and `boltzmannweight`. A file that is a dictionary from SMILES to lists of molecules, as `test_mols.pkl` of Torsional
Diffusion, becomes test.sdf.

Written are train.sdf, validation.sdf and test.sdf by GeoMol's split (three lists of indices into the sorted names of the pickles), or
all.sdf without one; conformers of a molecule follow each other, by falling weight, the best `--most` of them in train and validation (30,
as published) and all in test. Left out and counted are molecules of several parts, those that cannot be parsed and those with an atom of
more than four neighbours; and conformers in more than one part, or with other bonds or another handedness than the first one of their
molecule. Only unpickle files that you trust: a pickle can run any program.
"""

import argparse
import collections
import pickle
import sys
from pathlib import Path

from rdkit import Chem, RDLogger

KJ_PER_HARTREE, KJ_PER_KCAL = 2625.4996394799, 4.184


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a folder of GEOM's pickles, or a file of molecules by SMILES")
    parser.add_argument("--output", type=Path, required=True, help="folder for the ensembles")
    parser.add_argument("--split", type=Path, help="GeoMol's split, for example split0.npy")
    parser.add_argument("--most", type=int, default=30, help="conformers of a molecule in train and validation [30]")
    parser.add_argument("--limit", type=int, help="so many molecules of each part")
    arguments = parser.parse_args()
    if not arguments.source.exists():
        parser.error(f"{arguments.source} does not exist")
    if arguments.split and arguments.source.is_file():
        parser.error("--split is for a folder of pickles")
    return arguments


def smiles_of(molecule):
    """Canonical SMILES of what the coordinates show, or none where they show several parts."""
    molecule = Chem.Mol(molecule)
    Chem.AssignStereochemistryFrom3D(molecule)
    smiles = Chem.MolToSmiles(Chem.RemoveHs(molecule))
    return None if "." in smiles else smiles


def fault(smiles):
    """Why a molecule is left out."""
    if "." in smiles:
        return "of several parts"
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        return "not parsed"
    if any(atom.GetDegree() > 4 for atom in Chem.AddHs(molecule).GetAtoms()):
        return "with more than four neighbours of an atom"
    return None


def bonds(molecule):
    """Elements and bonds, in the order of the atoms."""
    pairs = sorted((*sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())), str(b.GetBondType())) for b in molecule.GetBonds())
    return [a.GetAtomicNum() for a in molecule.GetAtoms()], pairs


class Writer:
    """SDF files of the parts, and counts."""

    def __init__(self, folder):
        self.folder, self.files, self.counts = folder, {}, collections.Counter()
        folder.mkdir(parents=True, exist_ok=True)

    def molecule(self, part, smiles, conformers, most):
        """Writes the conformers of one molecule: dictionaries with `rd_mol` and what is known of it. True where there is one."""
        why = fault(smiles)
        if why:
            self.counts[f"molecules {why}"] += 1
            return False
        conformers = sorted(conformers, key=lambda c: -c.get("boltzmannweight", 0.0))
        kept, first = [], None
        for conformer in conformers:
            shown = smiles_of(conformer["rd_mol"])
            if shown is None:
                self.counts["conformers in several parts"] += 1
                continue
            what = (bonds(conformer["rd_mol"]), shown)
            first = first or what
            if what[0] != first[0]:
                self.counts["conformers with other bonds"] += 1
            elif what[1] != first[1]:
                self.counts["conformers with another handedness"] += 1
            else:
                kept.append(conformer)
        for conformer in kept[:most]:
            self.write(part, smiles, first[1], conformer)
        self.counts[f"molecules in {part}"] += bool(kept)
        self.counts[f"conformers in {part}"] += len(kept[:most])
        return bool(kept)

    def write(self, part, name, smiles, conformer):
        molecule = Chem.Mol(conformer["rd_mol"])
        molecule.SetProp("_Name", name)
        properties = {"SMILES": smiles, "boltzmann_weight": conformer.get("boltzmannweight")}
        if "totalenergy" in conformer:
            properties["energy_kJ_mol"] = conformer["totalenergy"] * KJ_PER_HARTREE
        if "relativeenergy" in conformer:
            properties["relative_energy_kJ_mol"] = conformer["relativeenergy"] * KJ_PER_KCAL
        for key in list(molecule.GetPropNames()):
            molecule.ClearProp(key)
        for key, value in properties.items():
            if value is not None:
                molecule.SetProp(key, value if isinstance(value, str) else f"{value:.6f}")
        if part not in self.files:
            self.files[part] = Chem.SDWriter(str(self.folder / f"{part}.sdf"))
        self.files[part].write(molecule)

    def close(self):
        for file in self.files.values():
            file.close()


def load(path):
    with open(path, "rb") as file:
        return pickle.load(file)


def parts_of(split, count):
    """Of each pickle, by its place among the sorted names, the part it is in."""
    if split is None:
        return {k: "all" for k in range(count)}
    import numpy

    lists = numpy.load(split, allow_pickle=True)
    parts = {}
    for name, indices in zip(("train", "validation", "test"), lists):
        parts.update((int(k), name) for k in indices)
    beyond = [k for k in parts if k >= count]
    if beyond:
        sys.exit(f"{split} has index {max(beyond)}, but there are only {count} pickles: it is of another data set")
    return parts


def main():
    arguments = parse()
    RDLogger.DisableLog("rdApp.*")
    writer, done = Writer(arguments.output), collections.Counter()
    if arguments.source.is_file():
        for smiles, molecules in list(load(arguments.source).items())[: arguments.limit]:
            writer.molecule("test", smiles, [{"rd_mol": m} for m in molecules], None)
    else:
        pickles = sorted(arguments.source.glob("*.pickle"))
        if not pickles:
            sys.exit(f"{arguments.source} has no .pickle files; give the folder of one data set, such as rdkit_folder/qm9")
        for k, part in sorted(parts_of(arguments.split, len(pickles)).items()):
            if arguments.limit and done[part] >= arguments.limit:
                continue
            entry = load(pickles[k])
            most = None if part == "test" else arguments.most
            done[part] += writer.molecule(part, entry["smiles"], entry["conformers"], most)
    writer.close()
    for what, count in sorted(writer.counts.items()):
        print(f"{count:8d} {what}")
    if not writer.files:
        sys.exit("nothing was written")


main()
