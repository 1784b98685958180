// What DiTMC's networks have in common, after rows.cu and pairs.cu: a row is an atom. At a fixed time all that the graph says is constant:
// modulations are numbers [F, n] of features and atoms, the same for all replicas. Formulas are those of ditmc/kernels.rs and
// ditmc/provider.rs.

#define NM_IN_ANGSTROMS 10.0

// The rows of a team: n atoms of each replica.
struct Atoms {
    int n, rows, stride;
};

DEVICE Atoms atoms_of(const Team& team, int n) {
    Atoms a = {n, team.count * n, row_stride(team.count * n)};
    return a;
}

// Channels that a thread sums over neighbours: of one head, whose channels are those with the same remainder by the heads.
const int CHANNELS = 4;

// The channels of item `t` of tiles × heads × rows; where a head has no more, the last comes again.
struct Channels {
    int row, head, count;
    int at[CHANNELS];
};

DEVICE int tiles_of(int width) { return (width + CHANNELS - 1) / CHANNELS; }

DEVICE Channels channels_of(int t, int rows, int heads, int width) {
    Channels c;
    c.row = t % rows;
    c.head = t / rows % heads;
    int first = t / (rows * heads) * CHANNELS;
    c.count = width - first < CHANNELS ? width - first : CHANNELS;
#pragma unroll
    for (int s = 0; s < CHANNELS; ++s) c.at[s] = (s < c.count ? first + s : width - 1) * heads + c.head;
    return c;
}

// What is added to features, and the affine part of their norm, each [F, n]; nothing is added where there is no alpha.
struct Modulation {
    const real *alpha, *scale, *shift;
};

// h += alpha · update, then `to` = (h − mean)/deviation · scale + shift.
FUNCTION void gate_and_normalise(const Team& team, const Atoms& a, int wide, const Modulation& m, const real* update, real* h, real* to,
                                 real* parts) {
    int n = a.n, rows = a.rows, stride = a.stride;
    real *sums = parts, *squares = sums + PARTS * stride;
    EACH_PART(part, row, begin, end, wide) {
        int atom = row % n;
        real sum = 0;
        for (int k = begin; k < end; ++k) {
            real x = h[k * stride + row];
            if (m.alpha) {
                x = multiply_add(m.alpha[k * n + atom], update[k * stride + row], x);
                h[k * stride + row] = x;
            }
            sum += x;
        }
        sums[part * stride + row] = sum;
    }
    sync();
    EACH_PART(part, row, begin, end, wide) {
        real mean = total(sums, stride, row) / real(wide), sum = 0;
        for (int k = begin; k < end; ++k) {
            real d = h[k * stride + row] - mean;
            sum = multiply_add(d, d, sum);
        }
        squares[part * stride + row] = sum;
    }
    sync();
    EACH_PART(part, row, begin, end, wide) {
        int atom = row % n;
        real mean = total(sums, stride, row) / real(wide);
        real inverse = real(1) / square_root(total(squares, stride, row) / real(wide) + real(1e-6));
        for (int k = begin; k < end; ++k) {
            real unit = (h[k * stride + row] - mean) * inverse;
            to[k * stride + row] = multiply_add(unit, m.scale[k * n + atom], m.shift[k * n + atom]);
        }
    }
    sync();
}

// Weights of the neighbours of each row from their logits [heads, n − 1, rows].
FUNCTION void softmax(const Team& team, const Atoms& a, int heads, real* weights) {
    int others = a.n - 1;
    if (others < 1) return;
    EACH(t, heads * a.rows) {
        int head = t / a.rows, row = t - head * a.rows;
        real *w = weights + head * others * a.stride + row, most = w[0], sum = 0;
        for (int e = 1; e < others; ++e) most = larger(most, w[e * a.stride]);
        for (int e = 0; e < others; ++e) {
            real x = exponential(w[e * a.stride] - most);
            w[e * a.stride] = x;
            sum += x;
        }
        real inverse = real(1) / sum;
        for (int e = 0; e < others; ++e) w[e * a.stride] *= inverse;
    }
    sync();
}

// Coordinates in Å times the time, relative to the centre [3, rows], in double precision as on the host.
FUNCTION void coordinates(const Team& team, const Atoms& a, real scale, const real* x, real* to) {
    EACH(t, 3 * a.rows) {
        int axis = t / a.rows, row = t - axis * a.rows;
        const real* from = x + 3 * (row - row % a.n) + axis;
        double sum = 0;
        for (int j = 0; j < a.n; ++j) sum += (double)from[3 * j];
        to[axis * a.stride + row] = (real)((double)scale * ((double)x[3 * row + axis] - sum / a.n));
    }
    sync();
}

// Forces k (x̂ − y) without their net part, from drifts x̂ [3, rows] in Å; `unit` is k in kJ/mol/nm per Å.
FUNCTION void forces_of_drifts(const Team& team, const Atoms& a, real unit, const real* x, const real* drift, real* f) {
    EACH(t, 3 * a.rows) {
        int row = t / 3, axis = t - 3 * row, base = row - row % a.n;
        const real* to = drift + axis * a.stride;
        double sum = 0;
        for (int j = base; j < base + a.n; ++j) sum += (double)to[j] - NM_IN_ANGSTROMS * (double)x[3 * j + axis];
        double mine = (double)to[row] - NM_IN_ANGSTROMS * (double)x[t];
        f[t] = (real)((double)unit * (mine - sum / a.n));
    }
}
