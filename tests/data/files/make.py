"""Makes the trajectories and structures beside this script with other programs than ours (MDTraj, ASE), from two distorted
frames of alanine dipeptide in a triclinic cell. `positions.json` holds what readers must find, in nm.

Run with MDTraj 1.11 and ASE 3.29: python make.py ../../../data/alanine-dipeptide/alanine-dipeptide.pdb
"""

import json
import os
import sys

import ase.io
import mdtraj
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

here = os.path.dirname(os.path.abspath(__file__))
start = mdtraj.load(sys.argv[1])
rng = np.random.default_rng(1)
x = (start.xyz[0] + rng.normal(size=(2, start.n_atoms, 3)) * 0.005).astype("f4")
trajectory = mdtraj.Trajectory(
    x,
    start.topology,
    time=[0.0, 0.5],
    unitcell_lengths=np.tile([2.0, 2.2, 2.4], (2, 1)),
    unitcell_angles=np.tile([90.0, 80.0, 70.0], (2, 1)),
)
for extension in ["dcd", "xtc", "trr", "nc", "lammpstrj", "gro", "pdb", "cif"]:
    trajectory.save(os.path.join(here, f"two.{extension}"))
symbols = [atom.element.symbol for atom in start.topology.atoms]
frames = []
for positions in x:
    atoms = ase.Atoms(symbols, positions=10.0 * positions.astype(float), cell=[20, 22, 24, 90, 80, 70], pbc=True)
    forces = np.arange(3.0 * len(atoms)).reshape(-1, 3) / 100
    atoms.calc = SinglePointCalculator(atoms, energy=-3.25, forces=forces)
    frames.append(atoms)
ase.io.write(os.path.join(here, "two.extxyz"), frames)
ase.io.write(os.path.join(here, "one.lmp"), frames[0], format="lammps-data", masses=True)
with open(os.path.join(here, "positions.json"), "w") as out:
    json.dump(np.round(x.astype(float).reshape(2, -1), 7).tolist(), out)
    out.write("\n")
