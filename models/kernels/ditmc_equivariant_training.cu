// DiTMC's PE(3) forward and back to its parameters, after ditmc_training.cu. Formulas are those of ditmc/equivariant. Features are kept
// irrep by irrep, [irrep][A, 2 l + 1, wide]; a component of one is described by the components before its irrep, how many its irrep has,
// and which of them it is.

DEVICE int place_of(const int* component, int atoms, int atom) { return component[0] * atoms + atom * component[1] + component[2]; }

// ---- pairs ----------------------------------------------------------------------------------------------------------

// Radial functions of rows (i before j) times one plus the gates of their hops: gated [degree][R, RADIAL], gates [hops, degrees · RADIAL].
const int RADIAL = 64;

struct alignas(8) Gated {
    const int* hop;
    const real *radial, *gates;
    real* gated;
    // Gradients of gated ones, and of the gate of each row [R, degrees · RADIAL].
    const real* g;
    real* ggates;
    int rows, degrees;
};

KERNEL(gated, Gated) {
    int t = THREAD, width = p.degrees * RADIAL, row = t / width, k = t - row * width;
    if (row >= p.rows) return;
    int at = (k / RADIAL * p.rows + row) * RADIAL + k % RADIAL;
    p.gated[at] = p.radial[row * RADIAL + k % RADIAL] * (real(1) + p.gates[p.hop[row] * width + k]);
}
KERNEL(gated_back, Gated) {
    int t = THREAD, width = p.degrees * RADIAL, row = t / width, k = t - row * width;
    if (row >= p.rows) return;
    p.ggates[t] = p.g[(k / RADIAL * p.rows + row) * RADIAL + k % RADIAL] * p.radial[row * RADIAL + k % RADIAL];
}

// Numbers of each pair, from sums over harmonics [R, harmonics]; in the opposite direction those of degree 1 change their sign.
struct alignas(8) Coefficients {
    const int *row, *ends, *first, *harmonic;
    const real *harmonics, *value;
    real* to;
    int pairs, count, size;
};

KERNEL(coefficients, Coefficients) {
    int t = THREAD, pair = t / p.count, n = t - pair * p.count;
    if (pair >= p.pairs) return;
    int row = p.row[pair];
    bool reversed = row < 0;
    row = reversed ? -1 - row : row;
    real sum = 0;
    for (int k = p.first[n]; k < p.first[n + 1] && p.ends[2 * pair] != p.ends[2 * pair + 1]; ++k) {
        int h = p.harmonic[k];
        real y = p.harmonics[row * p.size + h];
        sum = multiply_add(p.value[k], reversed && h > 0 && h < 4 ? -y : y, sum);
    }
    p.to[t] = sum;
}

// ---- norms and gates ------------------------------------------------------------------------------------------------

// Of features that are not plain scalars, a block per atom: y = x (1 + factor)/√(Var ‖x‖ + ε), the variance of norms over channels.
struct alignas(8) Scale {
    const real *x, *factor;
    real* y;
    // The way back: g of y; gx is added to; the gradient of the factor.
    const real* g;
    real *gx, *gfactor;
    int width, rows, stride;
};

// Squares of norms up to this count as 0.
#define SMALLEST real(1e-6)

DEVICE real size_of(const Scale& p, const real* x, int c) {
    real square = 0;
    for (int m = 0; m < p.rows; ++m) square = multiply_add(x[m * p.width + c], x[m * p.width + c], square);
    return square > SMALLEST ? square_root(square) : real(0);
}

DEVICE void deviation(const Scale& p, const real* x, real* lanes, real* mean, real* inverse) {
    real sum = 0, square = 0;
    for (int c = threadIdx.x; c < p.width; c += TEAM) sum += size_of(p, x, c);
    *mean = block_sum(sum, lanes) / real(p.width);
    for (int c = threadIdx.x; c < p.width; c += TEAM) {
        real d = size_of(p, x, c) - *mean;
        square = multiply_add(d, d, square);
    }
    *inverse = real(1) / square_root(block_sum(square, lanes) / real(p.width) + VARIANCE);
}

KERNEL(scale, Scale) {
    SHARED_REALS(lanes);
    int atom = blockIdx.x, first = atom * p.rows * p.width;
    real mean, inverse;
    deviation(p, p.x + first, lanes, &mean, &inverse);
    for (int c = threadIdx.x; c < p.width; c += TEAM) {
        real factor = inverse * (real(1) + p.factor[atom * p.stride + c]);
        for (int m = 0; m < p.rows; ++m) p.y[first + m * p.width + c] = p.x[first + m * p.width + c] * factor;
    }
}

