"""Alanine dipeptide (ACE-ALA-NME) for OpenMM: one PDB file, two System files.

The structure is built from ideal internal coordinates, given hydrogens and
minimised in implicit solvent, so no file other than OpenMM's own force fields
is read.  Two ``openmm.System`` descriptions are serialised for it:

* ``alanine-dipeptide-obc.xml``: amber99sbildn with amber99_obc, that is a
  ``GBSAOBCForce`` (the OBC model with alpha=1, beta=0.8, gamma=4.85);
* ``alanine-dipeptide-vacuum.xml``: amber99sbildn alone.

Both have no cut-off, no constraints and no centre-of-mass motion remover, so
that all 3N degrees of freedom are sampled.

    python data/scripts/make_alanine_dipeptide.py [--out data/alanine-dipeptide]
"""

import argparse
from pathlib import Path

from openmm import XmlSerializer
from openmm.app import ForceField, NoCutoff

from peptide_geometry import build, minimise, write_pdb


def main():
    default = Path(__file__).resolve().parent.parent / "alanine-dipeptide"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=default, help="output folder")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    implicit = ForceField("amber99sbildn.xml", "amber99_obc.xml")
    vacuum = ForceField("amber99sbildn.xml")
    topology, positions = build(["ALA"], implicit)
    options = dict(nonbondedMethod=NoCutoff, constraints=None, rigidWater=False, removeCMMotion=False)
    systems = {
        "obc": implicit.createSystem(topology, **options),
        "vacuum": vacuum.createSystem(topology, **options),
    }
    positions = minimise(topology, systems["obc"], positions)

    write_pdb(topology, positions, out / "alanine-dipeptide.pdb")
    for name, system in systems.items():
        (out / f"alanine-dipeptide-{name}.xml").write_text(XmlSerializer.serialize(system))


if __name__ == "__main__":
    main()
