"""Any force provider as a force of OpenMM (8.6 and later), and as a potential of OpenMM-ML (see `_openmmml.py`).

>>> from scorefield.openmm import force                                              # doctest: +SKIP
>>> system.addForce(force("ani2x:weights=ani2x.safetensors", topology))              # doctest: +SKIP
>>> MLPotential("scorefield:ani2x:weights=ani2x.safetensors").createSystem(topology) # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import openmm
from openmm import unit

from . import Model, load


class _Compute:
    """What OpenMM calls. It can be pickled, so that systems can be written as XML."""

    def __init__(self, model: Model, periodic: bool) -> None:
        self.model = model
        self.periodic = periodic

    def __call__(self, state: Any) -> tuple[float, np.ndarray]:
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer) if self.periodic else None
        results = self.model.evaluate(positions, cell=cell)
        return 0.0 if results.energy is None else float(results.energy), results.forces


def force(
    model: str | Model,
    topology: Any = None,
    atoms: Iterable[int] | None = None,
    *,
    periodic: bool | None = None,
    without_energy: bool = False,
    force_group: int = 0,
    **options: Any,
) -> openmm.PythonForce:
    """An ``openmm.PythonForce`` for a whole system, or for the particles ``atoms`` of it as if they were alone.

    ``model`` is a :class:`scorefield.Model` or what :func:`scorefield.load` takes, with its options. Elements come from
    ``topology``, or from the model where that is left out. ``periodic`` says whether OpenMM's box is used, by default where the
    topology has one and the model knows cells. A model without energies needs ``without_energy=True``: OpenMM is then told an
    energy of 0, with which dynamics is right and its minimiser is not.
    """
    m = load(model, **options) if isinstance(model, str) else model
    can = m.capabilities
    if can["units"]["system"] != "si":
        raise ValueError(f"{can['name']} has reduced units; give it units, for example 'lj:sigma=3.405 A,epsilon=0.0103 eV'")
    if not can["energy"] and not without_energy:
        raise ValueError(f"{can['name']} has no energies; say without_energy=True, and do not use OpenMM's minimiser")
    chosen = None if atoms is None else [int(i) for i in atoms]
    if topology is not None:
        elements = [atom.element for atom in topology.atoms()]
        which = range(len(elements)) if chosen is None else chosen
        if any(elements[i] is None for i in which):
            raise ValueError("an atom of the topology has no element")
        m.set_types([elements[i].atomic_number for i in which])
    if m.types is None:
        raise ValueError(f"{can['name']} brings no atoms along; give the topology, or a model with types")
    if chosen is not None and len(chosen) != len(m.types):
        raise ValueError(f"{len(chosen)} atoms are chosen, but the model has {len(m.types)}")
    if periodic is None:
        periodic = can["periodic"] and topology is not None and topology.getPeriodicBoxVectors() is not None
    if periodic and not can["periodic"]:
        raise ValueError(f"{can['name']} knows no periodic cells; say periodic=False to leave the box out")
    made = openmm.PythonForce(_Compute(m, periodic))
    made.setName(f"scorefield {can['name']}")
    made.setUsesPeriodicBoundaryConditions(periodic)
    made.setForceGroup(force_group)
    if chosen is not None:
        made.setParticles(chosen)
    return made


__all__ = ["force"]
