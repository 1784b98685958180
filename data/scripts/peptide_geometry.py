"""Build capped peptides from ideal internal coordinates.

Heavy atoms are placed one after another from bond lengths, angles and
dihedrals (rounded textbook values, in Angstrom and degrees); hydrogens are
added by OpenMM's ``Modeller``.  Nothing is read from disk, so a structure is
defined by this file, the residue names and the force field alone.
"""

import math
import random

import numpy as np
from openmm import LangevinMiddleIntegrator, Platform, Vec3, unit
from openmm.app import Element, Modeller, Simulation, Topology

# Side chains beyond CB.  Each row: atom, then the three atoms (bonded to it,
# next, next) that define its distance, angle and dihedral.
SIDE_CHAINS = {
    "GLY": [],
    "ALA": [],
    "SER": [("OG", "CB", "CA", "N", 1.410, 109.5, 60.0)],
    "PHE": [
        ("CG", "CB", "CA", "N", 1.510, 114.0, -60.0),
        ("CD1", "CG", "CB", "CA", 1.400, 120.0, 90.0),
        ("CD2", "CG", "CB", "CA", 1.400, 120.0, -90.0),
        ("CE1", "CD1", "CG", "CB", 1.400, 120.0, 180.0),
        ("CE2", "CD2", "CG", "CB", 1.400, 120.0, 180.0),
        ("CZ", "CE1", "CD1", "CG", 1.400, 120.0, 0.0),
    ],
    "LYS": [
        ("CG", "CB", "CA", "N", 1.526, 111.0, -60.0),
        ("CD", "CG", "CB", "CA", 1.526, 111.0, 180.0),
        ("CE", "CD", "CG", "CB", 1.526, 111.0, 180.0),
        ("NZ", "CE", "CD", "CG", 1.471, 111.0, 180.0),
    ],
}


def place(bonded, second, third, length, angle, dihedral):
    """Position of a new atom at ``length`` from ``bonded``.

    ``angle`` is new-bonded-second and ``dihedral`` is third-second-bonded-new
    (IUPAC sign), both in degrees.
    """
    theta, phi = math.radians(angle), math.radians(dihedral)
    axis = bonded - second
    axis /= np.linalg.norm(axis)
    reference = third - second
    reference = reference - reference.dot(axis) * axis
    reference /= np.linalg.norm(reference)
    normal = np.cross(axis, reference)
    radial = math.cos(phi) * reference + math.sin(phi) * normal
    return bonded + length * (-math.cos(theta) * axis + math.sin(theta) * radial)


def heavy_atoms(residues, phi, psi):
    """Heavy atoms of ACE-``residues``-NME, all L, with the same phi and psi.

    Returns ``[(residue name, {atom name: position in Angstrom})]``; the
    dictionaries keep the order in which the atoms appear in the topology.
    """
    methyl = np.zeros(3)
    carbonyl = np.array([1.522, 0.0, 0.0])
    oxygen = place(carbonyl, methyl, np.array([0.0, 1.0, 0.0]), 1.229, 120.4, 0.0)
    cap = {"CH3": methyl, "C": carbonyl, "O": oxygen}
    chain = [("ACE", cap)]
    # The atom before C, C itself, and the position of the next nitrogen.
    previous = (methyl, carbonyl)
    nitrogen = place(carbonyl, methyl, oxygen, 1.335, 116.6, 180.0)
    for name in residues:
        alpha = place(nitrogen, previous[1], previous[0], 1.449, 121.9, 180.0)
        carbon = place(alpha, nitrogen, previous[1], 1.522, 110.0, phi)
        atoms = {"N": nitrogen, "CA": alpha}
        if name != "GLY":
            atoms["CB"] = place(alpha, nitrogen, previous[1], 1.526, 110.0, phi - 121.0)
        for atom, a, b, c, length, angle, dihedral in SIDE_CHAINS[name]:
            atoms[atom] = place(atoms[a], atoms[b], atoms[c], length, angle, dihedral)
        atoms["C"] = carbon
        atoms["O"] = place(carbon, alpha, nitrogen, 1.229, 120.4, psi + 180.0)
        chain.append((name, atoms))
        nitrogen = place(carbon, alpha, nitrogen, 1.335, 116.6, psi)
        previous = (alpha, carbon)
    cap = {"N": nitrogen, "C": place(nitrogen, previous[1], previous[0], 1.449, 121.9, 180.0)}
    chain.append(("NME", cap))
    return chain


