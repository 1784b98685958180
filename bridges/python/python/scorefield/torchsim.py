"""Any force provider as a model of torch-sim.

>>> import torch_sim as ts                                                                  # doctest: +SKIP
>>> from scorefield.torchsim import Model                                                   # doctest: +SKIP
>>> model = Model("ani2x:weights=ani2x.safetensors", threads=4)                             # doctest: +SKIP
>>> state = ts.integrate(atoms, model, integrator=ts.Integrator.nvt_langevin, n_steps=100,  # doctest: +SKIP
...                      temperature=300, timestep=0.001)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch_sim as ts
from torch_sim.models.interface import ModelInterface

from . import Model as _Model
from . import load

__all__ = ["Model"]


class Model(ModelInterface):
    """A model of torch-sim, in its units (eV, Å), for states of any number of systems.

    ``model`` is a :class:`scorefield.Model` or what :func:`scorefield.load` takes, with its options (``threads`` spreads the systems
    of a batch). Systems of the same elements in the same order are evaluated together. Forces are computed on the CPU; tensors of
    other devices are copied. ``compute_stress`` is on by default where the model has a virial; systems that are not periodic have a
    stress of zero. Models without an energy (learned scores, pseudo-forces) give energies that are not a number: torch-sim has no
    other way to say that there is none. They serve its thermostats, not its minimisers.
    """

    def __init__(
        self,
        model: str | _Model,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        compute_stress: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._options = options
        self._spec = model if isinstance(model, str) else None
        # Opened when the first elements are known, if it is only described.
        self._models: dict[tuple[int, ...], _Model] = {}
        self._given = None if isinstance(model, str) else model
        can = (self._given or load(model, **options)).capabilities
        if can["units"]["system"] != "si":
            raise ValueError(f"{can['name']} has reduced units; give it units, for example 'lj:sigma=3.405 A,epsilon=0.0103 eV'")
        if compute_stress and not can["virial_periodic"]:
            raise ValueError(f"{can['name']} has no virial of periodic cells; leave compute_stress out")
        self.capabilities: dict[str, Any] = can
        self._device = torch.device(device)
        self._dtype = dtype
        self._compute_forces = True
        self._compute_stress = bool(can["virial_periodic"] if compute_stress is None else compute_stress)
        self._memory_scales_with = "n_atoms"

    def _of(self, types: tuple[int, ...]) -> _Model:
        """The model for systems of these elements; one each, so that going from one to the other costs nothing."""
        known = self._models.get(types)
        if known is None:
            if self._spec is not None:
                known = load(self._spec, **{"types": list(types), **self._options})
            else:
                known = self._given if not self._models else self._given.__reduce__()[0](*self._given.__reduce__()[1])
            known.set_types(types)
            self._models[types] = known
        return known

    def forward(self, state: ts.SimState | dict[str, Any], **_: Any) -> dict[str, torch.Tensor]:
        """``energy`` ``[n_systems]``, ``forces`` ``[n_atoms, 3]`` and, where it is computed, ``stress`` ``[n_systems, 3, 3]``."""
        if isinstance(state, dict):
            state = ts.SimState(**state, masses=torch.ones(len(state["positions"])))
        # One flag for all axes, or one for each of them, whatever the version of torch-sim.
        pbc = np.broadcast_to(torch.as_tensor(state.pbc).cpu().numpy(), 3)
        if pbc.any() and not pbc.all():
            raise ValueError(f"pbc={pbc.tolist()}: structures are periodic in all three directions or in none")
        x = state.positions.detach().cpu().numpy().astype(np.float64)
        numbers = state.atomic_numbers.cpu().numpy()
        cells = state.row_vector_cell.detach().cpu().numpy().astype(np.float64)
        sizes = np.bincount(state.system_idx.cpu().numpy(), minlength=state.n_systems)
        ends = np.cumsum(sizes)
        groups: dict[tuple[int, ...], list[int]] = {}
        for system, (start, end) in enumerate(zip(ends - sizes, ends, strict=True)):
            groups.setdefault(tuple(int(z) for z in numbers[start:end]), []).append(system)

        forces = np.empty_like(x)
        energy = np.full(len(sizes), np.nan)
        stress = np.zeros((len(sizes), 3, 3))
        periodic = bool(pbc.all())
        for types, systems in groups.items():
            rows = self._rows(systems, ends, len(types))
            r = self._of(types).evaluate(
                x[rows].reshape(len(systems), -1, 3),
                cell=cells[systems] if periodic else None,
                virial=periodic and self._compute_stress,
                units="angstrom",
            )
            forces[rows] = r.forces.reshape(-1, 3)
            if r.energy is not None:
                energy[systems] = r.energy
            if r.virial is not None:
                stress[systems] = -r.virial / np.abs(np.linalg.det(cells[systems]))[:, None, None]
        results = {"energy": energy, "forces": forces}
        if self._compute_stress:
            results["stress"] = stress
        return {name: torch.as_tensor(a, dtype=self._dtype, device=self._device) for name, a in results.items()}

    @staticmethod
    def _rows(systems: Sequence[int], ends: np.ndarray, size: int) -> np.ndarray:
        """Indices of all atoms of these systems, which have ``size`` atoms each."""
        return (ends[systems][:, None] - size + np.arange(size)).ravel()
