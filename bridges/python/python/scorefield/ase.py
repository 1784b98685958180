"""Any force provider as a calculator of ASE.

>>> from scorefield.ase import Calculator                                  # doctest: +SKIP
>>> atoms.calc = Calculator("lj:sigma=3.405 A,epsilon=0.0103 eV")          # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator as _Calculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes

from . import KJ_PER_EV, Model, load


class Calculator(_Calculator):
    """A calculator of ASE, in its units (eV, Å).

    ``model`` is a :class:`scorefield.Model` or what :func:`scorefield.load` takes, with its options. Elements come from the atoms,
    cells from those that are periodic in all three directions. Models without an energy have ``forces`` only, which is enough for
    FIRE, BFGS and Langevin dynamics. Committees add ``energy_deviation`` and ``force_deviation`` to the results.
    """

    def __init__(self, model: str | Model, **options: Any) -> None:
        super().__init__()
        self.model = load(model, **options) if isinstance(model, str) else model
        can = self.model.capabilities
        if can["units"]["system"] != "si":
            raise ValueError(f"{can['name']} has reduced units; give it units, for example 'lj:sigma=3.405 A,epsilon=0.0103 eV'")
        self.implemented_properties = ["forces"]
        if can["energy"]:
            self.implemented_properties += ["energy", "free_energy"]
        if can["virial_periodic"]:
            self.implemented_properties.append("stress")
        if can["atom_energy"]:
            self.implemented_properties.append("energies")

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        """Fills ``results``; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        for name in properties:
            if name not in self.implemented_properties:
                raise PropertyNotImplementedError(f"{self.model.capabilities['name']} has no {name}")
        atoms, can = self.atoms, self.model.capabilities
        periodic = bool(atoms.pbc.all())
        if atoms.pbc.any() and not periodic:
            raise ValueError(f"pbc={atoms.pbc.tolist()}: structures are periodic in all three directions or in none")
        stress = "stress" in properties
        if stress and not periodic:
            raise PropertyNotImplementedError("a stress needs a periodic cell")
        r = self.model.evaluate(
            atoms.positions,
            atoms.numbers,
            atoms.cell.array if periodic else None,
            virial=periodic and can["virial_periodic"],
            atom_energy="energies" in properties,
            uncertainty=can["uncertainty"],
            units="angstrom",
        )
        self.results = {"forces": r.forces}
        if r.energy is not None:
            self.results["energy"] = self.results["free_energy"] = float(r.energy)
        if r.virial is not None:
            s = -r.virial / atoms.get_volume()
            self.results["stress"] = np.array([s[0, 0], s[1, 1], s[2, 2], s[1, 2], s[0, 2], s[0, 1]])
        if r.atom_energy is not None:
            self.results["energies"] = r.atom_energy
        if r.energy_deviation is not None:
            self.results["energy_deviation"] = float(r.energy_deviation)
            self.results["force_deviation"] = r.force_deviation


__all__ = ["KJ_PER_EV", "Calculator"]