KERNEL(scale_back, Scale) {
    SHARED_REALS(lanes);
    int atom = blockIdx.x, first = atom * p.rows * p.width;
    const real *x = p.x + first, *g = p.g + first, *factor = p.factor + atom * p.stride;
    real mean, inverse, slope = 0;
    deviation(p, x, lanes, &mean, &inverse);
    for (int c = threadIdx.x; c < p.width; c += TEAM) {
        real dot = 0;
        for (int m = 0; m < p.rows; ++m) dot = multiply_add(x[m * p.width + c], g[m * p.width + c], dot);
        p.gfactor[atom * p.stride + c] = dot * inverse;
        slope = multiply_add(dot, real(1) + factor[c], slope);
    }
    slope = block_sum(slope, lanes) * inverse * inverse * inverse / real(p.width);
    for (int c = threadIdx.x; c < p.width; c += TEAM) {
        real size = size_of(p, x, c), straight = inverse * (real(1) + factor[c]);
        // Where the norm counts it pulls.
        real pull = size > real(0) ? slope * (size - mean) / size : real(0);
        for (int m = 0; m < p.rows; ++m) {
            int at = m * p.width + c;
            p.gx[first + at] += straight * g[at] - pull * x[at];
        }
    }
}

// (1 + tanh z)/2 with the z of GELU, by which scalars open the features of their atom, and its slope.
DEVICE real opening_of(real x, real* slope) {
    const real root = real(1.5957691216057307), cubic = real(0.044715);
    real square = x * x, s = sigmoid(x * multiply_add(square, root * cubic, root));
    *slope = s * (real(1) - s) * multiply_add(square, real(3) * root * cubic, root);
    return s;
}

// Features [A, rows, width] opened by [A, width], which `scalars` make; the way back: g is multiplied by the opening, y becomes the value,
// and the opening's gradient is added to.
struct alignas(8) Open {
    const real *scalars, *x;
    real *opening, *y;
    real *g, *gopening;
    int atoms, rows, width;
};

KERNEL(opening, Open) {
    int t = THREAD;
    real slope;
    if (t < p.atoms * p.width) p.opening[t] = opening_of(p.scalars[t], &slope);
}
KERNEL(open_features, Open) {
    int t = THREAD, row = t / p.width, c = t - row * p.width;
    if (row < p.atoms * p.rows) p.y[t] = p.x[t] * p.opening[row / p.rows * p.width + c];
}
KERNEL(open_features_back, Open) {
    int t = THREAD, atom = t / p.width, c = t - atom * p.width;
    if (atom >= p.atoms) return;
    real sum = 0, s = p.opening[t];
    for (int m = 0; m < p.rows; ++m) {
        int at = (atom * p.rows + m) * p.width + c;
        sum = multiply_add(p.g[at], p.x[at], sum);
        p.g[at] *= s;
        p.y[at] = p.x[at] * s;
    }
    p.gopening[t] += sum;
}
// Of the scalars themselves: what all openings add.
KERNEL(opening_back, Open) {
    int t = THREAD;
    if (t >= p.atoms * p.width) return;
    real slope;
    opening_of(p.scalars[t], &slope);
    p.g[t] = multiply_add(p.gopening[t], slope, p.g[t]);
}

// ---- attention ------------------------------------------------------------------------------------------------------

// Products of filters and values: entry e takes component `component` of the values through filter `filter` to sum `sum`, times number
// `coefficient` of the pair. By sums, by components, by filters: where the entries of each begin, and which they are.
struct Entries {
    // [E, 4]: filter, component, coefficient, sum.
    const int* entry;
    const int *first_of_sum, *of_sum, *first_of_component, *of_component, *first_of_filter, *of_filter;
    int count, sums, components, filters, coefficients;
};

struct Geometry {
    // Pairs as in ditmc_training.cu; rows of the table, −1 − row where turned round; atoms of each row [R, 2].
    const int *ends, *atom, *row, *row_ends;
    // Components of the inputs [C, 4], the irrep last; irreps of the inputs [I, 2]: components before, and how many.
    const int *component, *irrep;
    const real *qkv, *relative, *filter, *coefficient;
    int atoms, pairs, rows, wide, heads, inputs, components;
};

DEVICE int row_of_pair(const Geometry& q, int pair) { return q.row[pair] < 0 ? -1 - q.row[pair] : q.row[pair]; }
DEVICE const real* value_of(const Geometry& q, const int* component, int atom, int part) {
    return q.qkv + (3 * place_of(component, q.atoms, atom) + part) * q.wide;
}

struct alignas(8) Overlap {
    Geometry geometry;
    real* weights;
    real scale;
};

