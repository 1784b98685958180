"""Reference energies and forces of molecular-mechanics systems from OpenMM.

For each case three files are written to ``tests/data/mechanics``:

* ``CASE.pdb``: the topology and one structure;
* ``CASE.system.xml``: the ``System`` as ``XmlSerializer`` writes it;
* ``CASE.reference.json``: a list of frames, each with ``positions_nm``,
  ``energy_kJ_mol``, ``components`` (energy by force, keyed
  ``"INDEX:FORCE_NAME"`` with the index in the XML file) and
  ``forces_kJ_mol_nm``.

Energies and forces come from the Reference platform, which computes in f64.
The frames are the energy minimum, three snapshots of Langevin dynamics at
300 K, and the minimum with Gaussian noise of 0.005 nm on every coordinate;
of systems of more than 200 atoms one snapshot. Periodic systems have the cell
of their XML file.
Numbers are written with as many digits as reading them back exactly needs.

Some cases are meant to be refused by a reader of plain force fields: they are
here so that the refusal can be tested, and carry references for the day the
feature is supported.

    python data/scripts/make_mechanics_references.py [--only CASE ...]
"""

import argparse
import copy
import json
import math
from pathlib import Path

import numpy as np
import openmm as mm
from openmm import unit
from openmm.app import CutoffNonPeriodic, CutoffPeriodic, Element, ForceField, HBonds, Modeller, NoCutoff, Topology

from peptide_geometry import build, minimise, write_pdb

SEED = 2024
SNAPSHOTS = 3
STEPS_BETWEEN_SNAPSHOTS = 500
NOISE_NM = 0.005


# --- systems -----------------------------------------------------------------


def peptide(residues, *files, **options):
    """Topology, system and starting positions of a capped peptide.

    ``createSystem`` keeps its defaults, so a ``CMMotionRemover`` is present.
    """
    forcefield = ForceField(*files)
    topology, positions = build(residues, forcefield)
    options = {"nonbondedMethod": NoCutoff, "constraints": None, **options}
    return topology, forcefield.createSystem(topology, **options), positions


def particles(count, spacing=0.15):
    """Topology, empty system and positions of a zigzag of carbon atoms."""
    topology = Topology()
    residue = topology.addResidue("UNK", topology.addChain("A"))
    system = mm.System()
    positions = []
    carbon = Element.getBySymbol("C")
    for i in range(count):
        topology.addAtom(f"C{i + 1}", carbon, residue)
        system.addParticle(12.011)
        # A helix-like zigzag: no three neighbours are collinear and no
        # torsion sits at a symmetric angle.
        positions.append((0.8 * spacing * i, 0.07 * math.cos(2.1 * i), 0.07 * math.sin(2.1 * i)))
    return topology, system, np.array(positions) * unit.nanometers


def bonded_chain(count):
    """A chain of carbon atoms held together by harmonic bonds and angles."""
    topology, system, positions = particles(count)
    atoms = list(topology.atoms())
    bonds, angles = mm.HarmonicBondForce(), mm.HarmonicAngleForce()
    for i in range(count - 1):
        topology.addBond(atoms[i], atoms[i + 1])
        bonds.addBond(i, i + 1, 0.153, 200000.0)
    for i in range(count - 2):
        angles.addAngle(i, i + 1, i + 2, 1.95, 400.0)
    system.addForce(bonds)
    system.addForce(angles)
    return topology, system, positions


def torsions():
    """Periodicities 1 to 6, phases other than 0 and pi, k of both signs.

    The quartets run forwards and backwards, several terms share a quartet,
    and one torsion is improper (its atoms are not bonded in sequence).
    """
    topology, system, positions = bonded_chain(9)
    force = mm.PeriodicTorsionForce()
    phases = [0.3, -1.1, 2.2, 0.75, -2.9, 5.1]
    for n, phase in enumerate(phases, start=1):
        i = n - 1
        quartet = (i, i + 1, i + 2, i + 3) if n % 2 else (i + 3, i + 2, i + 1, i)
        force.addTorsion(*quartet, n, phase, 4.0 / n)
    force.addTorsion(0, 1, 2, 3, 2, 1.3, -1.5)
    force.addTorsion(0, 1, 2, 3, 5, 4.0, 0.9)
    force.addTorsion(4, 6, 5, 8, 2, 2.5, 3.0)
    system.addForce(force)
    return topology, system, positions


