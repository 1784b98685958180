"""Exact stationary moments of Langevin integrators in a harmonic well.

On a linear force every step is an affine map with Gaussian noise,
``s' = A s + b`` with ``cov(b) = Q``, so the stationary covariance solves the
discrete Lyapunov equation ``S = A S A^T + Q``.  Each integrator is written
down as its sequence of substeps, the substeps are composed, and the equation
is solved as a linear system.  The result has no sampling error, which makes
it a yardstick for sampled moments at finite step.

Units are reduced: k = m = kT = 1, hence omega = 1, and the numbers are
``x2 = <x^2> k/kT``, ``v2 = <v^2> m/kT`` and ``xv = <x v> sqrt(k m)/kT``.

    python data/scripts/harmonic_moments.py [--out tests/data/harmonic_moments.json]

The program stops with an error if a result departs from a known closed form.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

OMEGA_DT = (0.5, 1.0, 1.5, 1.9)
GAMMA_OVER_OMEGA = (0.1, 1.0, 10.0)
MOBILITY_STEP = (0.1, 0.5, 1.0)  # h * k * mu


# --- substeps on (x, v): a matrix and the covariance of the added noise ------


def kick(dt):
    """v += dt * F/m."""
    return np.array([[1.0, 0.0], [-dt, 1.0]]), np.zeros((2, 2))


def drift(dt):
    """x += dt * v."""
    return np.array([[1.0, dt], [0.0, 1.0]]), np.zeros((2, 2))


def thermostat(dt, gamma):
    """v = a v + sqrt(1 - a^2) xi with a = exp(-gamma dt)."""
    a = math.exp(-gamma * dt)
    return np.diag([1.0, a]), np.diag([0.0, -math.expm1(-2.0 * gamma * dt)])


def compose(*substeps):
    """The substeps applied one after the other, the first one first."""
    matrix, noise = np.eye(2), np.zeros((2, 2))
    for a, q in substeps:
        matrix = a @ matrix
        noise = a @ noise @ a.T + q
    return matrix, noise


def baoab(dt, gamma):
    """Half kick, half drift, thermostat, half drift, half kick."""
    return compose(
        kick(dt / 2), drift(dt / 2), thermostat(dt, gamma), drift(dt / 2), kick(dt / 2)
    )


def baoa(dt, gamma):
    """Kick, half drift, thermostat, half drift (OpenMM's LangevinMiddleIntegrator).

    The velocity at the end of the step belongs to the middle between two
    kicks.
    """
    return compose(kick(dt), drift(dt / 2), thermostat(dt, gamma), drift(dt / 2))


def legacy(dt, gamma):
    """Exact velocity update at constant force, then a full drift.

    OpenMM's LangevinIntegrator before version 8.2 (later ones are BAOA).

    v' = a v + (1 - a)/gamma F/m + sqrt(kT (1 - a^2)/m) xi and x' = x + dt v'.
    """
    damping, noise = thermostat(dt, gamma)
    damping[1, 0] = math.expm1(-gamma * dt) / gamma
    return compose((damping, noise), drift(dt))


# --- overdamped schemes; z = h k mu ------------------------------------------


def euler_maruyama(z):
    """x' = x + h mu F + sqrt(2 h mu kT) xi."""
    return np.array([[1.0 - z]]), np.array([[2.0 * z]])


def leimkuhler_matthews(z):
    """x' = x + h mu F + sqrt(2 h mu kT) (xi_n + xi_{n+1})/2.

    The state is (x_n, xi_n); xi_{n+1} is the fresh noise.
    """
    c = math.sqrt(2.0 * z) / 2.0
    fresh = np.array([c, 1.0])
    return np.array([[1.0 - z, c], [0.0, 0.0]]), np.outer(fresh, fresh)


def stationary(matrix, noise):
    """Solution of S = A S A^T + Q, or None if A has no stationary state."""
    if max(abs(np.linalg.eigvals(matrix))) >= 1.0 - 1e-12:
        return None
    n = len(matrix)
    operator = np.eye(n * n) - np.kron(matrix, matrix)
    covariance = np.linalg.solve(operator, noise.reshape(-1)).reshape(n, n)
    residual = matrix @ covariance @ matrix.T + noise - covariance
    assert abs(residual).max() <= 1e-12 * abs(covariance).max()
    return covariance


def expect(name, value, closed_form):
    if abs(value - closed_form) > 1e-11:
        raise SystemExit(f"{name}: {value!r} but the closed form gives {closed_form!r}")


def underdamped():
    rows = []
    for name, scheme in (("baoab", baoab), ("baoa", baoa), ("legacy", legacy)):
        for dt in OMEGA_DT:
            for gamma in GAMMA_OVER_OMEGA:
                covariance = stationary(*scheme(dt, gamma))
                row = {"scheme": name, "omega_dt": dt, "gamma_over_omega": gamma}
                row["stable"] = covariance is not None
                if covariance is not None:
                    x2, v2, xv = (float(covariance[i, j]) for i, j in ((0, 0), (1, 1), (0, 1)))
                    row.update(x2=x2, v2=v2, xv=xv)
                    if name == "baoab":
                        expect("BAOAB <x^2>", x2, 1.0)
                        expect("BAOAB <v^2>", v2, 1.0 - dt**2 / 4.0)
                        expect("BAOAB <xv>", xv, 0.0)
                    elif name == "baoa":
                        expect("BAOA <x^2>", x2, 1.0)
                        expect("BAOA <v^2>", v2, 1.0)
                        expect("BAOA <xv>", xv, dt / 2.0)
                rows.append(row)
    return rows


def overdamped():
    rows = []
    for z in MOBILITY_STEP:
        value = float(stationary(*euler_maruyama(z))[0, 0])
        expect("Euler-Maruyama <x^2>", value, 1.0 / (1.0 - z / 2.0))
        rows.append({"scheme": "euler_maruyama", "mobility_step": z, "x2": value})
    for z in MOBILITY_STEP:
        value = float(stationary(*leimkuhler_matthews(z))[0, 0])
        expect("Leimkuhler-Matthews <x^2>", value, 1.0)
        rows.append({"scheme": "leimkuhler_matthews", "mobility_step": z, "x2": value})
    return rows


def main():
    default = Path(__file__).resolve().parents[2] / "tests" / "data" / "harmonic_moments.json"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=default, help="output file")
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for key, rows in (("underdamped", underdamped()), ("overdamped", overdamped())):
        parts.append(f' "{key}": [\n  ' + ",\n  ".join(json.dumps(r) for r in rows) + "\n ]")
    out.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    main()