KERNEL(overlap, Overlap) {
    const Geometry& q = p.geometry;
    int t = THREAD, pair = t / q.heads, head = t - pair * q.heads;
    if (pair >= q.pairs) return;
    int i = q.ends[2 * pair], j = q.ends[2 * pair + 1];
    real sum = 0;
    if (i != j) {
        const real* u = q.relative + row_of_pair(q, pair) * q.inputs * q.wide;
        for (int k = 0; k < q.components; ++k) {
            const int* component = q.component + 4 * k;
            const real *a = value_of(q, component, i, 0), *b = value_of(q, component, j, 1), *meets = u + component[3] * q.wide;
            for (int c = head; c < q.wide; c += q.heads) sum = multiply_add(a[c] * b[c], meets[c], sum);
        }
    }
    p.weights[t] = sum * p.scale;
}

// Sums over senders of what entries make [A, sums, wide].
struct alignas(8) Sums {
    Geometry geometry;
    Entries entries;
    const real* weights;
    real* sums;
};

KERNEL(gather, Sums) {
    const Geometry& q = p.geometry;
    const Entries& e = p.entries;
    int t = THREAD, f = q.wide, c = t % f, sum_of = t / f % e.sums, i = t / f / e.sums;
    if (i >= q.atoms) return;
    int first = q.atom[3 * i], begin = q.atom[3 * i + 1], count = q.atom[3 * i + 2];
    real sum = 0;
    for (int n = 0; n < count; ++n) {
        int j = begin + n, pair = first + n;
        if (j == i) continue;
        int row = row_of_pair(q, pair);
        real w = p.weights[pair * q.heads + c % q.heads];
        for (int k = e.first_of_sum[sum_of]; k < e.first_of_sum[sum_of + 1]; ++k) {
            const int* entry = e.entry + 4 * e.of_sum[k];
            real product = w * q.filter[(entry[0] * q.rows + row) * f + c] * value_of(q, q.component + 4 * entry[1], j, 2)[c];
            sum = multiply_add(q.coefficient[pair * e.coefficients + entry[2]], product, sum);
        }
    }
    p.sums[t] = sum;
}

// Messages from sums: component o of them [O, 3] is the sum of paths, `list` [.., 2]: a sum and its row of κ.
struct alignas(8) Messages {
    const int *component, *first, *list;
    const real *sums, *kappa;
    real* messages;
    int atoms, wide, count, sums_of;
};

KERNEL(messages, Messages) {
    int t = THREAD, f = p.wide, c = t % f, o = t / f % p.count, i = t / f / p.count;
    if (i >= p.atoms) return;
    real sum = 0;
    for (int k = p.first[o]; k < p.first[o + 1]; ++k)
        sum = multiply_add(p.sums[(i * p.sums_of + p.list[2 * k]) * f + c], p.kappa[p.list[2 * k + 1] * f + c], sum);
    p.messages[place_of(p.component + 3 * o, p.atoms, i) * f + c] = sum;
}

// The way back: gradients of sums, and of κ for every atom [A, kappas, wide]. Paths [P, 4]: row of κ, first sum, components before the
// message's irrep, and how many it has.
struct alignas(8) MessagesBack {
    const int* path;
    const real *sums, *kappa, *g;
    real *gsums, *gkappa;
    int atoms, wide, paths, sums_of, kappas;
};

KERNEL(messages_back, MessagesBack) {
    int t = THREAD, f = p.wide, c = t % f, k = t / f % p.paths, i = t / f / p.paths;
    if (i >= p.atoms) return;
    const int* path = p.path + 4 * k;
    real kappa = p.kappa[path[0] * f + c], sum = 0;
    for (int m = 0; m < path[3]; ++m) {
        int component[3] = {path[2], path[3], m}, at = (i * p.sums_of + path[1] + m) * f + c;
        real g = p.g[place_of(component, p.atoms, i) * f + c];
        p.gsums[at] = g * kappa;
        sum = multiply_add(g, p.sums[at], sum);
    }
    p.gkappa[(i * p.kappas + path[0]) * f + c] = sum;
}

struct alignas(8) GatherBack {
    Geometry geometry;
    Entries entries;
    const real *weights, *gsums;
    // Before: gradients of weights. After: slopes.
    real* slopes;
    real *gqkv, *gfilter, *grelative;
};