def ryckaert_bellemans():
    """Ryckaert-Bellemans torsions with all six coefficients."""
    topology, system, positions = bonded_chain(9)
    force = mm.RBTorsionForce()
    coefficients = np.random.default_rng(SEED).normal(scale=3.0, size=(6, 6))
    for i, row in enumerate(coefficients):
        quartet = (i, i + 1, i + 2, i + 3) if i % 2 else (i + 3, i + 2, i + 1, i)
        force.addTorsion(*quartet, *row)
    force.addTorsion(0, 1, 2, 3, 1.0, -2.0, 0.5, 0.0, 0.0, 0.25)
    system.addForce(force)
    return topology, system, positions


def cmap():
    """Correction maps of two sizes on pairs of torsions, read forwards and backwards."""
    topology, system, positions = bonded_chain(9)
    force = mm.CMAPTorsionForce()
    generator = np.random.default_rng(SEED)
    for size in (24, 7):
        force.addMap(size, generator.normal(scale=2.0, size=size * size))
    for i in range(5):
        first, second = (i, i + 1, i + 2, i + 3), (i + 1, i + 2, i + 3, i + 4)
        force.addTorsion(i % 2, *first, *(second if i % 3 else second[::-1]))
    system.addForce(force)
    return topology, system, positions


def mixture_in_triclinic_cell():
    """Charged Lennard-Jones particles of three kinds in a triclinic cell, with reaction field, switch and dispersion correction."""
    generator = np.random.default_rng(SEED)
    vectors = np.array([[1.9, 0.0, 0.0], [0.5, 1.8, 0.0], [-0.4, 0.3, 1.7]])
    grid = np.array([(i, j, k) for i in range(4) for j in range(4) for k in range(4)]) / 4
    coordinates = (grid + generator.normal(scale=0.02, size=grid.shape)) @ vectors
    # Some particles stand in other images of the cell. (Farther away, or in a smaller cell, the Reference platform misses
    # some pairs just within the cutoff, as a sum over all pairs and images shows.)
    coordinates += generator.integers(-1, 2, size=grid.shape) @ vectors
    topology, system = Topology(), mm.System()
    residue = topology.addResidue("MIX", topology.addChain("A"))
    force = mm.NonbondedForce()
    kinds = [("C", 12.011, 0.2, 0.30, 0.4), ("N", 14.007, -0.3, 0.33, 0.6), ("O", 15.999, 0.1, 0.36, 0.9)]
    for i in range(len(grid)):
        symbol, mass, charge, sigma, epsilon = kinds[i % 3]
        topology.addAtom(f"{symbol}{i + 1}", Element.getBySymbol(symbol), residue)
        system.addParticle(mass)
        force.addParticle(charge, sigma, epsilon)
    force.setNonbondedMethod(mm.NonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(0.7)
    force.setUseSwitchingFunction(True)
    force.setSwitchingDistance(0.55)
    force.setReactionFieldDielectric(10.0)
    force.setUseDispersionCorrection(True)
    force.addException(0, 1, 0.0, 1.0, 0.0)
    force.addException(1, 2, 0.05, 0.3, 0.2)
    system.addForce(force)
    system.setDefaultPeriodicBoxVectors(*(mm.Vec3(*v) for v in vectors))
    topology.setPeriodicBoxVectors([mm.Vec3(*v) for v in vectors] * unit.nanometers)
    return topology, system, coordinates * unit.nanometers


def peptide_in_water(edge):
    """Alanine dipeptide in flexible water in a cube, cut off with a reaction field."""
    forcefield = ForceField("amber14-all.xml", "amber14/tip3p.xml")
    topology, positions = build(ALA, forcefield)
    modeller = Modeller(topology, positions)
    modeller.addSolvent(forcefield, boxSize=mm.Vec3(edge, edge, edge) * unit.nanometers)
    system = forcefield.createSystem(
        modeller.topology,
        nonbondedMethod=CutoffPeriodic,
        nonbondedCutoff=0.7 * unit.nanometers,
        constraints=None,
        rigidWater=False,
    )
    return modeller.topology, system, modeller.positions


def custom_bond():
    """A quartic bond written as an expression."""
    topology, system, positions = particles(3)
    atoms = list(topology.atoms())
    force = mm.CustomBondForce("0.5*k*(r-r0)^2 + c*(r-r0)^4")
    for name in ("k", "r0", "c"):
        force.addPerBondParameter(name)
    for i in range(2):
        topology.addBond(atoms[i], atoms[i + 1])
        force.addBond(i, i + 1, [150000.0, 0.15, 3.0e7])
    system.addForce(force)
    return topology, system, positions


def nonbonded_offsets():
    """Charges and exceptions that depend on a global parameter."""
    topology, system, positions = bonded_chain(5)
    force = mm.NonbondedForce()
    force.setNonbondedMethod(mm.NonbondedForce.NoCutoff)
    for charge in (0.4, -0.3, 0.2, -0.5, 0.2):
        force.addParticle(charge, 0.33, 0.4)
    force.createExceptionsFromBonds([(i, i + 1) for i in range(4)], 1 / 1.2, 0.5)
    force.addGlobalParameter("lambda", 0.25)
    force.addParticleParameterOffset("lambda", 0, 0.3, 0.01, -0.1)
    scaled = next(
        i
        for i in range(force.getNumExceptions())
        if force.getExceptionParameters(i)[4].value_in_unit(unit.kilojoules_per_mole) > 0
    )
    force.addExceptionParameterOffset("lambda", scaled, 0.05, 0.0, 0.2)
    system.addForce(force)
    return topology, system, positions


def virtual_site():
    """A massless particle placed midway between two others."""
    topology, system, positions = bonded_chain(5)
    topology.addAtom("M", None, next(topology.residues()))
    site = system.addParticle(0.0)
    system.setVirtualSite(site, mm.TwoParticleAverageSite(1, 3, 0.5, 0.5))
    coordinates = positions.value_in_unit(unit.nanometers)
    middle = 0.5 * (coordinates[1] + coordinates[3])
    force = mm.NonbondedForce()
    for charge in (0.2, 0.0, 0.3, 0.0, 0.1, -0.6):
        force.addParticle(charge, 0.33, 0.4)
    force.createExceptionsFromBonds([(i, i + 1) for i in range(4)], 1 / 1.2, 0.5)
    for parent in (1, 2, 3):
        force.addException(parent, site, 0.0, 1.0, 0.0)
    system.addForce(force)
    return topology, system, np.vstack([coordinates, middle]) * unit.nanometers


ALA = ["ALA"]
CASES = {
    "aldp-obc": lambda: peptide(ALA, "amber99sbildn.xml", "amber99_obc.xml"),
    "aldp-vacuum": lambda: peptide(ALA, "amber99sbildn.xml"),
    "tetrapeptide-amber14-obc2": lambda: peptide(
        ["ALA", "PHE", "SER", "LYS"], "amber14-all.xml", "implicit/obc2.xml"
    ),
    "aldp-amber14-obc1": lambda: peptide(ALA, "amber14-all.xml", "implicit/obc1.xml"),
    "aldp-amber14-obc2-no-surface": lambda: peptide(
        ALA,
        "amber14-all.xml",
        "implicit/obc2.xml",
        sasaMethod=None,
        soluteDielectric=2.0,
        solventDielectric=80.0,
    ),
    "torsions": torsions,
    "ryckaert-bellemans": ryckaert_bellemans,
    "cmap": cmap,
    "dipeptide-amber19": lambda: peptide(["ALA", "GLY"], "amber19/protein.ff19SB.xml"),
    "aldp-constraints-hbonds": lambda: peptide(ALA, "amber99sbildn.xml", constraints=HBonds),
    "aldp-obc-constraints-hbonds": lambda: peptide(
        ALA, "amber99sbildn.xml", "amber99_obc.xml", constraints=HBonds
    ),
    "aldp-cutoff-nonperiodic": lambda: peptide(
        ALA,
        "amber99sbildn.xml",
        nonbondedMethod=CutoffNonPeriodic,
        nonbondedCutoff=0.5 * unit.nanometers,
    ),
    "mixture-triclinic": mixture_in_triclinic_cell,
    "aldp-water-cutoff": lambda: peptide_in_water(1.6),
    # Cases that a reader of plain force fields has to refuse.
    "aldp-amber14-obc2-salt": lambda: peptide(
        ALA, "amber14-all.xml", "implicit/obc2.xml", implicitSolventKappa=1.0
    ),
    "aldp-amber14-gbn2": lambda: peptide(ALA, "amber14-all.xml", "implicit/gbn2.xml"),
    "custom-bond": custom_bond,
    "nonbonded-offsets": nonbonded_offsets,
    "virtual-site": virtual_site,
}


# --- frames ------------------------------------------------------------------


def frames(topology, system, positions):
    """Positions (nm, f64) of the frames described at the top of this file."""
    platform = mm.Platform.getPlatformByName("Reference")
    minimum = minimise(topology, system, positions)
    result = [minimum]
    integrator = mm.LangevinMiddleIntegrator(300.0, 5.0, 0.001)
    integrator.setRandomNumberSeed(SEED)
    context = mm.Context(system, integrator, platform)
    context.setPositions(minimum)
    context.setVelocitiesToTemperature(300.0, SEED)
    for _ in range(SNAPSHOTS if len(minimum) <= 200 else 1):
        integrator.step(STEPS_BETWEEN_SNAPSHOTS)
        result.append(context.getState(getPositions=True).getPositions(asNumpy=True))
    noise = np.random.default_rng(SEED).normal(scale=NOISE_NM, size=minimum.shape)
    result.append(minimum + noise * unit.nanometers)
    return result


def reference(system, positions):
    """Energy, its parts by force, and forces of each frame."""
    separated = copy.deepcopy(system)
    names = []
    for index, force in enumerate(separated.getForces()):
        force.setForceGroup(index)
        names.append(f"{index}:{force.getName()}")
    platform = mm.Platform.getPlatformByName("Reference")
    context = mm.Context(separated, mm.VerletIntegrator(0.001), platform)

    def energy(**groups):
        state = context.getState(getEnergy=True, **groups)
        return state.getPotentialEnergy().value_in_unit(unit.kilojoules_per_mole)

    result = []
    for frame in positions:
        context.setPositions(frame)
        context.computeVirtualSites()
        state = context.getState(getPositions=True, getForces=True)
        forces = state.getForces(asNumpy=True)
        result.append(
            {
                "positions_nm": state.getPositions(asNumpy=True)
                .value_in_unit(unit.nanometers)
                .tolist(),
                "energy_kJ_mol": energy(),
                "components": {n: energy(groups={i}) for i, n in enumerate(names)},
                "forces_kJ_mol_nm": forces.value_in_unit(
                    unit.kilojoules_per_mole / unit.nanometers
                ).tolist(),
            }
        )
    return result


def main():
    default = Path(__file__).resolve().parents[2] / "tests" / "data" / "mechanics"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=default, help="output folder")
    parser.add_argument("--only", nargs="*", choices=sorted(CASES), help="cases to make")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for case in arguments.only or CASES:
        topology, system, start = CASES[case]()
        structures = frames(topology, system, start)
        data = reference(system, structures)
        lines = ",\n".join(json.dumps(frame) for frame in data)
        write_pdb(topology, structures[0], arguments.out / f"{case}.pdb")
        (arguments.out / f"{case}.system.xml").write_text(mm.XmlSerializer.serialize(system))
        (arguments.out / f"{case}.reference.json").write_text(f"[{lines}]\n")
        energies = " ".join(f"{frame['energy_kJ_mol']:.3f}" for frame in data)
        print(f"{case}: {energies}")


if __name__ == "__main__":
    main()
