"""Makes the fixture of SMILES and graph features: what RDKit makes of the SMILES of a file.

    pip install rdkit==2026.9.1
    python make_smiles_fixture.py tests/data/molecule/smiles.txt --every 5
    python make_smiles_fixture.py /tmp/all.txt more.smi more.smi.gz

Without files, the first 5,000 molecules of NCI's database are taken, which RDKit brings along (public domain). One line per
molecule: SMILES, the same molecule written in random order, and hashes (FNV-1a, 32 bits, hexadecimal) of its canonical SMILES
with and without stereo and of the columns of features below, all hydrogens being atoms. Where RDKit refuses a SMILES, there are
no hashes.
"""

import argparse
import gzip
import os

from rdkit import Chem, RDConfig, RDLogger, rdBase

RDKIT = "2026.09.1"
HYBRIDISATIONS = {"SP": 0, "SP2": 1, "SP3": 2, "SP3D": 3, "SP3D2": 4}
TAGS = {"CHI_TETRAHEDRAL_CW": 0, "CHI_TETRAHEDRAL_CCW": 1, "CHI_UNSPECIFIED": 2}
ORDERS = {Chem.BondType.SINGLE: 0, Chem.BondType.DOUBLE: 1, Chem.BondType.TRIPLE: 2, Chem.BondType.AROMATIC: 3}


def fnv(values):
    h = 0x811C9DC5
    for v in values:
        h = ((h ^ (v & 0xFF)) * 0x01000193) & 0xFFFFFFFF
    return f"{h:08x}"


def columns(mol):
    """Features by column, as bytes."""
    rings = mol.GetRingInfo()
    atoms = list(mol.GetAtoms())
    yield [a.GetAtomicNum() for a in atoms]
    yield [b for a in atoms for b in (a.GetFormalCharge(), a.GetNumRadicalElectrons(), a.GetTotalDegree())]
    yield [int(a.GetIsAromatic()) for a in atoms]
    yield [HYBRIDISATIONS.get(str(a.GetHybridization()), 5) for a in atoms]
    yield [b for a in atoms for b in [sum(rings.IsAtomInRingOfSize(a.GetIdx(), 3 + k) << k for k in range(6)), rings.NumAtomRings(a.GetIdx())]]
    yield [TAGS.get(str(a.GetChiralTag()), 3) for a in atoms]
    yield [
        x & 0xFF
        for i, j, order in sorted((*sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())), ORDERS[b.GetBondType()]) for b in mol.GetBonds())
        for x in (i, j, order)
    ]


def usable(mol):
    return (
        mol.GetNumAtoms() > 0
        and all(1 <= a.GetAtomicNum() <= 86 for a in mol.GetAtoms())
        and all(b.GetBondType() in ORDERS for b in mol.GetBonds())
        and not any(str(a.GetChiralTag()) not in TAGS for a in mol.GetAtoms())
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("files", nargs="*", default=[os.path.join(RDConfig.RDDataDir, "NCI", "first_5K.smi")])
    parser.add_argument("--every", type=int, default=1, help="take one molecule of so many")
    args = parser.parse_args()
    if rdBase.rdkitVersion != RDKIT:
        raise SystemExit(f"RDKit {rdBase.rdkitVersion} is installed; the fixture is that of {RDKIT}")
    RDLogger.DisableLog("rdApp.*")
    count = refused = 0
    with open(args.output, "w") as out:
        for name in args.files:
            lines = (gzip.open(name, "rt") if name.endswith(".gz") else open(name)).read().splitlines()
            for line in lines[:: args.every]:
                parts = line.replace(",", " ").split()
                if not parts or parts[0].lower() == "smiles":
                    continue
                smiles = parts[0]
                mol = Chem.MolFromSmiles(smiles, sanitize=False)
                if mol is None or not usable(mol):
                    continue
                parameters = Chem.SmilesParserParams()
                parameters.removeHs = False
                mol = Chem.MolFromSmiles(smiles, parameters)
                if mol is None:
                    out.write(f"{smiles}\n")
                    refused += 1
                    continue
                if not usable(mol):
                    continue
                other = Chem.MolToRandomSmilesVect(mol, 1, randomSeed=count + 1)[0]
                bare = Chem.MolFromSmiles(smiles)
                canonical = [Chem.MolToSmiles(bare).encode(), Chem.MolToSmiles(bare, isomericSmiles=False).encode()]
                hashes = [fnv(c) for c in canonical] + [fnv(c) for c in columns(Chem.AddHs(mol))]
                out.write(" ".join([smiles, other, *hashes]) + "\n")
                count += 1
    print(f"{count} molecules, {refused} refused by RDKit")


if __name__ == "__main__":
    main()