// Gradients of weights.
KERNEL(weights_back, GatherBack) {
    const Geometry& q = p.geometry;
    const Entries& e = p.entries;
    int t = THREAD, f = q.wide, pair = t / q.heads, head = t - pair * q.heads;
    if (pair >= q.pairs) return;
    int i = q.ends[2 * pair], j = q.ends[2 * pair + 1];
    real sum = 0;
    if (i != j) {
        int row = row_of_pair(q, pair);
        for (int k = 0; k < e.count; ++k) {
            const int* entry = e.entry + 4 * k;
            const real *g = p.gsums + (i * e.sums + entry[3]) * f, *filter = q.filter + (entry[0] * q.rows + row) * f;
            const real* v = value_of(q, q.component + 4 * entry[1], j, 2);
            real part = 0;
            for (int c = head; c < f; c += q.heads) part = multiply_add(g[c] * filter[c], v[c], part);
            sum = multiply_add(q.coefficient[pair * e.coefficients + entry[2]], part, sum);
        }
    }
    p.slopes[t] = sum;
}

// Of queries, keys and values.
KERNEL(values_back, GatherBack) {
    const Geometry& q = p.geometry;
    const Entries& e = p.entries;
    int t = THREAD, f = q.wide, c = t % f, k = t / f % q.components, i = t / f / q.components, head = c % q.heads;
    if (i >= q.atoms) return;
    const int* component = q.component + 4 * k;
    int first = q.atom[3 * i], begin = q.atom[3 * i + 1], count = q.atom[3 * i + 2];
    real gq = 0, gk = 0, gv = 0;
    for (int n = 0; n < count; ++n) {
        int j = begin + n;
        if (j == i) continue;
        int out = first + n, in = q.atom[3 * j] + i - begin, row = row_of_pair(q, out);
        real u = q.relative[(row * q.inputs + component[3]) * f + c];
        gq = multiply_add(p.slopes[out * q.heads + head] * value_of(q, component, j, 1)[c], u, gq);
        gk = multiply_add(p.slopes[in * q.heads + head] * value_of(q, component, j, 0)[c], u, gk);
        real w = p.weights[in * q.heads + head];
        for (int n = e.first_of_component[k]; n < e.first_of_component[k + 1]; ++n) {
            const int* entry = e.entry + 4 * e.of_component[n];
            real product = w * q.filter[(entry[0] * q.rows + row) * f + c] * p.gsums[(j * e.sums + entry[3]) * f + c];
            gv = multiply_add(q.coefficient[in * e.coefficients + entry[2]], product, gv);
        }
    }
    real* to = p.gqkv + 3 * place_of(component, q.atoms, i) * f + c;
    to[0] = gq;
    to[f] = gk;
    to[2 * f] = gv;
}

// Of filters [filter][R, wide]: both directions of a row.
KERNEL(filters_back, GatherBack) {
    const Geometry& q = p.geometry;
    const Entries& e = p.entries;
    int t = THREAD, f = q.wide, c = t % f, row = t / f % q.rows, filter = t / f / q.rows;
    if (filter >= e.filters) return;
    real sum = 0;
    for (int turn = 0; turn < 2; ++turn) {
        int i = q.row_ends[2 * row + turn], j = q.row_ends[2 * row + 1 - turn], pair = q.atom[3 * i] + j - q.atom[3 * i + 1];
        real w = p.weights[pair * q.heads + c % q.heads];
        for (int n = e.first_of_filter[filter]; n < e.first_of_filter[filter + 1]; ++n) {
            const int* entry = e.entry + 4 * e.of_filter[n];
            real product = w * value_of(q, q.component + 4 * entry[1], j, 2)[c] * p.gsums[(i * e.sums + entry[3]) * f + c];
            sum = multiply_add(q.coefficient[pair * e.coefficients + entry[2]], product, sum);
        }
    }
    p.gfilter[t] = sum;
}

// Of what queries and keys meet [R, inputs, wide].
KERNEL(relative_back, GatherBack) {
    const Geometry& q = p.geometry;
    int t = THREAD, f = q.wide, c = t % f, k = t / f % q.inputs, row = t / f / q.inputs;
    if (row >= q.rows) return;
    real sum = 0;
    for (int turn = 0; turn < 2; ++turn) {
        int i = q.row_ends[2 * row + turn], j = q.row_ends[2 * row + 1 - turn], pair = q.atom[3 * i] + j - q.atom[3 * i + 1];
        real dot = 0;
        for (int m = 0; m < q.irrep[2 * k + 1]; ++m) {
            int component[3] = {q.irrep[2 * k], q.irrep[2 * k + 1], m};
            dot = multiply_add(value_of(q, component, i, 0)[c], value_of(q, component, j, 1)[c], dot);
        }
        sum = multiply_add(p.slopes[pair * q.heads + c % q.heads], dot, sum);
    }
    p.grelative[t] = sum;
}
