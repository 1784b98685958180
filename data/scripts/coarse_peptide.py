"""Five-bead frames of alanine dipeptide from a replica-exchange run: training data and a disjoint reference.

``scorefield exchange ... --trajectory-layout per-replica`` writes one DCD file per independent copy.  Copies are split:
the first ones give the training frames, the others the reference, so that the two share no trajectory.  The beads are the
C N CA C N of the backbone (atoms 4, 6, 8, 14, 16 from 0).  Training frames are drawn at random without repeats; the
reference keeps all frames, copy after copy in the order of time.  Also writes the reference's φ/ψ histogram (64 x 64 over
-π..π) and prints the populations of the two φ basins with errors over copies.

    python data/scripts/coarse_peptide.py RUN --out FOLDER [--train-copies 12] [--train 50000] [--skip 500]

Needs NumPy and MDTraj.
"""

import argparse
import json
from pathlib import Path

import mdtraj
import numpy as np

BEADS = [4, 6, 8, 14, 16]


def torsions(frames):
    return np.concatenate([mdtraj.compute_dihedrals(frames, [q]) for q in ([0, 1, 2, 3], [1, 2, 3, 4])], axis=1)


def write_pdb(beads, path):
    """The beads with a bond between each and the next."""
    lines = []
    for atom, (x, y, z) in zip(beads.topology.atoms, 10 * (beads.xyz[0] - beads.xyz[0].mean(axis=0))):
        name, residue = atom.name, atom.residue
        lines.append(
            f"ATOM  {atom.index + 1:5d}  {name:<3s} {residue.name:3s} A{residue.resSeq:4d}    "
            f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {atom.element.symbol:>2s}"
        )
    n = beads.n_atoms
    for i in range(1, n + 1):
        lines.append("CONECT" + "".join(f"{k:5d}" for k in [i, i - 1, i + 1] if 1 <= k <= n))
    path.write_text("\n".join(lines + ["END", ""]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the exchange run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--temperature", default="300K", help="as in the names of the trajectories")
    parser.add_argument("--train-copies", type=int, default=12)
    parser.add_argument("--train", type=int, default=50_000, help="training frames")
    parser.add_argument("--skip", type=int, default=500, help="frames of each copy that are left out at the start")
    parser.add_argument("--last", type=int, help="end of the frames of each copy")
    parser.add_argument("--parts", default="train,reference", help="which files to write")
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    parts = options.parts.split(",")

    structure = options.run / "structure.pdb"
    files = sorted(options.run.glob(f"trajectory-{options.temperature}.replica-*.dcd"))
    split = {"train": files[: options.train_copies], "reference": files[options.train_copies :]}
    copies = {}
    for part in parts:
        loaded = [mdtraj.load(str(f), top=str(structure), atom_indices=BEADS) for f in split[part]]
        copies[part] = [t[options.skip : options.last] for t in loaded]
    beads = next(iter(copies.values()))[0][0]
    write_pdb(beads, out / "beads.pdb")

    for part, frames in copies.items():
        angles = [torsions(t) for t in frames]
        positive = np.array([np.mean(a[:, 0] > 0) for a in angles])
        helix = np.array([np.mean((a[:, 0] < 0) & (a[:, 1] > -2.094) & (a[:, 1] < 0.873)) for a in angles])
        for name, p in (("phi > 0", positive), ("alpha-R", helix)):
            print(f"{part}: P({name}) = {100 * p.mean():.2f} +- {100 * p.std(ddof=1) / len(p) ** 0.5:.2f} % over {len(p)} copies")
        xyz = np.concatenate([t.xyz for t in frames])
        if part == "train":
            chosen = np.random.default_rng(0).permutation(len(xyz))[: options.train]
            xyz = xyz[chosen]
        all_frames = mdtraj.Trajectory(xyz, beads.topology)
        all_frames.save_dcd(str(out / f"{part}.dcd"))
        print(f"{part}: {len(xyz)} frames")
        for i, j in zip(range(4), range(1, 5)):
            d = np.linalg.norm(xyz[:, i] - xyz[:, j], axis=1)
            print(f"{part}: bond {i}-{j} {1e3 * d.mean():.2f} pm, standard deviation {1e3 * d.std():.3f} pm")
        if part == "reference":
            a = np.concatenate(angles)
            counts, *_ = np.histogram2d(a[:, 0], a[:, 1], bins=64, range=[[-np.pi, np.pi]] * 2)
            record = {
                "what": "counts of (phi, psi), [phi bin][psi bin], 64 x 64 bins over -pi..pi",
                "frames": len(a),
                "copies": len(angles),
                "phi_positive": {"mean": positive.mean(), "standard_error": positive.std(ddof=1) / len(positive) ** 0.5},
                "counts": counts.astype(int).tolist(),
            }
            (out / "reference-histogram.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
