"""Force providers: learned scores, pseudo-forces and classical force fields.

>>> import numpy, scorefield
>>> model = scorefield.load("lj:sigma=3.405 A,epsilon=0.0103 eV", types=["Ar", "Ar"])
>>> results = model.evaluate([[0, 0, 0], [0.3405, 0, 0]])
>>> float(abs(results.energy)) < 1e-9
True

Units are nm, ps, u, kJ/mol and K unless ``units="angstrom"`` (Å, eV) is asked for; models in reduced units take and give bare
numbers. Times and temperatures are text with a unit (``"2 fs"``, ``"300 K"``), or bare numbers for models in reduced units.

Wrong arguments are ``ValueError``, files that cannot be used ``OSError``, everything else that goes wrong :class:`Error`. Nothing
that is not finite is ever returned. Models may be used from several threads; calls on one model wait for each other, and the
interpreter's lock is released while forces are computed. Arrays must not be changed meanwhile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _native
from ._native import Error, __version__

__all__ = ["Dynamics", "Error", "Frame", "Model", "Relaxed", "Results", "__version__", "load", "sample"]

#: kJ/mol per eV (CODATA 2018).
KJ_PER_EV = 96.48533212331002

Array = NDArray[np.float64]
Progress = Callable[[int, int], Any]


@dataclass
class Results:
    """One evaluation. With one structure ``[N, 3]`` given, the leading ``B`` is missing everywhere."""

    #: ``[B, N, 3]`` in kJ/mol/nm (eV/Å).
    forces: Array
    #: ``[B]`` in kJ/mol (eV); ``None`` for models without energies.
    energy: Array | None = None
    #: ``[B, 3, 3]``, −dE/dstrain, not divided by the volume, in kJ/mol (eV).
    virial: Array | None = None
    #: ``[B, N]`` in kJ/mol (eV).
    atom_energy: Array | None = None
    #: Standard deviation over a committee, ``[B]`` in kJ/mol (eV).
    energy_deviation: Array | None = None
    #: Standard deviation over a committee, ``[B, N, 3]`` in kJ/mol/nm (eV/Å).
    force_deviation: Array | None = None


@dataclass
class Relaxed:
    """Relaxed structures. With one structure given, the leading ``B`` is missing everywhere."""

    #: ``[B, N, 3]`` in nm (Å).
    positions: Array
    #: ``[B]`` in kJ/mol (eV); ``None`` for models without energies.
    energy: Array | None
    #: Largest force on an atom, ``[B]`` in kJ/mol/nm (eV/Å).
    fmax: Array
    #: Steps done, ``[B]``.
    steps: NDArray[np.int64]
    #: ``"converged"``, ``"stalled"`` or ``"unfinished"`` per structure.
    status: list[str]


@dataclass
class Frame:
    """All replicas at one moment."""

    #: Steps since the start.
    step: int
    #: ``[B, N, 3]`` in nm.
    positions: Array
    #: ``[B, N, 3]`` in nm/ps.
    velocities: Array
    #: ``[B]`` in kJ/mol; not a number for models without energies.
    potential: Array
    #: ``[B]`` in kJ/mol, of the velocities that the integrator stores.
    kinetic: Array
    #: ``[B]`` in K (kT for reduced units), of the same velocities.
    temperature: Array


def load(
    model: str,
    *,
    types: Sequence[int | str] | None = None,
    structure: str | os.PathLike[str] | None = None,
    masses: ArrayLike | None = None,
    positions: ArrayLike | None = None,
    dtype: str | None = None,
    threads: int = 1,
) -> Model:
    """Opens a force provider.

    ``model`` is what the command line takes after ``--model``: a name with parameters, ``mm:FILE.xml``, weights or a TOML tree.
    Atoms are those of the file ``structure``, or ``types`` (symbols or atomic numbers); without both those that the model brings
    along, if it does, or those given to each evaluation. ``masses`` are in u, by default those of the elements. ``positions``
    ``[N, 3]`` in nm are for models bound to start positions. ``dtype`` is what forces are computed in, ``"f64"`` or ``"f32"``;
    ``threads`` those over which the structures of a batch are spread.
    """
    spec: dict[str, Any] = {"model": model, "threads": threads}
    if types is not None:
        spec["types"] = [t if isinstance(t, str) else int(t) for t in types]
    if structure is not None:
        spec["structure"] = os.fspath(structure)
    if masses is not None:
        spec["masses"] = np.asarray(masses, dtype=float).tolist()
    if positions is not None:
        spec["positions"] = np.asarray(positions, dtype=float).tolist()
    if dtype is not None:
        spec["dtype"] = dtype
    return Model(spec)


def _scales(units: str, capabilities: dict[str, Any]) -> tuple[float, float]:
    """What lengths and energies of the caller are in nm and kJ/mol."""
    if units == "nm":
        return 1.0, 1.0
    if units != "angstrom":
        raise ValueError(f"units={units!r}: write 'nm' (nm, kJ/mol) or 'angstrom' (Å, eV)")
    if capabilities["units"]["system"] != "si":
        raise ValueError(f"{capabilities['name']} has reduced units; leave units='nm', numbers are bare then")
    return 0.1, KJ_PER_EV


class Model:
    """An open force provider; see :func:`load`."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._native = _native.Model(json.dumps(spec))
        #: What the model can do.
        self.capabilities: dict[str, Any] = json.loads(self._native.describe())
        self._read_atoms()

    def _read_atoms(self) -> None:
        types, masses, start, cell = self._native.atoms()
        #: Atomic numbers ``[N]``, or ``None`` where no atoms are known.
        self.types: NDArray[np.int64] | None = None if types is None else np.array(types, dtype=np.int64)
        #: Masses ``[N]`` in u.
        self.masses: Array | None = None if masses is None else np.array(masses)
        #: Start positions ``[N, 3]`` in nm of the structure or of the model itself, where there are any.
        self.positions: Array | None = None if start is None else np.array(start).reshape(-1, 3)
        #: Periodic cell ``[3, 3]`` in nm of the structure or of the model itself, where there is one.
        self.cell: Array | None = None if cell is None else np.array(cell).reshape(3, 3)

    def __repr__(self) -> str:
        atoms = "atoms unknown" if self.types is None else f"{len(self.types)} atoms"
        return f"<scorefield.Model {self.capabilities['name']}, {atoms}>"

    def __reduce__(self) -> tuple[Any, ...]:
        spec = dict(self._spec)
        if self.types is not None and "structure" not in spec and "types" in spec:
            spec["types"] = self.types.tolist()
        return Model, (spec,)

    def set_types(self, types: Sequence[int] | NDArray[np.integer]) -> None:
        """The model acts on atoms of these atomic numbers from now on."""
        wanted = np.asarray(types, dtype=np.int64)
        if self.types is not None and np.array_equal(wanted, self.types):
            return
        self._native.set_types([int(t) for t in wanted])
        if "structure" not in self._spec:
            self._spec = {**{k: v for k, v in self._spec.items() if k not in ("masses", "positions")}, "types": wanted.tolist()}
        self._read_atoms()
        self.capabilities = json.loads(self._native.describe())

    def _batch(self, positions: ArrayLike, cell: ArrayLike | None, length: float) -> tuple[Array, Array | None, bool]:
        """Positions ``[B, N, 3]`` and cells ``[B, 3, 3]`` in nm, contiguous, and whether there was only one structure."""
        x = np.ascontiguousarray(positions, dtype=np.float64)
        if self.types is None:
            raise ValueError(f"{self.capabilities['name']} brings no atoms along; give types")
        n = len(self.types)
        single = x.ndim == 2
        if x.ndim not in (2, 3) or x.shape[-2:] != (n, 3):
            raise ValueError(f"positions have shape {x.shape}; {n} atoms need ({n}, 3) or (B, {n}, 3)")
        x = x.reshape(-1, n, 3)
        cells = None
        if cell is not None:
            cells = np.asarray(cell, dtype=np.float64)
            if cells.shape == (3,):
                cells = np.diag(cells)
            if cells.shape not in ((3, 3), (len(x), 3, 3)):
                raise ValueError(f"cell has shape {cells.shape}; write (3,), (3, 3) or ({len(x)}, 3, 3)")
            cells = np.ascontiguousarray(np.broadcast_to(cells, (len(x), 3, 3)))
        if length != 1.0:
            x = x * length
            cells = None if cells is None else cells * length
        return x, cells, single

    def evaluate(
        self,
        positions: ArrayLike,
        types: Sequence[int] | NDArray[np.integer] | None = None,
        cell: ArrayLike | None = None,
        *,
        energy: bool | None = None,
        virial: bool = False,
        atom_energy: bool = False,
        uncertainty: bool = False,
        units: str = "nm",
    ) -> Results:
        """Forces, and what else is asked for, of ``positions`` ``[N, 3]`` or of a batch ``[B, N, 3]``.

        ``cell`` are the sides of a rectangular box ``[3]``, rows a, b, c ``[3, 3]``, or one per structure ``[B, 3, 3]``; without it
        the structures are alone in space. ``energy`` is computed by default where the model has one. ``units`` are ``"nm"`` (nm,
        kJ/mol) or ``"angstrom"`` (Å, eV), for arguments and results. Contiguous arrays of doubles in nm are not copied.
        """
        if types is not None:
            self.set_types(types)
        length, unit = _scales(units, self.capabilities)
        x, cells, single = self._batch(positions, cell, length)
        b, n = x.shape[:2]
        want = self.capabilities["energy"] if energy is None else energy
        if want and not self.capabilities["energy"]:
            raise ValueError(f"{self.capabilities['name']} has no energies; leave energy out")
        results = Results(
            forces=np.empty((b, n, 3)),
            energy=np.empty(b) if want else None,
            virial=np.empty((b, 3, 3)) if virial else None,
            atom_energy=np.empty((b, n)) if atom_energy else None,
            energy_deviation=np.empty(b) if uncertainty else None,
            force_deviation=np.empty((b, n, 3)) if uncertainty else None,
        )
        r = results
        self._native.evaluate(x, cells, r.forces, r.energy, r.virial, r.atom_energy, r.energy_deviation, r.force_deviation)
        if unit != 1.0:
            for array in (r.energy, r.virial, r.atom_energy, r.energy_deviation):
                if array is not None:
                    array /= unit
            for array in (r.forces, r.force_deviation):
                if array is not None:
                    array *= length / unit
        if single:
            for name, array in vars(r).items():
                if array is not None:
                    setattr(r, name, array[0])
        return results

    def dynamics(
        self,
        positions: ArrayLike | None = None,
        *,
        dt: str | float = "1 fs",
        temperature: str | float = "300 K",
        friction: str | float = "1 /ps",
        integrator: str = "baoab",
        replicas: int | None = None,
        velocities: ArrayLike | None = None,
        cell: ArrayLike | None = None,
        seed: int = 0,
    ) -> Dynamics:
        """Langevin dynamics (``"baoab"``, ``"middle"``, ``"legacy"``), overdamped (``"overdamped"``, ``"overdamped-limit"``) or
        constant-energy dynamics (``"verlet"``), of many replicas at once.

        ``positions`` are ``[N, 3]`` or ``[B, N, 3]`` in nm, by default those of the structure; one structure is started
        ``replicas`` times. Velocities (nm/ps) are drawn at ``temperature`` unless given. Noise depends on ``seed``, replica, atom
        and step only.
        """
        if positions is None:
            positions = self.positions
            cell = self.cell if cell is None else cell
        if positions is None:
            raise ValueError("positions are missing: neither a structure nor the model has any")
        x, _, single = self._batch(positions, None, 1.0)
        if replicas is not None:
            if not single:
                raise ValueError("replicas are for one structure; a batch of positions has its own number")
            x = np.ascontiguousarray(np.broadcast_to(x, (replicas, *x.shape[1:])))
        _, cells, _ = self._batch(x, cell, 1.0)
        v = None
        if velocities is not None:
            v = np.ascontiguousarray(np.broadcast_to(np.asarray(velocities, dtype=np.float64), x.shape))
        native = _native.Dynamics(self._native, x, cells, v, integrator, str(dt), str(friction), str(temperature), seed)
        return Dynamics(native, x.shape)

    def relax(
        self,
        positions: ArrayLike | None = None,
        cell: ArrayLike | None = None,
        *,
        method: str = "fire",
        fmax: str | float | None = None,
        max_steps: int = 10_000,
        units: str = "nm",
        progress: Progress | None = None,
    ) -> Relaxed:
        """Minima next to ``positions`` ``[N, 3]`` or ``[B, N, 3]`` with ``"fire"`` (FIRE 2.0) or ``"lbfgs"``, until the largest
        force on an atom is below ``fmax`` (``"0.01 eV/A"``; by default 0.05 eV/Å). ``progress(done, total)`` is called now and
        then; what it raises stops the work."""
        length, unit = _scales(units, self.capabilities)
        if positions is None:
            if self.positions is None:
                raise ValueError("positions are missing: neither a structure nor the model has any")
            positions = self.positions / length
            cell = self.cell / length if cell is None and self.cell is not None else cell
        x, cells, single = self._batch(positions, cell, length)
        relaxed = np.empty_like(x)
        rows = _native.relax(self._native, x, cells, relaxed, method, None if fmax is None else str(fmax), max_steps, progress)
        has_energy = bool(rows) and rows[0][0] is not None
        energy = np.array([r[0] for r in rows], dtype=float) / unit if has_energy else None
        force = np.array([r[1] for r in rows]) * (length / unit)
        steps = np.array([r[2] for r in rows], dtype=np.int64)
        relaxed /= length
        if single:
            return Relaxed(relaxed[0], None if energy is None else energy[0], force[0], steps[0], [rows[0][3]])
        return Relaxed(relaxed, energy, force, steps, [r[3] for r in rows])


