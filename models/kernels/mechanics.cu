// Molecular mechanics of one molecule: bonds, angles, torsions, Lennard-Jones and Coulomb between all pairs, generalised Born
// solvation (OBC). The physics of each term is that of terms.rs.
//
// Bonded terms write their forces into slots, which each atom gathers in order. Pairs are visited by circulant rows: row d
// holds (a, a + d mod N) for all a, so that in a row every atom is once first and once second, no two threads write to one
// place, and sums run over rows in order.

struct alignas(8) Model {
    const int *bond_atoms, *angle_atoms, *torsion_atoms;
    const real *bond_parameters, *angle_parameters, *torsion_parameters;
    // Slots of atom i are slots[first_slot[i]] .. slots[first_slot[i + 1]].
    const int *first_slot, *slots;
    // [rows, stride]: of the pair (a, a + d) at (d − 1) stride + a.
    const real *qq, *c6, *c12, *born_pair;
    // [N]
    const real *own, *scaled, *radius, *self_energy, *surface;
    // Memory of a replica that did not fit into shared memory, or nothing.
    real* spill;
    int spill_size;
    int bonds, angles, torsions;
    // Coefficients of P and R of a torsion.
    int even, odd;
    int rows, stride;
    int has_pairs, has_born, has_surface;
    real alpha, beta, gamma;
};

// ½ k (r − r₀)²: the force on the first atom.
DEVICE Vector bond(Vector a, Vector b, real length, real k, real* energy) {
    Vector d = a - b;
    real r2 = dot(d, d);
    real inverse = inverse_root(r2);
    real stretch = multiply_add(r2, inverse, -length);
    real tension = k * stretch;
    *energy += real(0.5) * tension * stretch;
    return -(tension * inverse) * d;
}

// ½ k (θ − θ₀)²: forces on the first and the last atom. The floor keeps the force of a straight angle finite.
DEVICE void angle(Vector a, Vector centre, Vector b, real rest, real k, Vector* on_a, Vector* on_b, real* energy) {
    Vector u = a - centre, v = b - centre;
    real ru = inverse_root(dot(u, u)), rv = inverse_root(dot(v, v));
    u = ru * u;
    v = rv * v;
    real c = larger(smaller(dot(u, v), real(1)), real(-1));
    real bend = arc_cosine(c) - rest;
    real torque = k * bend;
    real g = torque * inverse_root(larger(multiply_add(-c, c, real(1)), real(1e-12)));
    *on_a = (g * ru) * multiply_add(-c, u, v);
    *on_b = (g * rv) * multiply_add(-c, v, u);
    *energy += real(0.5) * torque * bend;
}

// A polynomial and its derivative, coefficients lowest first.
DEVICE void horner(const real* k, int n, real c, real* value, real* slope) {
    *value = n > 0 ? k[n - 1] : real(0);
    *slope = 0;
    for (int i = n - 2; i >= 0; --i) {
        *slope = multiply_add(*slope, c, *value);
        *value = multiply_add(*value, c, k[i]);
    }
}

// P(cos φ) + sin φ R(cos φ): forces on the four atoms.
DEVICE void torsion(const Vector* x, const real* k, int even, int odd, Vector* f, real* energy) {
    Vector b1 = x[1] - x[0], b2 = x[2] - x[1], b3 = x[3] - x[2];
    Vector m = cross(b1, b2), n = cross(b2, b3);
    const real tiny = real(1e-24);
    real b22 = larger(dot(b2, b2), tiny);
    real m_inverse = inverse_root(larger(dot(m, m), tiny)), n_inverse = inverse_root(larger(dot(n, n), tiny));
    real b2_inverse = inverse_root(b22);
    real length = b22 * b2_inverse;
    real c = dot(m, n) * m_inverse * n_inverse, s = length * dot(b1, n) * m_inverse * n_inverse;
    real value, slope;
    horner(k, even, c, &value, &slope);
    *energy += value;
    real torque = -(s * slope);
    if (odd > 0) {
        horner(k + even, odd, c, &value, &slope);
        *energy += s * value;
        torque += c * value - s * s * slope;
    }
    f[0] = (torque * length * m_inverse * m_inverse) * m;
    f[3] = -(torque * length * n_inverse * n_inverse) * n;
    real u = dot(b1, b2) * b2_inverse * b2_inverse, w = dot(b3, b2) * b2_inverse * b2_inverse;
    Vector inner = u * f[0] - w * f[3];
    f[1] = -(f[0] + inner);
    f[2] = inner - f[3];
}

