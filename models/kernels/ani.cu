// ANI potentials: features of every atom's surroundings, the networks of all members forward and backward, and the features'
// gradient. The formulas are those of descriptor.rs and network.rs.
//
// Atoms are rows in the order of their elements. In a product a thread owns a result of a few rows: weights are read along the
// threads, rows are the same for all of them. Every sum runs over its inputs in order.

struct alignas(8) Model {
    // [N]: element of each atom, and its row. [N]: the atom of each row. [elements + 1]: the first row of each element.
    const int *element, *row, *atom, *first;
    // Per element: number of hidden layers; for each, inputs, outputs and where weights [inputs, outputs], their transpose and
    // biases of the first member begin; inputs, weights and bias of the last layer; numbers of one member.
    const int* layers;
    const real* weights;
    const real *radial_shift, *cos_shift, *sin_shift, *distance_shift;
    // Features and their gradients [features, N], activations [hidden, N].
    real* spill;
    int spill_size;
    int elements, members, radial, angular, features, stride;
    real radial_cutoff, angular_cutoff, radial_eta, angular_eta, zeta;
    // kJ/mol and kJ/mol/nm of one hartree and hartree/Å, over the number of members.
    real energy_unit, force_unit;
};

// Long functions that several stages of a step call: inlined, the kernel would be many times as long.
#ifdef SCOREFIELD_HOST
#define FUNCTION DEVICE
#else
#define FUNCTION static __device__ __noinline__
#endif

// As in descriptor.rs and network.rs.
#define COSINE_SCALE real(0.95)
#define SMALLEST real(1e-30)
#define ANGSTROMS real(10)
#define PI real(3.141592653589793)
#define ALPHA real(0.1)
// Rows that a thread works on at once.
#define ROWS 4

// One atom's surroundings, [N] each: unit vectors to the others, distances (Å), their inverses, cutoff functions and slopes.
struct Near {
    real *x, *y, *z, *r, *inverse, *fc, *dfc, *inner, *dinner, *force;
};

DEVICE Near near_in(real* scratch, int n) {
    Near a;
    a.x = scratch;
    a.y = a.x + n;
    a.z = a.y + n;
    a.r = a.z + n;
    a.inverse = a.r + n;
    a.fc = a.inverse + n;
    a.dfc = a.fc + n;
    a.inner = a.dfc + n;
    a.dinner = a.inner + n;
    a.force = a.dinner + n;
    return a;
}

DEVICE void cutoff_function(real r, real cutoff, real* value, real* slope) {
    *value = 0;
    *slope = 0;
    if (!(r < cutoff)) return;
    real sine, cosine;
    half_turns(r / cutoff, &sine, &cosine);
    *value = multiply_add(real(0.5), cosine, real(0.5));
    *slope = real(-0.5) * PI / cutoff * sine;
}

FUNCTION void surroundings(const Model& m, const Team& team, int n, const real* x, int i, Near a) {
    EACH(j, n) {
        Vector d = ANGSTROMS * (load(x, j) - load(x, i));
        real r2 = j == i ? real(1) : dot(d, d);
        real inverse = inverse_root(r2), r = r2 * inverse;
        a.x[j] = inverse * d.x;
        a.y[j] = inverse * d.y;
        a.z[j] = inverse * d.z;
        a.r[j] = r;
        a.inverse[j] = inverse;
        // An atom is not among its own neighbours.
        real seen = j == i ? real(2) * m.radial_cutoff : r;
        cutoff_function(seen, m.radial_cutoff, &a.fc[j], &a.dfc[j]);
        cutoff_function(seen, m.angular_cutoff, &a.inner[j], &a.dinner[j]);
    }
    sync();
}

// Geometry of two neighbours: 0.95 û·û′, its sine, û·û′ and the mean distance.
struct Angle {
    real cosine, sine, c, mean;
};

DEVICE Angle angle_between(Near a, int j, int k) {
    Angle t;
    t.c = multiply_add(a.z[j], a.z[k], multiply_add(a.y[j], a.y[k], a.x[j] * a.x[k]));
    t.cosine = COSINE_SCALE * t.c;
    t.sine = square_root(multiply_add(-t.cosine, t.cosine, real(1)));
    t.mean = real(0.5) * (a.r[j] + a.r[k]);
    return t;
}

