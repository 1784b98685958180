// V = ½ k Σ |r − c|² over the active axes.

struct alignas(8) Model {
    // [N, 3], or nothing for the origin.
    const real* centre;
    real k;
    int axes[3];
    int centred;
};

template <bool ENERGY>
DEVICE real forces(const Model& m, const Team& team, int atoms, const real* x, real* f, real* scratch) {
    real squares = 0;
    EACH(c, 3 * atoms) {
        real d = (m.centred ? m.centre[c] : real(0)) - x[c];
        bool active = m.axes[c % 3];
        f[c] = active ? m.k * d : real(0);
        if (ENERGY && active) squares = multiply_add(d, d, squares);
    }
    return real(0.5) * m.k * squares;
}