// The Born integral of an atom (radius less offset `own`) over another's sphere (`scaled`), and its derivative divided by r.
DEVICE void born_integral(real r, real r_inverse, real own, real scaled, real* integral, real* slope) {
    *integral = 0;
    *slope = 0;
    real u = r + scaled;
    if (!(own < u)) return;
    real l = larger(own, absolute(r - scaled));
    real inverse = real(1) / (l * u);
    real l_inverse = u * inverse, u_inverse = l * inverse;
    real difference = multiply_add(u_inverse, u_inverse, -(l_inverse * l_inverse));
    real half_log = real(0.5) * r_inverse * logarithm(l * u_inverse);
    real s2_r = scaled * scaled * r_inverse;
    *integral = real(0.5) * ((l_inverse - u_inverse) + multiply_add(real(0.25) * (r - s2_r), difference, half_log));
    // Inside the other atom L = s − r: smooth energies need the term, rare as it is.
    if (own < scaled - r) *integral += real(1) / own - l_inverse;
    real steepness = real(0.25) * multiply_add(s2_r, r_inverse, real(1));
    *slope = real(0.5) * r_inverse * multiply_add(steepness, difference, -(half_log * r_inverse));
}

// The Born radius 1/(1/ρ̃ − tanh(…)/ρ) and its derivative with respect to the integral.
DEVICE void born_radius(const Model& m, real integral, real own, real radius, real* born, real* slope) {
    real psi = integral * own;
    real argument = psi * multiply_add(psi, multiply_add(psi, m.gamma, -m.beta), m.alpha);
    real steepness = multiply_add(psi, multiply_add(real(3) * m.gamma, psi, real(-2) * m.beta), m.alpha);
    real t = real(1) - real(2) / (exponential(real(2) * argument) + real(1));
    *born = real(1) / (real(1) / own - t / radius);
    *slope = *born * *born * own * multiply_add(-t, t, real(1)) * steepness / radius;
}

DEVICE int wrapped(int i, int n) { return i >= n ? i - n : i; }

template <bool ENERGY>
DEVICE real bonded_forces(const Model& m, const Team& team, int n, const real* x, real* f, real* slots) {
    real energy = 0;
    EACH(t, m.bonds) {
        const int* i = m.bond_atoms + 2 * t;
        Vector on_first = bond(load(x, i[0]), load(x, i[1]), m.bond_parameters[2 * t], m.bond_parameters[2 * t + 1], &energy);
        store(slots, 2 * t, on_first);
        store(slots, 2 * t + 1, -on_first);
    }
    int base = 2 * m.bonds;
    EACH(t, m.angles) {
        const int* i = m.angle_atoms + 3 * t;
        Vector a, b;
        angle(load(x, i[0]), load(x, i[1]), load(x, i[2]), m.angle_parameters[2 * t], m.angle_parameters[2 * t + 1], &a, &b, &energy);
        store(slots, base + 3 * t, a);
        store(slots, base + 3 * t + 1, -(a + b));
        store(slots, base + 3 * t + 2, b);
    }
    base += 3 * m.angles;
    EACH(t, m.torsions) {
        const int* i = m.torsion_atoms + 4 * t;
        Vector at[4] = {load(x, i[0]), load(x, i[1]), load(x, i[2]), load(x, i[3])}, force[4];
        torsion(at, m.torsion_parameters + t * (m.even + m.odd), m.even, m.odd, force, &energy);
        for (int k = 0; k < 4; ++k) store(slots, base + 4 * t + k, force[k]);
    }
    sync();
    EACH(i, n) {
        Vector sum = vector(0, 0, 0);
        for (int s = m.first_slot[i]; s < m.first_slot[i + 1]; ++s) sum = sum + load(slots, m.slots[s]);
        store(f, i, sum);
    }
    return ENERGY ? energy : real(0);
}

// Per pair between the passes: −dE/dr / r, and the two derivatives of Born integrals.
const int KEPT = 3;