class Dynamics:
    """Replicas in motion; see :meth:`Model.dynamics`."""

    def __init__(self, native: _native.Dynamics, shape: tuple[int, ...]) -> None:
        self._native = native
        self._shape = shape

    @property
    def step(self) -> int:
        """Steps done so far."""
        return self._native.step()

    def run(self, steps: int) -> None:
        """Advances all replicas. A replica that runs away ends the run with :class:`Error`."""
        self._native.run(steps)

    def frame(self) -> Frame:
        """All replicas as they are now."""
        b = self._shape[0]
        frame = Frame(self.step, np.empty(self._shape), np.empty(self._shape), np.empty(b), np.empty(b), np.empty(b))
        self._native.read(frame.positions, frame.velocities, frame.potential, frame.kinetic, frame.temperature)
        return frame

    def frames(self, steps: int, every: int, progress: Progress | None = None) -> Iterator[Frame]:
        """Advances by ``steps`` and yields a frame after each ``every`` of them; ``progress(done, total)`` is called each time."""
        if every < 1:
            raise ValueError(f"every={every}: give a number of steps above zero")
        done = 0
        while done < steps:
            block = min(every, steps - done)
            self.run(block)
            done += block
            if progress is not None:
                progress(done, steps)
            yield self.frame()


def sample(
    weights: str | os.PathLike[str],
    n: int,
    *,
    seed: int = 0,
    sampler: str = "em",
    steps: int = 1000,
    denoise: bool = False,
    dtype: str = "f32",
    threads: int = 1,
    progress: Progress | None = None,
) -> Array:
    """``n`` independent samples of a trained diffusion model, ``[n, N, 3]`` in nm (``[n, D]`` for toys).

    ``sampler`` is ``"em"`` (reverse diffusion), ``"pc"`` (with a Langevin corrector), ``"ode"`` or ``"heun"`` (probability flow), in
    ``steps`` times. ``progress(done, total)`` is called now and then; what it raises stops the work.
    """
    flat, beads = _native.sample(os.fspath(weights), n, seed, sampler, steps, denoise, dtype, threads, progress)
    x = np.array(flat).reshape(n, -1)
    return x.reshape(n, beads, 3) if x.shape[1] == 3 * beads and beads > 1 else x
