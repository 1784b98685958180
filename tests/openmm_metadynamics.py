"""Compares our metadynamics of alanine dipeptide in vacuum along phi with openmm.app.Metadynamics.

    openmm_metadynamics.py PDB SYSTEM_XML hills.csv bias-free-energy.csv
    openmm_metadynamics.py PDB SYSTEM_XML --reference SEED      # prints OpenMM's own free energy every 0.4 ns, for REFERENCE
"""

import math
import sys

import numpy as np
import openmm as mm
from openmm import app, unit

pdb, xml, *rest = sys.argv[1:]
WIDTH, HEIGHT, FACTOR, KT = math.radians(20), 1.2, 6.0, 8.31446261815324e-3 * 300
# Ours are 90 nodes around the circle; OpenMM's grid has the last one twice.
NODES = 91
GRID = np.linspace(-math.pi, math.pi, NODES)[:-1]
# Free energy of positive phi in kJ/mol from OpenMM's own runs: two seeds of 3.2 ns, the mean of what they print from 1.2 ns on,
# and its scatter.
REFERENCE, SCATTER = 8.1, 1.1


def engine(seed):
    with open(xml) as f:
        system = mm.XmlSerializer.deserialize(f.read())
    phi = mm.CustomTorsionForce("theta")
    phi.addTorsion(4, 6, 8, 14)
    variable = app.BiasVariable(phi, -math.pi, math.pi, WIDTH, True, gridWidth=NODES)
    bias = app.Metadynamics(system, [variable], 300, FACTOR, HEIGHT, 200)
    structure = app.PDBFile(pdb)
    integrator = mm.LangevinMiddleIntegrator(300, 5, 0.001)
    integrator.setRandomNumberSeed(seed)
    simulation = app.Simulation(structure.topology, system, integrator, mm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(structure.positions)
    simulation.context.setVelocitiesToTemperature(300, seed)
    return bias, simulation


def free_energy(bias):
    free = bias.getFreeEnergy().value_in_unit(unit.kilojoules_per_mole)[:-1]
    return free - free.min()


def of_positive_phi(free):
    weights = np.exp(-free / KT)
    positive = (GRID > 0) & (GRID < 2.4)
    return -KT * math.log(weights[positive].sum() / weights[~positive].sum())


if rest[0] == "--reference":
    bias, simulation = engine(int(rest[1]))
    for _ in range(8):
        bias.step(simulation, 400_000)
        print(f"{of_positive_phi(free_energy(bias)):.2f}", flush=True)
    sys.exit()

hills = np.genfromtxt(rest[0], delimiter=",", skip_header=1)
ours = np.genfromtxt(rest[1], delimiter=",", skip_header=1)
assert np.allclose(ours[:, 0], GRID, atol=1e-5), "the grids differ"
# Our hills on OpenMM's grid: its free energy from them must be ours.
bias, simulation = engine(1)
for _, _, centre, height in hills:
    bias._addGaussian([centre], height * unit.kilojoules_per_mole, simulation.context)
theirs = free_energy(bias)
same = np.abs(ours[:, 1] - theirs).max()
print(f"the same hills: largest difference {same:.6f} kJ/mol of {theirs.max():.1f}")
assert same < 1e-3, "the surfaces of the same hills differ"
found = of_positive_phi(ours[:, 1])
print(f"free energy of positive phi: {found:.2f} kJ/mol, with OpenMM {REFERENCE} +- {SCATTER}")
assert abs(found - REFERENCE) < 3 * SCATTER, "the free energies differ"
