// V = Σ 4ε [(σ/r)¹² − (σ/r)⁶] over all pairs. A thread adds up its atom's partners in order.

struct alignas(8) Model {
    real sigma_2, epsilon;
};

template <bool ENERGY>
DEVICE real forces(const Model& m, const Team& team, int atoms, const real* x, real* f, real* scratch) {
    real energy = 0;
    EACH(i, atoms) {
        Vector at = load(x, i), force = vector(0, 0, 0);
        for (int j = 0; j < atoms; ++j) {
            if (j == i) continue;
            Vector d = at - load(x, j);
            real inverse = real(1) / dot(d, d);
            real s2 = m.sigma_2 * inverse;
            real s6 = s2 * s2 * s2;
            real slope = real(24) * m.epsilon * multiply_add(real(2), s6, real(-1)) * (s6 * inverse);
            force = multiply_add(slope, d, force);
            if (ENERGY && i < j) energy += real(4) * m.epsilon * (s6 - real(1)) * s6;
        }
        store(f, i, force);
    }
    return energy;
}
