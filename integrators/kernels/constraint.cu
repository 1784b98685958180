// Rigid bonds, as constraint.rs has them: clusters of constraints that share atoms, positions corrected along the old bond
// vectors by four rounds of Newton's method, velocities by one linear solve. One thread corrects one cluster.

const int SHAPES = 5;

// What happened before a correction.
enum After { VELOCITY, DRIFTED, DISPLACED };

struct Constraints {
    // Per system and shape: number of clusters, and where its atoms and its parameters begin [systems, SHAPES, 3].
    const int* head;
    const int* atoms;
    // Per cluster of A atoms and K constraints: inverse masses [A], squared lengths [K], couplings [K, K].
    const real* parameters;
};

// The atoms, within a cluster, that constraint k joins: all to the first one, or a triangle.
template <bool TRIANGLE>
DEVICE void ends(int k, int* i, int* j) {
    *i = TRIANGLE && k == 2 ? 1 : 0;
    *j = TRIANGLE ? (k == 0 ? 1 : 2) : k + 1;
}

// Solves m λ = g by elimination; the diagonal dominates.
template <int K>
DEVICE void solve(real m[K][K], real* g) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
        real inverse = real(1) / m[k][k];
#pragma unroll
        for (int row = k + 1; row < K; ++row) {
            real factor = m[row][k] * inverse;
#pragma unroll
            for (int l = k + 1; l < K; ++l) m[row][l] = multiply_add(-factor, m[k][l], m[row][l]);
            g[row] = multiply_add(-factor, g[k], g[row]);
        }
    }
#pragma unroll
    for (int k = K - 1; k >= 0; --k) {
        real sum = g[k];
#pragma unroll
        for (int l = k + 1; l < K; ++l) sum = multiply_add(-m[k][l], g[l], sum);
        g[k] = sum / m[k][k];
    }
}

template <int A, int K, bool TRIANGLE>
DEVICE void correct_cluster(const int* atoms, const real* p, After after, real rate, real* x, real* v, const real* old) {
    const real *inverse_mass = p, *length_2 = p + A, *coupling = p + A + K;
    Vector at[A], moving[A], r[K];
    real m[K][K], g[K];
#pragma unroll
    for (int a = 0; a < A; ++a) {
        at[a] = load(x, atoms[a]);
        moving[a] = load(v, atoms[a]);
    }
    if (after != VELOCITY) {
        Vector drifted[A], before[K];
#pragma unroll
        for (int a = 0; a < A; ++a) drifted[a] = at[a];
#pragma unroll
        for (int k = 0; k < K; ++k) {
            int i, j;
            ends<TRIANGLE>(k, &i, &j);
            before[k] = load(old, atoms[i]) - load(old, atoms[j]);
        }
        for (int round = 0; round < 4; ++round) {
#pragma unroll
            for (int k = 0; k < K; ++k) {
                int i, j;
                ends<TRIANGLE>(k, &i, &j);
                r[k] = at[i] - at[j];
                g[k] = real(0.5) * (length_2[k] - dot(r[k], r[k]));
#pragma unroll
                for (int l = 0; l < K; ++l) m[k][l] = coupling[k * K + l] * dot(r[k], before[l]);
            }
            solve<K>(m, g);
#pragma unroll
            for (int k = 0; k < K; ++k) {
                int i, j;
                ends<TRIANGLE>(k, &i, &j);
                at[i] = multiply_add(inverse_mass[i] * g[k], before[k], at[i]);
                at[j] = multiply_add(-(inverse_mass[j] * g[k]), before[k], at[j]);
            }
        }
#pragma unroll
        for (int a = 0; a < A; ++a) {
            if (after == DRIFTED) moving[a] = multiply_add(rate, at[a] - drifted[a], moving[a]);
            store(x, atoms[a], at[a]);
        }
    }
    if (after != DISPLACED) {
#pragma unroll
        for (int k = 0; k < K; ++k) {
            int i, j;
            ends<TRIANGLE>(k, &i, &j);
            r[k] = at[i] - at[j];
            g[k] = -dot(r[k], moving[i] - moving[j]);
        }
#pragma unroll
        for (int k = 0; k < K; ++k) {
#pragma unroll
            for (int l = 0; l < K; ++l) m[k][l] = coupling[k * K + l] * dot(r[k], r[l]);
        }
        solve<K>(m, g);
#pragma unroll
        for (int k = 0; k < K; ++k) {
            int i, j;
            ends<TRIANGLE>(k, &i, &j);
            moving[i] = multiply_add(inverse_mass[i] * g[k], r[k], moving[i]);
            moving[j] = multiply_add(-(inverse_mass[j] * g[k]), r[k], moving[j]);
        }
#pragma unroll
        for (int a = 0; a < A; ++a) store(v, atoms[a], moving[a]);
    }
}

template <int A, int K, bool TRIANGLE>
DEVICE void correct_shape(const Constraints& c, const int* head, const Team& team, After after, real rate, real* x, real* v, const real* old) {
    EACH(n, head[0]) {
        correct_cluster<A, K, TRIANGLE>(c.atoms + head[1] + n * A, c.parameters + head[2] + n * (A + K + K * K), after, rate, x, v, old);
    }
}

// Corrects all clusters of a system; waits for the team before and after. `rate` is one over the length of a drift.
DEVICE void correct(const Constraints& c, int system, const Team& team, After after, real rate, real* x, real* v, const real* old) {
    const int* head = c.head + 3 * SHAPES * system;
    sync();
    correct_shape<2, 1, false>(c, head, team, after, rate, x, v, old);
    correct_shape<3, 2, false>(c, head + 3, team, after, rate, x, v, old);
    correct_shape<4, 3, false>(c, head + 6, team, after, rate, x, v, old);
    correct_shape<5, 4, false>(c, head + 9, team, after, rate, x, v, old);
    correct_shape<3, 3, true>(c, head + 12, team, after, rate, x, v, old);
    sync();
}

template <int A, int K, bool TRIANGLE>
DEVICE real worst_of_shape(const Constraints& c, const int* head, const Team& team, const real* x) {
    real worst = 0;
    EACH(n, head[0]) {
        const int* atoms = c.atoms + head[1] + n * A;
        const real* length_2 = c.parameters + head[2] + n * (A + K + K * K) + A;
        for (int k = 0; k < K; ++k) {
            int i, j;
            ends<TRIANGLE>(k, &i, &j);
            Vector d = load(x, atoms[i]) - load(x, atoms[j]);
            real error = absolute(square_root(dot(d, d) / length_2[k]) - real(1));
            // Written so that NaN counts.
            if (!(error <= worst)) worst = error;
        }
    }
    return worst;
}

// This thread's share of the largest relative error of a rigid bond.
DEVICE real worst_bond(const Constraints& c, int system, const Team& team, const real* x) {
    const int* head = c.head + 3 * SHAPES * system;
    real worst = worst_of_shape<2, 1, false>(c, head, team, x);
    worst = larger(worst, worst_of_shape<3, 2, false>(c, head + 3, team, x));
    worst = larger(worst, worst_of_shape<4, 3, false>(c, head + 6, team, x));
    worst = larger(worst, worst_of_shape<5, 4, false>(c, head + 9, team, x));
    return larger(worst, worst_of_shape<3, 3, true>(c, head + 12, team, x));
}