// One angular function without cutoffs, its base and the distance from its shift.
DEVICE real angular_function(const Model& m, const Angle& t, int q, real* base, real* d) {
    real cosine = multiply_add(t.cosine, m.cos_shift[q], t.sine * m.sin_shift[q]);
    *base = larger(multiply_add(cosine, real(0.5), real(0.5)), SMALLEST);
    *d = t.mean - m.distance_shift[q];
    return exponential(multiply_add(m.zeta, logarithm(*base), -m.angular_eta * *d * *d));
}

// The first feature of neighbours of elements a and b.
DEVICE int pair_feature(const Model& m, int a, int b) {
    int low = a < b ? a : b, high = a < b ? b : a;
    return m.elements * m.radial + (low * (2 * m.elements - low + 1) / 2 + high - low) * m.angular;
}

FUNCTION void features_of(const Model& m, const Team& team, int n, Near a, int row, real* features) {
    EACH(f, m.elements * m.radial) {
        int e = f / m.radial;
        real shift = m.radial_shift[f - e * m.radial], sum = 0;
        for (int k = m.first[e]; k < m.first[e + 1]; ++k) {
            int j = m.atom[k];
            if (a.fc[j] == real(0)) continue;
            real d = a.r[j] - shift;
            sum = multiply_add(real(0.25) * a.fc[j], exponential(-m.radial_eta * d * d), sum);
        }
        features[f * n + row] = sum;
    }
    for (int low = 0; low < m.elements; ++low) {
        for (int high = low; high < m.elements; ++high) {
            int begin = pair_feature(m, low, high);
            EACH(q, m.angular) {
                real sum = 0;
                for (int k = m.first[low]; k < m.first[low + 1]; ++k) {
                    int j = m.atom[k];
                    if (a.inner[j] == real(0)) continue;
                    for (int l = low == high ? k + 1 : m.first[high]; l < m.first[high + 1]; ++l) {
                        int o = m.atom[l];
                        if (a.inner[o] == real(0)) continue;
                        real base, d;
                        real e = angular_function(m, angle_between(a, j, o), q, &base, &d);
                        sum = multiply_add(real(2) * a.inner[j] * a.inner[o], e, sum);
                    }
                }
                features[(begin + q) * n + row] = sum;
            }
        }
    }
}

DEVICE real celu(real x) {
    return larger(x, real(0)) + ALPHA * (exponential(smaller(x, real(0)) / ALPHA) - real(1));
}

// Its derivative where its value is h.
DEVICE real celu_slope(real h) { return multiply_add(smaller(h, real(0)), real(1) / ALPHA, real(1)); }

// What becomes of the sums of a product.
enum Finish { ACTIVATE, SLOPE, COLLECT };

// out = finish(weights · in), rows [begin, end): in [from, N], out [to, N], weights [from, to].
template <Finish FINISH>
FUNCTION void product(const Team& team, int n, int begin, int end, int from, int to, const real* weights, const real* bias, const real* in,
                    real* out) {
    for (int tile = begin; tile < end; tile += ROWS) {
        int last = end - tile - 1;
        EACH(o, to) {
            real sums[ROWS];
            for (int r = 0; r < ROWS; ++r) sums[r] = FINISH == ACTIVATE ? bias[o] : real(0);
            for (int k = 0; k < from; ++k) {
                real w = weights[k * to + o];
                const real* rows = in + k * n + tile;
                for (int r = 0; r < ROWS; ++r) sums[r] = multiply_add(w, rows[r < last ? r : last], sums[r]);
            }
            real* result = out + o * n + tile;
            for (int r = 0; r <= last && r < ROWS; ++r) {
                if (FINISH == ACTIVATE) result[r] = celu(sums[r]);
                if (FINISH == SLOPE) result[r] = sums[r] * celu_slope(result[r]);
                if (FINISH == COLLECT) result[r] += sums[r];
            }
        }
    }
    sync();
}

