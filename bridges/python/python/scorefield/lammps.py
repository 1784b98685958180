"""Any force provider in LAMMPS by ``fix external``, on one process. For many processes there is the plugin in ``bridges/lammps``.

>>> from scorefield.lammps import attach                                          # doctest: +SKIP
>>> attach(lmp, "ani2x:weights=ani2x.safetensors", elements=["H", "C", "O"])      # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import KJ_PER_EV, Model, load

#: kJ/mol per energy of LAMMPS, for the unit styles with lengths in Å.
_ENERGIES = {"metal": KJ_PER_EV, "real": 4.184}


def attach(lmp: Any, model: str | Model, elements: Sequence[int | str], *, fix: str = "scorefield", **options: Any) -> Model:
    """Adds the forces of ``model`` to those of a running ``lammps.lammps``, with energy and virial, and returns the model.

    ``elements`` are those of the atom types, from type 1. Units must be ``metal`` or ``real``, and all atoms on one process: models
    see the whole structure. A box that is periodic in all directions is used where the model knows cells; with a model that does not,
    all boundaries must be open. Atoms must have ids.
    """
    style = lmp.extract_global("units")
    if style not in _ENERGIES:
        raise ValueError(f"units {style}: scorefield needs units metal or real")
    if lmp.extract_setting("world_size") != 1:
        raise ValueError("fix external is for one process, since models see the whole structure; use pair_style scorefield for more")
    unit = _ENERGIES[style]
    known = load(model, types=list(elements), **options) if isinstance(model, str) else model
    numbers = load(known._spec["model"], types=list(elements)).types
    can = known.capabilities
    if can["units"]["system"] != "si":
        raise ValueError(f"{can['name']} has reduced units; give it units, for example 'lj:sigma=3.405 A,epsilon=0.0103 eV'")
    low, high, xy, yz, xz, periodicity, _ = lmp.extract_box()
    periodic = all(periodicity)
    if any(periodicity) and not (periodic and can["periodic"]):
        raise ValueError(
            f"boundaries {periodicity}: {can['name']} " + ("needs all three periodic" if can["periodic"] else "needs all three open (f f f)")
        )
    lmp.commands_string(f"fix {fix} all external pf/callback 1 1\nfix_modify {fix} energy {'yes' if can['energy'] else 'no'} virial yes")

    def compute(caller: Any, step: int, n: int, tags: Any, x: Any, f: Any) -> None:
        order = np.argsort(tags[:n], kind="stable")
        known.set_types(numbers[lmp.numpy.extract_atom("type")[:n][order] - 1])
        cell = None
        if periodic:
            low, high, xy, yz, xz, _, _ = lmp.extract_box()
            cell = np.diag(np.subtract(high, low))
            cell[1, 0], cell[2, 0], cell[2, 1] = xy, xz, yz
            cell *= 0.1
        virial = not periodic or can["virial_periodic"]
        results = known.evaluate(0.1 * np.asarray(x[:n])[order], cell=cell, virial=virial)
        f[:n][order] = results.forces * (0.1 / unit)
        if results.energy is not None:
            lmp.fix_external_set_energy_global(fix, float(results.energy) / unit)
        if results.virial is not None:
            v = results.virial / unit
            lmp.fix_external_set_virial_global(fix, [v[0, 0], v[1, 1], v[2, 2], v[0, 1], v[0, 2], v[1, 2]])

    lmp.set_fix_external_callback(fix, compute, lmp)
    return known


__all__ = ["attach"]
