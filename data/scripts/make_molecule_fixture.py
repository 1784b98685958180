"""Makes the fixture of molecular perception: what RDKit's DetermineBonds says of noisy QM9 molecules.

    pip install rdkit==2026.9.1 numpy
    python make_molecule_fixture.py QM9.bin.gz tests/data/molecule/qm9.bin --molecules 3000

QM9.bin.gz: little endian, `QM9Q1\\0\\0\\0`, u32 molecules M, u32 atoms A, f32 scale, u32 gdb[M], u8 atoms[M], u8 split[M],
u8 z[A], i16 xyz[A, 3]; positions are scale * xyz in Å.

Output, little endian: `MOLFIX1\\0`, u32 M, u32 levels L, u32 sigma[L] (units of 1/3000 Å); then per molecule u8 n, u8 z[n],
i16 xyz[n, 3] (1/3000 Å), u32 charged[L], u32 neutral[L], u32 smiles[L]. The numbers are FNV-1a hashes of the graph that
RDKit finds with and without charged fragments (0: it raises), and of its canonical SMILES without stereo (with charged
fragments; 0: it raises). Noise is made of integers, so that every language makes the same.
"""

import argparse
import gzip
import struct

import numpy as np
from rdkit import Chem, RDLogger, rdBase
from rdkit.Chem import rdDetermineBonds

RDKIT = "2026.09.1"
SIGMAS = [0, 300, 450, 600, 900]  # 0, 0.1, 0.15, 0.2, 0.3 Å
MASK = (1 << 64) - 1


def split_mix(counter):
    """SplitMix64 of a counter."""
    z = (counter * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def noise(molecule, level, component):
    """A nearly normal integer of standard deviation 65536: twelve uniform numbers of 16 bits."""
    total = 0
    for k in range(3):
        word = split_mix(1 + k + 3 * (component + 128 * (level + 16 * molecule)))
        total += sum((word >> (16 * j)) & 0xFFFF for j in range(4))
    return total - 12 * 65536 // 2


def fnv(values):
    """FNV-1a over bytes, 32 bits, never 0."""
    h = 0x811C9DC5
    for v in values:
        h = ((h ^ (v & 0xFF)) * 0x01000193) & 0xFFFFFFFF
    return h or 1


ORDERS = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3, Chem.BondType.AROMATIC: 4}


def describe(mol):
    """The graph as bytes: fragments, then charge, radicals and aromaticity per atom, then bonds in order."""
    out = [len(Chem.GetMolFrags(mol))]
    for a in mol.GetAtoms():
        out += [a.GetFormalCharge(), a.GetNumRadicalElectrons(), int(a.GetIsAromatic())]
    bonds = []
    for b in mol.GetBonds():
        i, j = sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))
        bonds.append((i, j, ORDERS[b.GetBondType()]))
    for bond in sorted(bonds):
        out += bond
    return out


def perceive(z, units, charged):
    mol = Chem.RWMol()
    for number in z:
        mol.AddAtom(Chem.Atom(int(number)))
    conformer = Chem.Conformer(len(z))
    for i, x in enumerate(units):
        conformer.SetAtomPosition(i, [float(c) / 3000 for c in x])
    mol.AddConformer(conformer)
    try:
        rdDetermineBonds.DetermineBonds(mol, charge=0, allowChargedFragments=charged, embedChiral=True)
    except (ValueError, RuntimeError):
        return None
    return mol


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qm9")
    parser.add_argument("output")
    parser.add_argument("--molecules", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if rdBase.rdkitVersion != RDKIT:
        raise SystemExit(f"RDKit {rdBase.rdkitVersion} is installed; the fixture is that of {RDKIT}")
    RDLogger.DisableLog("rdApp.*")
    data = gzip.open(args.qm9).read()
    count, atoms, scale = struct.unpack_from("<IIf", data, 8)
    sizes = np.frombuffer(data, np.uint8, count, 20 + 4 * count)
    z = np.frombuffer(data, np.uint8, atoms, 20 + 6 * count)
    xyz = np.frombuffer(data, "<i2", 3 * atoms, 20 + 6 * count + atoms).reshape(-1, 3)
    if abs(scale * 3000 - 1) > 1e-6:
        raise SystemExit(f"the scale is {scale}, not 1/3000 Å")
    starts = np.concatenate([[0], np.cumsum(sizes.astype(int))])
    chosen = np.sort(np.random.default_rng(args.seed).choice(count, args.molecules, replace=False))
    valid = np.zeros((len(SIGMAS), 2), int)
    with open(args.output, "wb") as out:
        out.write(b"MOLFIX1\0" + struct.pack("<II", len(chosen), len(SIGMAS)) + struct.pack(f"<{len(SIGMAS)}I", *SIGMAS))
        for m, source in enumerate(chosen):
            own = slice(starts[source], starts[source + 1])
            n = int(sizes[source])
            results = [[], [], []]
            for level, sigma in enumerate(SIGMAS):
                units = [
                    [int(xyz[own][i][a]) + ((sigma * noise(m, level, 3 * i + a)) >> 16) for a in range(3)] for i in range(n)
                ]
                for k, charged in enumerate((True, False)):
                    mol = perceive(z[own], units, charged)
                    results[k].append(fnv(describe(mol)) if mol is not None else 0)
                    if mol is not None:
                        radicals = sum(a.GetNumRadicalElectrons() for a in mol.GetAtoms())
                        valid[level, k] += radicals == 0 and len(Chem.GetMolFrags(mol)) == 1
                    if charged:
                        smiles = Chem.MolToSmiles(mol, isomericSmiles=False) if mol is not None else None
                        results[2].append(fnv(smiles.encode()) if smiles else 0)
            out.write(bytes([n]) + z[own].tobytes() + xyz[own].astype("<i2").tobytes())
            for row in results:
                out.write(struct.pack(f"<{len(SIGMAS)}I", *row))
    for level, sigma in enumerate(SIGMAS):
        print(f"sigma {sigma / 3000:.2f} Å: valid {valid[level, 0] / len(chosen):.4f} with, {valid[level, 1] / len(chosen):.4f} without charges")


if __name__ == "__main__":
    main()
