// V = h (x² − 1)² + t x + ½ k y²; k = 0 in one dimension.

struct alignas(8) Model {
    real barrier, tilt, stiffness;
};

template <bool ENERGY>
DEVICE real forces(const Model& m, const Team& team, int atoms, const real* x, real* f, real* scratch) {
    real energy = 0;
    EACH(i, atoms) {
        Vector at = load(x, i);
        real u = multiply_add(at.x, at.x, real(-1));
        real pull = m.stiffness * at.y;
        store(f, i, vector(-multiply_add(real(4) * m.barrier * at.x, u, m.tilt), -pull, 0));
        if (ENERGY) energy += m.barrier * u * u + multiply_add(m.tilt, at.x, real(0.5) * pull * at.y);
    }
    return energy;
}