template <bool ENERGY>
DEVICE real pair_forces(const Model& m, const Team& team, int n, const real* x, real* f, real* scratch, real* kept) {
    real energy = 0;
    // What atoms pass on to their partners, for the present row and the one before.
    real* passed = scratch;
    real *integral = passed + 6 * n, *born = integral + n, *slope = born + n, *chain = slope + n;
    EACH(a, n) { integral[a] = 0; }

    // Direct interactions and Born integrals.
    for (int d = 1; d <= m.rows; ++d) {
        real* to = passed + (d & 1) * 3 * n;
        int pairs = 2 * d == n ? d : n;
        EACH(a, n) {
            real on_a = 0, on_b = 0, slope_a = 0, slope_b = 0, push = 0;
            if (a < pairs) {
                int b = wrapped(a + d, n), at = (d - 1) * m.stride + a;
                Vector delta = load(x, a) - load(x, b);
                real r2 = dot(delta, delta);
                real inverse = inverse_root(r2);
                if (m.has_pairs) {
                    real i2 = inverse * inverse;
                    real i6 = i2 * i2 * i2;
                    real repulsion = m.c12[at] * i6 * i6, attraction = m.c6[at] * i6, coulomb = m.qq[at] * inverse;
                    push = multiply_add(real(12), repulsion, multiply_add(real(-6), attraction, coulomb)) * i2;
                    if (ENERGY) energy += repulsion - attraction + coulomb;
                }
                if (m.has_born) {
                    born_integral(r2 * inverse, inverse, m.own[a], m.scaled[b], &on_a, &slope_a);
                    born_integral(r2 * inverse, inverse, m.own[b], m.scaled[a], &on_b, &slope_b);
                }
            }
            real* keep = kept + (d - 1) * KEPT * n + a;
            keep[0] = push;
            keep[n] = slope_a;
            keep[2 * n] = slope_b;
            integral[a] += on_a;
            to[a] = on_b;
        }
        if (m.has_born) {
            sync();
            EACH(b, n) { integral[b] += to[wrapped(b + n - d, n)]; }
        }
    }

    // Born radii and Still's pair term.
    if (m.has_born) {
        EACH(a, n) {
            born_radius(m, integral[a], m.own[a], m.radius[a], &born[a], &slope[a]);
            real inverse = real(1) / born[a];
            real self = m.self_energy[a] * inverse;
            real area = 0;
            if (m.has_surface) area = m.surface[a] * inverse * inverse * inverse * inverse * inverse * inverse;
            chain[a] = -(real(6) * area + self) * inverse;
            if (ENERGY) energy += self + area;
        }
        sync();
        for (int d = 1; d <= m.rows; ++d) {
            real* to = passed + (d & 1) * 3 * n;
            int pairs = 2 * d == n ? d : n;
            EACH(a, n) {
                to[a] = 0;
                if (a < pairs) {
                    int b = wrapped(a + d, n);
                    Vector delta = load(x, a) - load(x, b);
                    real r2 = dot(delta, delta);
                    real product = born[a] * born[b];
                    real exponent = real(0.25) * r2 / product;
                    real e = exponential(-exponent);
                    real inverse = inverse_root(multiply_add(product, e, r2));
                    real pair_energy = m.born_pair[(d - 1) * m.stride + a] * inverse;
                    real by_square = -(pair_energy * inverse * inverse);
                    real through = real(0.5) * by_square * e * (real(1) + exponent);
                    kept[(d - 1) * KEPT * n + a] -= by_square * multiply_add(real(-0.25), e, real(1));
                    chain[a] = multiply_add(through, born[b], chain[a]);
                    to[a] = through * born[a];
                    if (ENERGY) energy += pair_energy;
                }
            }
            sync();
            EACH(b, n) { chain[b] += to[wrapped(b + n - d, n)]; }
        }
        EACH(a, n) { chain[a] *= slope[a]; }
    }
    sync();

    // Forces.
    for (int d = 1; d <= m.rows; ++d) {
        real* to = passed + (d & 1) * 3 * n;
        int pairs = 2 * d == n ? d : n;
        EACH(a, n) {
            Vector force = vector(0, 0, 0);
            if (a < pairs) {
                int b = wrapped(a + d, n);
                const real* keep = kept + (d - 1) * KEPT * n + a;
                real push = keep[0];
                if (m.has_born) push -= multiply_add(chain[a], keep[n], chain[b] * keep[2 * n]);
                force = push * (load(x, a) - load(x, b));
                store(f, a, load(f, a) + force);
            }
            store(to, a, force);
        }
        sync();
        EACH(b, n) { store(f, b, load(f, b) - load(to, wrapped(b + n - d, n))); }
    }
    return energy;
}

template <bool ENERGY>
DEVICE real forces(const Model& m, const Team& team, int n, const real* x, real* f, real* scratch) {
    // Slots of bonded terms and what is kept of pairs take turns in the same memory.
    real* large = m.spill ? m.spill + (u64)team.replica * m.spill_size : scratch + 10 * n;
    real energy = bonded_forces<ENERGY>(m, team, n, x, f, large);
    sync();
    if (m.has_pairs || m.has_born) energy += pair_forces<ENERGY>(m, team, n, x, f, scratch, large);
    return energy;
}
