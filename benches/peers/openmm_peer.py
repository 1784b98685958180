"""Time OpenMM's integration loop on one core.

    python benches/peers/openmm_peer.py --pdb FILE --xml FILE --platform CPU --json

The process is pinned to one CPU before OpenMM is loaded.  After a warm-up the
loop ``integrator.step(N)``, which stays inside OpenMM for all N steps, is
timed several times; the median is the result.  Nothing is reported or written
during the timed steps.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pdb", required=True, help="starting structure")
    parser.add_argument("--xml", required=True, help="serialised System")
    parser.add_argument("--platform", choices=("Reference", "CPU"), default="CPU")
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU platform")
    parser.add_argument("--steps", type=int, default=10000, help="steps per repeat")
    parser.add_argument("--warm-up", type=int, help="steps before timing [a tenth of --steps]")
    parser.add_argument("--dt-fs", type=float, default=2.0, help="time step in fs")
    parser.add_argument("--friction", type=float, default=1.0, help="friction in 1/ps")
    parser.add_argument("--temperature", type=float, default=300.0, help="temperature in K")
    parser.add_argument(
        "--integrator",
        choices=("middle", "verlet", "legacy"),
        default="middle",
        help="LangevinMiddleIntegrator, VerletIntegrator, or the leap-frog Langevin scheme of "
        "OpenMM before 8.2 as a CustomIntegrator (interpreted, hence slower)",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cpu", type=int, help="CPU to run on [the last one allowed]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(arguments)
    for name in ("threads", "steps", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return arguments


def pin(cpu):
    """Restrict this process to one CPU; return its number, or None."""
    if not hasattr(os, "sched_setaffinity"):
        print("openmm_peer: this system cannot pin a process to a CPU", file=sys.stderr)
        return None
    allowed = os.sched_getaffinity(0)
    cpu = max(allowed) if cpu is None else cpu
    if cpu not in allowed:
        sys.exit(f"openmm_peer: CPU {cpu} is not among the allowed ones: {sorted(allowed)}")
    os.sched_setaffinity(0, {cpu})
    return cpu


def legacy_langevin(mm, temperature, friction, dt):
    """v' = a v + (1 - a)/gamma F/m + sqrt(kT (1 - a^2)/m) xi; x' = x + dt v'."""
    gas_constant = mm.unit.MOLAR_GAS_CONSTANT_R.value_in_unit(
        mm.unit.kilojoules_per_mole / mm.unit.kelvin
    )
    decay = math.exp(-friction * dt)
    integrator = mm.CustomIntegrator(dt)
    integrator.addGlobalVariable("a", decay)
    integrator.addGlobalVariable("b", dt if friction == 0 else (1.0 - decay) / friction)
    integrator.addGlobalVariable("c", math.sqrt(gas_constant * temperature * (1.0 - decay**2)))
    integrator.addUpdateContextState()
    integrator.addComputePerDof("v", "a*v + b*f/m + c*gaussian/sqrt(m)")
    integrator.addComputePerDof("x", "x + dt*v")
    return integrator


def make_integrator(mm, arguments):
    dt = arguments.dt_fs * 1e-3  # ps
    if arguments.integrator == "verlet":
        return mm.VerletIntegrator(dt)
    if arguments.integrator == "legacy":
        integrator = legacy_langevin(mm, arguments.temperature, arguments.friction, dt)
    else:
        integrator = mm.LangevinMiddleIntegrator(arguments.temperature, arguments.friction, dt)
    integrator.setRandomNumberSeed(arguments.seed)
    return integrator


def measure(arguments):
    """Run the benchmark and return what it found as a dictionary."""
    cpu = pin(arguments.cpu)
    os.environ["OPENMM_CPU_THREADS"] = str(arguments.threads)
    try:
        import openmm as mm
        from openmm import app
    except ImportError as error:
        sys.exit(f"openmm_peer: {error}; see benches/peers/README.md")

    try:
        with open(arguments.xml) as file:
            system = mm.XmlSerializer.deserialize(file.read())
        positions = app.PDBFile(arguments.pdb).positions
    except OSError as error:
        sys.exit(f"openmm_peer: {error}")
    if len(positions) != system.getNumParticles():
        sys.exit(
            f"openmm_peer: {arguments.pdb} has {len(positions)} atoms and "
            f"{arguments.xml} {system.getNumParticles()} particles"
        )
    integrator = make_integrator(mm, arguments)
    platform = mm.Platform.getPlatformByName(arguments.platform)
    properties = {"Threads": str(arguments.threads)} if arguments.platform == "CPU" else {}
    context = mm.Context(system, integrator, platform, properties)
    context.setPositions(positions)
    context.setVelocitiesToTemperature(arguments.temperature, arguments.seed)

    warm_up = arguments.steps // 10 if arguments.warm_up is None else arguments.warm_up
    integrator.step(max(warm_up, 1))
    load = os.getloadavg()
    rates = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        integrator.step(arguments.steps)
        rates.append(arguments.steps / (time.perf_counter() - start))
    energy = context.getState(getEnergy=True).getPotentialEnergy()
    energy = energy.value_in_unit(mm.unit.kilojoules_per_mole)
    if not math.isfinite(energy):
        sys.exit("openmm_peer: the simulation became unstable; its timing means nothing")
    return {
        "program": "openmm",
        "version": mm.Platform.getOpenMMVersion(),
        "platform": arguments.platform,
        "threads": arguments.threads if arguments.platform == "CPU" else 1,
        "precision": "f64" if arguments.platform == "Reference" else "f32",
        "integrator": arguments.integrator,
        "particles": system.getNumParticles(),
        "dt_fs": arguments.dt_fs,
        "friction_per_ps": arguments.friction,
        "temperature_K": arguments.temperature,
        "steps": arguments.steps,
        "steps_per_second": statistics.median(rates),
        "repeats": rates,
        "cpu": cpu,
        "load_average": list(load),
    }


def main():
    arguments = parse()
    result = measure(arguments)
    if arguments.json:
        print(json.dumps(result))
    else:
        rates = result["repeats"]
        print(
            f"OpenMM {result['version']} {result['platform']}: {result['steps_per_second']:.0f} "
            f"steps/s (median of {len(rates)}; {min(rates):.0f} to {max(rates):.0f})"
        )


if __name__ == "__main__":
    main()
