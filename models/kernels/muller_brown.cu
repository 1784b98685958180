// V = Σ A exp(a u² + b u v + c v²), u = x − x₀, v = y − y₀ (Müller and Brown 1979); the terms come from the host.

struct alignas(8) Model {
    // Per term A, a, b, c, x₀, y₀.
    real term[4][6];
};

template <bool ENERGY>
DEVICE real forces(const Model& m, const Team& team, int atoms, const real* x, real* f, real* scratch) {
    real energy = 0;
    EACH(i, atoms) {
        Vector at = load(x, i), force = vector(0, 0, 0);
#pragma unroll
        for (int t = 0; t < 4; ++t) {
            const real* k = m.term[t];
            real u = at.x - k[4], v = at.y - k[5];
            real au = k[1] * u, cv = k[3] * v;
            real e = k[0] * exponential(multiply_add(multiply_add(k[2], v, au), u, cv * v));
            force.x = multiply_add(-e, multiply_add(real(2), au, k[2] * v), force.x);
            force.y = multiply_add(-e, multiply_add(real(2), cv, k[2] * u), force.y);
            if (ENERGY) energy += e;
        }
        store(f, i, force);
    }
    return energy;
}