// One member's network of one element: this thread's share of the energy (hartree); the gradient is added to `gradient`.
template <bool ENERGY>
FUNCTION real network(const Model& m, const Team& team, int n, int e, int member, const real* features, real* gradient, real* hidden) {
    const int* layers = m.layers + e * m.stride;
    int begin = m.first[e], end = m.first[e + 1], depth = layers[0];
    const int* last = layers + 1 + 5 * depth;
    const real* weights = m.weights + member * last[3];
    const real* in = features;
    real* out = hidden;
    for (int l = 0; l < depth; ++l) {
        const int* at = layers + 1 + 5 * l;
        product<ACTIVATE>(team, n, begin, end, at[0], at[1], weights + at[2], weights + at[4], in, out);
        in = out;
        out += at[1] * n;
    }
    // Past its end, `out` is followed back layer by layer.
    real* top = out - last[0] * n;
    real energy = 0;
    if (ENERGY) {
        EACH(r, end - begin) {
            real sum = weights[last[2]];
            for (int k = 0; k < last[0]; ++k) sum = multiply_add(weights[last[1] + k], top[k * n + begin + r], sum);
            energy += sum;
        }
        sync();
    }
    EACH(k, last[0]) {
        for (int r = begin; r < end; ++r) top[k * n + r] = weights[last[1] + k] * celu_slope(top[k * n + r]);
    }
    sync();
    for (int l = depth - 1; l >= 0; --l) {
        const int* at = layers + 1 + 5 * l;
        real* below = l > 0 ? top - at[0] * n : gradient;
        if (l > 0) product<SLOPE>(team, n, begin, end, at[1], at[0], weights + at[3], 0, top, below);
        else product<COLLECT>(team, n, begin, end, at[1], at[0], weights + at[3], 0, top, below);
        top = below;
    }
    return energy;
}

// Adds the forces of one atom's features: a thread gathers what acts on its neighbour, and all of it acts back on the atom.
FUNCTION void forces_of(const Model& m, const Team& team, int n, Near a, int i, int row, const real* gradient, real* f) {
    EACH(j, n) {
        Vector force = vector(0, 0, 0), u = vector(a.x[j], a.y[j], a.z[j]);
        if (a.fc[j] != real(0)) {
            real value = 0, slope = 0;
            for (int q = 0; q < m.radial; ++q) {
                real d = a.r[j] - m.radial_shift[q];
                real e = gradient[(m.element[j] * m.radial + q) * n + row] * exponential(-m.radial_eta * d * d);
                value += e;
                slope = multiply_add(e, d, slope);
            }
            real push = real(0.25) * multiply_add(a.fc[j] * real(-2) * m.radial_eta, slope, a.dfc[j] * value);
            force = -push * u;
        }
        if (a.inner[j] != real(0)) {
            for (int k = 0; k < n; ++k) {
                if (k == j || a.inner[k] == real(0)) continue;
                int begin = pair_feature(m, m.element[j], m.element[k]);
                Angle t = angle_between(a, j, k);
                real minus_cot = -(t.cosine / t.sine), value = 0, by_cosine = 0, by_distance = 0;
                for (int q = 0; q < m.angular; ++q) {
                    real base, d;
                    real e = gradient[(begin + q) * n + row] * angular_function(m, t, q, &base, &d);
                    value += e;
                    by_distance = multiply_add(e, d, by_distance);
                    by_cosine = multiply_add(e / base, multiply_add(minus_cot, m.sin_shift[q], m.cos_shift[q]), by_cosine);
                }
                real scale = real(2) * a.inner[j] * a.inner[k];
                real turn = scale * real(0.5) * COSINE_SCALE * m.zeta * by_cosine * a.inverse[j];
                real push = multiply_add(-m.angular_eta * scale, by_distance, real(2) * a.dinner[j] * a.inner[k] * value);
                Vector v = vector(a.x[k], a.y[k], a.z[k]);
                force = force - push * u - turn * multiply_add(-t.c, u, v);
            }
        }
        force = m.force_unit * force;
        store(a.force, j, force);
        store(f, j, load(f, j) + force);
    }
    sync();
    EACH(axis, 3) {
        real sum = 0;
        for (int j = 0; j < n; ++j) sum += a.force[3 * j + axis];
        f[3 * i + axis] -= sum;
    }
    sync();
}

template <bool ENERGY>
DEVICE real forces(const Model& m, const Team& team, int n, const real* x, real* f, real* scratch) {
    Near near = near_in(scratch, n);
    real* features = m.spill ? m.spill + (u64)team.replica * m.spill_size : scratch + 12 * n;
    real *gradient = features + m.features * n, *hidden = gradient + m.features * n;
    for (int i = 0; i < n; ++i) {
        surroundings(m, team, n, x, i, near);
        features_of(m, team, n, near, m.row[i], features);
        sync();
    }
    EACH(k, m.features * n) { gradient[k] = 0; }
    EACH(j, n) { store(f, j, vector(0, 0, 0)); }
    sync();
    real energy = 0;
    for (int e = 0; e < m.elements; ++e) {
        for (int member = 0; member < m.members; ++member) {
            energy += network<ENERGY>(m, team, n, e, member, features, gradient, hidden);
        }
    }
    for (int i = 0; i < n; ++i) {
        surroundings(m, team, n, x, i, near);
        forces_of(m, team, n, near, i, m.row[i], gradient, f);
    }
    return energy * m.energy_unit;
}
