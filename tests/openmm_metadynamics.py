"""Compares our metadynamics of alanine dipeptide along phi with openmm.app.Metadynamics.

    openmm_metadynamics.py PDB SYSTEM_XML hills.csv bias-free-energy.csv
"""

import math
import sys

import numpy as np
import openmm as mm
from openmm import app, unit

pdb, xml, hills_file, free_file = sys.argv[1:]
WIDTH, HEIGHT, FACTOR, KT = math.radians(20), 1.2, 6.0, 8.31446261815324e-3 * 300
# Ours are 90 nodes around the circle; OpenMM's grid has the last one twice.
NODES = 91


def engine(steps_per_hill):
    with open(xml) as f:
        system = mm.XmlSerializer.deserialize(f.read())
    phi = mm.CustomTorsionForce("theta")
    phi.addTorsion(4, 6, 8, 14)
    variable = app.BiasVariable(phi, -math.pi, math.pi, WIDTH, True, gridWidth=NODES)
    bias = app.Metadynamics(system, [variable], 300, FACTOR, HEIGHT, steps_per_hill)
    structure = app.PDBFile(pdb)
    integrator = mm.LangevinMiddleIntegrator(300, 5, 0.001)
    integrator.setRandomNumberSeed(3)
    simulation = app.Simulation(structure.topology, system, integrator, mm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(structure.positions)
    simulation.context.setVelocitiesToTemperature(300, 5)
    return bias, simulation


ours = np.genfromtxt(free_file, delimiter=",", skip_header=1)
hills = np.genfromtxt(hills_file, delimiter=",", skip_header=1)
grid = np.linspace(-math.pi, math.pi, NODES)
assert np.allclose(ours[:, 0], grid[:-1], atol=1e-5), "the grids differ"

# Our hills on OpenMM's grid: its free energy from them must be ours.
bias, simulation = engine(200)
for _, _, centre, height in hills:
    bias._addGaussian([centre], height * unit.kilojoules_per_mole, simulation.context)
theirs = bias.getFreeEnergy().value_in_unit(unit.kilojoules_per_mole)
theirs -= theirs.min()
same = np.abs(ours[:, 1] - theirs[:-1]).max()
depth = theirs.max()
print(f"the same hills: largest difference {same:.6f} kJ/mol of {depth:.1f}")
assert same < 1e-3, "the surfaces of the same hills differ"

# OpenMM's own run: the populations of the half of positive phi must agree.
bias, simulation = engine(200)
for _ in range(3):
    bias.step(simulation, 200_000)
free = bias.getFreeEnergy().value_in_unit(unit.kilojoules_per_mole)


def positive(s, free):
    weights = np.exp(-(free - free.min()) / KT)
    return -KT * math.log(weights[(s > 0) & (s < 2.4)].sum() / weights[(s <= 0) | (s >= 2.4)].sum())


a, b = positive(ours[:, 0], ours[:, 1]), positive(grid, free)
print(f"free energy of positive phi: {a:.2f} kJ/mol, with OpenMM {b:.2f} kJ/mol")
assert abs(a - b) < 3.0, "the free energies differ"