def build(residues, forcefield, phi=-80.0, psi=80.0, seed=1):
    """Topology and positions of ACE-``residues``-NME with hydrogens.

    Atoms are ordered residue by residue with each hydrogen after its parent,
    except that the first methyl hydrogen of ACE comes before its carbon: with
    it the alanine dipeptide has the customary numbering, in which phi is
    atoms 4-6-8-14 and psi is atoms 6-8-14-16.
    """
    topology = Topology()
    chain = topology.addChain("A")
    positions = []
    for name, atoms in heavy_atoms(residues, phi, psi):
        residue = topology.addResidue(name, chain)
        for atom, position in atoms.items():
            topology.addAtom(atom, Element.getBySymbol(atom[0]), residue)
            positions.append(Vec3(*(0.1 * position)))
    topology.createStandardBonds()
    modeller = Modeller(topology, positions * unit.nanometers)
    random.seed(seed)  # Modeller draws starting directions for the hydrogens
    modeller.addHydrogens(forcefield, platform=Platform.getPlatformByName("Reference"))
    return reorder(modeller.topology, modeller.positions)


def reorder(topology, positions):
    """Apply the atom order that ``build`` documents."""
    neighbours = {atom: [] for atom in topology.atoms()}
    for bond in topology.bonds():
        neighbours[bond[0]].append(bond[1])
        neighbours[bond[1]].append(bond[0])
    coordinates = positions.value_in_unit(unit.nanometers)
    ordered, kept, renamed = Topology(), [], {}
    for chain in topology.chains():
        new_chain = ordered.addChain(chain.id)
        for residue in chain.residues():
            atoms = []
            heavy = [a for a in residue.atoms() if a.element.symbol != "H"]
            # Side chain before the carbonyl.
            heavy.sort(key=lambda a: residue.name not in ("ACE", "NME") and a.name in ("C", "O"))
            for atom in heavy:
                hydrogens = [a for a in neighbours[atom] if a.element.symbol == "H"]
                hydrogens.sort(key=lambda a: a.name)
                if atom.name == "CH3":
                    atoms += [hydrogens[0], atom] + hydrogens[1:]
                else:
                    atoms += [atom] + hydrogens
            new_residue = ordered.addResidue(residue.name, new_chain, residue.id)
            for atom in atoms:
                renamed[atom] = ordered.addAtom(atom.name, atom.element, new_residue)
                kept.append(coordinates[atom.index])
    for bond in topology.bonds():
        ordered.addBond(renamed[bond[0]], renamed[bond[1]])
    return ordered, kept * unit.nanometers


def minimise(topology, system, positions, tolerance=0.1):
    """Energy minimum near ``positions`` in f64 (tolerance in kJ/mol/nm)."""
    integrator = LangevinMiddleIntegrator(300.0, 1.0, 0.001)
    simulation = Simulation(topology, system, integrator, Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(positions)
    simulation.minimizeEnergy(tolerance=tolerance, maxIterations=0)
    return simulation.context.getState(getPositions=True).getPositions(asNumpy=True)


def write_pdb(topology, positions, path):
    """Write a PDB file without the dated header that OpenMM would add."""
    from openmm.app import PDBFile

    with open(path, "w") as file:
        PDBFile.writeModel(topology, positions, file)
        PDBFile.writeFooter(topology, file)
