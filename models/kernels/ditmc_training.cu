// DiTMC's aPE and rPE forward and back to their parameters, after training.cu, for structures of any sizes, each with a graph and a time of
// its own: a row of the condition is an atom. Formulas are those of ditmc/scalar.rs, conditioner.rs, condition.rs, attention.rs and
// kernels.rs.

// ---- norms ----------------------------------------------------------------------------------------------------------

// Added to variances (flax).
#define VARIANCE real(1e-6)

// Sum over the threads of the block; `lanes` has room for one number of each.
DEVICE real block_sum(real mine, real* lanes) {
    lanes[threadIdx.x] = mine;
    sync();
    for (int half = TEAM / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) lanes[threadIdx.x] += lanes[threadIdx.x + half];
        sync();
    }
    real sum = lanes[0];
    sync();
    return sum;
}

// Mean of a row, and one over its standard deviation.
DEVICE void moments(const real* x, int width, real* lanes, real* mean, real* inverse) {
    real sum = 0, square = 0;
    for (int c = threadIdx.x; c < width; c += TEAM) sum += x[c];
    *mean = block_sum(sum, lanes) / real(width);
    for (int c = threadIdx.x; c < width; c += TEAM) square = multiply_add(x[c] - *mean, x[c] - *mean, square);
    *inverse = real(1) / square_root(block_sum(square, lanes) / real(width) + VARIANCE);
}

// A layer norm of rows, a block each: y = x̂ (plus + scale) + shift, where scale and shift of row r are at r · stride.
struct alignas(8) Norm {
    const real *x, *scale, *shift;
    real* y;
    int width, stride;
    real plus;
    // The way back: g of y; gx is set, or added to; gradients of scale and shift, at r · gstride.
    const real* g;
    real *gx, *gscale, *gshift;
    int gstride, add;
};

KERNEL(layer_norm, Norm) {
    SHARED_REALS(lanes);
    int row = blockIdx.x;
    const real *x = p.x + row * p.width, *scale = p.scale + row * p.stride, *shift = p.shift + row * p.stride;
    real mean, inverse;
    moments(x, p.width, lanes, &mean, &inverse);
    for (int c = threadIdx.x; c < p.width; c += TEAM)
        p.y[row * p.width + c] = multiply_add((x[c] - mean) * inverse, p.plus + scale[c], shift[c]);
}

KERNEL(layer_norm_back, Norm) {
    SHARED_REALS(lanes);
    int row = blockIdx.x;
    const real *x = p.x + row * p.width, *scale = p.scale + row * p.stride, *g = p.g + row * p.width;
    real mean, inverse, sum = 0, dot = 0;
    moments(x, p.width, lanes, &mean, &inverse);
    for (int c = threadIdx.x; c < p.width; c += TEAM) {
        real unit = (x[c] - mean) * inverse, gu = g[c] * (p.plus + scale[c]);
        sum += gu;
        dot = multiply_add(gu, unit, dot);
        p.gscale[row * p.gstride + c] = g[c] * unit;
        if (p.gshift) p.gshift[row * p.gstride + c] = g[c];
    }
    sum = block_sum(sum, lanes) / real(p.width);
    dot = block_sum(dot, lanes) / real(p.width);
    for (int c = threadIdx.x; c < p.width; c += TEAM) {
        real unit = (x[c] - mean) * inverse, value = inverse * (g[c] * (p.plus + scale[c]) - sum - unit * dot);
        real* to = p.gx + row * p.width + c;
        *to = p.add ? *to + value : value;
    }
}

// ---- numbers one by one ---------------------------------------------------------------------------------------------

// y = SiLU(x), or y *= its slope at x.
struct alignas(8) Curve {
    const real* x;
    real* y;
    int n;
};

KERNEL(curve, Curve) {
    int t = THREAD;
    if (t < p.n) p.y[t] = swish(p.x[t]);
}
KERNEL(curve_back, Curve) {
    int t = THREAD;
    if (t < p.n) p.y[t] *= swish_slope(p.x[t]);
}

// y += x of n numbers.
KERNEL(add, Curve) {
    int t = THREAD;
    if (t < p.n) p.y[t] += p.x[t];
}

// y = x + α u (or α u where there is no x), α of atom a at a · stride, for `per` rows of each atom; the way back: gu = (or +=) α g, and
// the gradient of α at a · stride.
struct alignas(8) Gate {
    const real *alpha, *x, *u;
    real* y;
    const real* g;
    real *gu, *galpha;
    int atoms, width, stride, per, add;
};

KERNEL(gate, Gate) {
    int t = THREAD, row = t / p.width, c = t - row * p.width;
    if (row < p.atoms * p.per) p.y[t] = multiply_add(p.alpha[row / p.per * p.stride + c], p.u[t], p.x ? p.x[t] : real(0));
}
KERNEL(gate_back, Gate) {
    int t = THREAD, atom = t / p.width, c = t - atom * p.width;
    if (atom >= p.atoms) return;
    real sum = 0, alpha = p.alpha[atom * p.stride + c];
    for (int m = 0; m < p.per; ++m) {
        int at = (atom * p.per + m) * p.width + c;
        sum = multiply_add(p.g[at], p.u[at], sum);
        p.gu[at] = p.add ? multiply_add(alpha, p.g[at], p.gu[at]) : alpha * p.g[at];
    }
    p.galpha[atom * p.stride + c] = sum;
}

// Rows of a table: to[r] = (or +=) from[index[r]]. The way back with indices that differ: from[index[r]] = to[r].
struct alignas(8) Rows {
    const int* index;
    real *from, *to;
    int rows, width, add;
};

KERNEL(take_rows, Rows) {
    int t = THREAD, row = t / p.width, c = t - row * p.width;
    if (row >= p.rows) return;
    real value = p.from[p.index[row] * p.width + c];
    p.to[t] = p.add ? p.to[t] + value : value;
}
KERNEL(give_rows, Rows) {
    int t = THREAD, row = t / p.width, c = t - row * p.width;
    if (row < p.rows) p.from[p.index[row] * p.width + c] = p.to[t];
}

// Of rows in an order, segments of which belong to one row of a table: parts[s] = Σ from[order[e]].
struct alignas(8) Segments {
    const int *order, *segments;
    const real* from;
    real* parts;
    int count, width;
};

KERNEL(segments, Segments) {
    int t = THREAD, s = t / p.width, c = t - s * p.width;
    if (s >= p.count) return;
    real sum = 0;
    for (int e = p.segments[s]; e < p.segments[s + 1]; ++e) sum += p.from[p.order[e] * p.width + c];
    p.parts[t] = sum;
}

// to[r · stride] = the sum of the segments of row r.
struct alignas(8) Table {
    const int* first;
    const real* parts;
    real* to;
    int rows, width, stride;
};

KERNEL(sum_segments, Table) {
    int t = THREAD, row = t / p.width, c = t - row * p.width;
    if (row >= p.rows) return;
    real sum = 0;
    for (int s = p.first[row]; s < p.first[row + 1]; ++s) sum += p.parts[s * p.width + c];
    p.to[row * p.stride + c] = sum;
}

// ---- the condition --------------------------------------------------------------------------------------------------

// Bonds in both directions, sender and receiver [B, 2]; bonds that arrive at an atom and that leave it, with where those of each begin.
struct Bonds {
    const int *ends, *first_in, *in, *first_out, *out;
    int atoms, bonds, wide;
};

// What a layer of the conditioner reads: [h_sender | h_receiver | e] of a bond, [h | Σ e that arrive] of an atom.
struct alignas(8) Reads {
    Bonds bonds;
    const real *h, *e;
    real *edge, *node;
};

KERNEL(read_bonds, Reads) {
    const Bonds& b = p.bonds;
    int t = THREAD, f = b.wide, bond = t / f, c = t - bond * f;
    if (bond >= b.bonds) return;
    real* to = p.edge + 3 * bond * f + c;
    to[0] = p.h[b.ends[2 * bond] * f + c];
    to[f] = p.h[b.ends[2 * bond + 1] * f + c];
    to[2 * f] = p.e[t];
}

KERNEL(read_atoms, Reads) {
    const Bonds& b = p.bonds;
    int t = THREAD, f = b.wide, atom = t / f, c = t - atom * f;
    if (atom >= b.atoms) return;
    real sum = 0;
    for (int k = b.first_in[atom]; k < b.first_in[atom + 1]; ++k) sum += p.e[b.in[k] * f + c];
    p.node[2 * atom * f + c] = p.h[t];
    p.node[(2 * atom + 1) * f + c] = sum;
}

// Gradients: `node` [A, 2 F] of what atoms read, `edge` [B, 3 F] of what bonds read; of bonds `ge`, of atoms `gh`.
struct alignas(8) ReadsBack {
    Bonds bonds;
    const real *node, *edge;
    real *gh, *ge;
};

KERNEL(read_atoms_back, ReadsBack) {
    const Bonds& b = p.bonds;
    int t = THREAD, f = b.wide, bond = t / f, c = t - bond * f;
    if (bond < b.bonds) p.ge[t] += p.node[(2 * b.ends[2 * bond + 1] + 1) * f + c];
}

KERNEL(read_bonds_back, ReadsBack) {
    const Bonds& b = p.bonds;
    int t = THREAD, f = b.wide, atom = t / f, c = t - atom * f;
    if (atom >= b.atoms) return;
    real sum = p.node[2 * atom * f + c];
    for (int k = b.first_out[atom]; k < b.first_out[atom + 1]; ++k) sum += p.edge[3 * b.out[k] * f + c];
    for (int k = b.first_in[atom]; k < b.first_in[atom + 1]; ++k) sum += p.edge[(3 * b.in[k] + 1) * f + c];
    p.gh[t] = sum;
}

KERNEL(bonds_before, ReadsBack) {
    const Bonds& b = p.bonds;
    int t = THREAD, f = b.wide, bond = t / f, c = t - bond * f;
    if (bond < b.bonds) p.ge[t] = p.edge[(3 * bond + 2) * f + c];
}

// Waves of the times of structures [S, wide], of `frequencies` learned frequencies; gradients of these.
struct alignas(8) Waves {
    const real *times, *frequencies;
    real* waves;
    const real* g;
    real* gfrequencies;
    int structures, count, wide;
};

KERNEL(waves, Waves) {
    int t = THREAD, s = t / p.wide, c = t - s * p.wide;
    if (s >= p.structures) return;
    double sine = 0, cosine = 0;
    if (c < 2 * p.count) sincospi(2.0 * (double)p.frequencies[c / 2] * (double)p.times[s], &sine, &cosine);
    p.waves[t] = (real)(c % 2 ? sine : cosine);
    if (c >= 2 * p.count) p.waves[t] = 0;
}

KERNEL(waves_back, Waves) {
    int k = THREAD;
    if (k >= p.count) return;
    real sum = 0;
    for (int s = 0; s < p.structures; ++s) {
        const real *g = p.g + s * p.wide + 2 * k, *wave = p.waves + s * p.wide + 2 * k;
        sum += real(6.283185307179586) * p.times[s] * (g[1] * wave[0] - g[0] * wave[1]);
    }
    p.gfrequencies[k] = sum;
}

// Tokens of atoms get that of their structure's time; the way back: a time's gradient is the sum over its atoms.
struct alignas(8) Times {
    const int *structure, *first;
    real *atoms, *times;
    int rows, structures, wide;
};

KERNEL(add_times, Times) {
    int t = THREAD, row = t / p.wide, c = t - row * p.wide;
    if (row < p.rows) p.atoms[t] += p.times[p.structure[row] * p.wide + c];
}
KERNEL(sum_times, Times) {
    int t = THREAD, s = t / p.wide, c = t - s * p.wide;
    if (s >= p.structures) return;
    real sum = 0;
    for (int i = p.first[s]; i < p.first[s + 1]; ++i) sum += p.atoms[i * p.wide + c];
    p.times[t] = sum;
}

// ---- atoms and pairs ------------------------------------------------------------------------------------------------

// Gradients of the features of the elements that there are.
struct alignas(8) Elements {
    const int *types, *elements;
    const real* g;
    real* to;
    int atoms, wide, count;
};

KERNEL(elements_back, Elements) {
    int t = THREAD, element = t / p.wide, c = t - element * p.wide;
    if (element >= p.count) return;
    real sum = 0;
    for (int i = 0; i < p.atoms; ++i) {
        if (p.types[i] == p.elements[element]) sum += p.g[i * p.wide + c];
    }
    p.to[p.elements[element] * p.wide + c] = sum;
}

// Displacements of pairs from receiver to sender [P, pad], of places [A, pad].
struct alignas(8) Displace {
    const int* ends;
    const real* x;
    real* to;
    int pairs, pad;
};

KERNEL(displace, Displace) {
    int t = THREAD, pair = t / p.pad, c = t - pair * p.pad;
    if (pair >= p.pairs) return;
    p.to[t] = c < 3 ? p.x[p.ends[2 * pair + 1] * p.pad + c] - p.x[p.ends[2 * pair] * p.pad + c] : real(0);
}

// ---- attention ------------------------------------------------------------------------------------------------------

// All pairs of atoms of a structure, receiver first, an atom with itself among them: `ends` [P, 2]; of each atom its pair with the first
// atom of its structure, that atom, and how many there are [A, 3]. `row` of a pair in the table, whose rows are `stride` long; what
// queries and keys meet is at `offset`, what values meet F after it. Channel c belongs to head c mod H.
struct Pairs {
    const int *ends, *atom, *row;
    const real *qkv, *table, *kappa;
    int atoms, pairs, wide, heads, stride, offset;
};

struct alignas(8) Attention {
    Pairs pairs;
    // [P, H]; sums before κ and after [A, F].
    real *weights, *sum, *out;
};

DEVICE const real* row_of(const Pairs& a, int pair) { return a.table + a.row[pair] * a.stride + a.offset; }

KERNEL(scores, Attention) {
    const Pairs& a = p.pairs;
    int t = THREAD, pair = t / a.heads, head = t - pair * a.heads, f = a.wide;
    if (pair >= a.pairs) return;
    int i = a.ends[2 * pair], j = a.ends[2 * pair + 1];
    const real *q = a.qkv + 3 * i * f, *k = a.qkv + (3 * j + 1) * f, *row = row_of(a, pair);
    real sum = 0;
    for (int c = head; c < f; c += a.heads) sum = multiply_add(q[c] * k[c], row[c], sum);
    p.weights[t] = sum * square_root(real(a.heads) / real(f));
}

// Weights of pairs [P, H] over senders, but for the atom itself; an atom alone attends to nothing. The way back: gradients of weights
// become slopes.
struct alignas(8) Softmax {
    const int* atom;
    real *weights, *slopes;
    int atoms, heads;
    real scale;
};

KERNEL(softmax, Softmax) {
    int t = THREAD, i = t / p.heads, head = t - i * p.heads;
    if (i >= p.atoms) return;
    int first = p.atom[3 * i], self = i - p.atom[3 * i + 1], count = p.atom[3 * i + 2];
    real* w = p.weights + first * p.heads + head;
    real most = real(-1e30), total = 0;
    for (int j = 0; j < count; ++j) {
        if (j != self) most = larger(most, w[j * p.heads]);
    }
    for (int j = 0; j < count; ++j) {
        real e = j == self ? real(0) : exponential(w[j * p.heads] - most);
        w[j * p.heads] = e;
        total += e;
    }
    for (int j = 0; j < count && count > 1; ++j) w[j * p.heads] *= real(1) / total;
}

KERNEL(softmax_back, Softmax) {
    int t = THREAD, i = t / p.heads, head = t - i * p.heads;
    if (i >= p.atoms) return;
    int at = p.atom[3 * i] * p.heads + head, count = p.atom[3 * i + 2];
    real mean = 0;
    for (int j = 0; j < count; ++j) mean = multiply_add(p.weights[at + j * p.heads], p.slopes[at + j * p.heads], mean);
    for (int j = 0; j < count; ++j) {
        real* slope = p.slopes + at + j * p.heads;
        *slope = p.weights[at + j * p.heads] * (*slope - mean) * p.scale;
    }
}

KERNEL(attend, Attention) {
    const Pairs& a = p.pairs;
    int t = THREAD, f = a.wide, i = t / f, c = t - i * f;
    if (i >= a.atoms) return;
    int first = a.atom[3 * i], begin = a.atom[3 * i + 1], count = a.atom[3 * i + 2];
    real sum = 0;
    for (int j = 0; j < count; ++j) {
        if (begin + j == i) continue;
        real w = p.weights[(first + j) * a.heads + c % a.heads];
        sum = multiply_add(w * a.qkv[(3 * (begin + j) + 2) * f + c], row_of(a, first + j)[f + c], sum);
    }
    p.sum[t] = sum;
    p.out[t] = sum * a.kappa[c];
}

// The way back: `g` of the result [A, F], which is multiplied by κ; slopes [P, H]; gradients of queries, keys and values, of κ for every
// atom [A, F], and of each pair's row [P], `gstride` long, at `goffset`.
struct alignas(8) AttentionBack {
    Pairs pairs;
    const real *weights, *sum;
    real *g, *slopes, *gqkv, *gkappa, *grow;
    int gstride, goffset;
};

KERNEL(kappa_back, AttentionBack) {
    const Pairs& a = p.pairs;
    int t = THREAD;
    if (t >= a.atoms * a.wide) return;
    p.gkappa[t] = p.g[t] * p.sum[t];
    p.g[t] *= a.kappa[t % a.wide];
}

KERNEL(scores_back, AttentionBack) {
    const Pairs& a = p.pairs;
    int t = THREAD, pair = t / a.heads, head = t - pair * a.heads, f = a.wide;
    if (pair >= a.pairs) return;
    int i = a.ends[2 * pair], j = a.ends[2 * pair + 1];
    const real *g = p.g + i * f, *v = a.qkv + (3 * j + 2) * f, *row = row_of(a, pair) + f;
    real dot = 0;
    for (int c = head; c < f; c += a.heads) dot = multiply_add(g[c] * v[c], row[c], dot);
    p.slopes[t] = dot;
}

// An atom as receiver has gradients of its query, as sender those of its key and value.
KERNEL(attend_back, AttentionBack) {
    const Pairs& a = p.pairs;
    int t = THREAD, f = a.wide, i = t / f, c = t - i * f;
    if (i >= a.atoms) return;
    int first = a.atom[3 * i], begin = a.atom[3 * i + 1], count = a.atom[3 * i + 2], head = c % a.heads;
    real gq = 0, gk = 0, gv = 0;
    for (int k = 0; k < count; ++k) {
        int j = begin + k;
        if (j == i) continue;
        int out = first + k, in = a.atom[3 * j] + i - begin;
        const real *mine = row_of(a, out), *its = row_of(a, in);
        gq = multiply_add(p.slopes[out * a.heads + head] * a.qkv[(3 * j + 1) * f + c], mine[c], gq);
        gk = multiply_add(p.slopes[in * a.heads + head] * a.qkv[3 * j * f + c], its[c], gk);
        gv = multiply_add(p.weights[in * a.heads + head] * p.g[j * f + c], its[f + c], gv);
    }
    p.gqkv[3 * i * f + c] = gq;
    p.gqkv[(3 * i + 1) * f + c] = gk;
    p.gqkv[(3 * i + 2) * f + c] = gv;
}

KERNEL(rows_back, AttentionBack) {
    const Pairs& a = p.pairs;
    int t = THREAD, f = a.wide, pair = t / f, c = t - pair * f, head = c % a.heads;
    if (pair >= a.pairs) return;
    int i = a.ends[2 * pair], j = a.ends[2 * pair + 1];
    real* to = p.grow + pair * p.gstride + p.goffset + c;
    bool self = i == j;
    real slope = self ? real(0) : p.slopes[pair * a.heads + head], w = self ? real(0) : p.weights[pair * a.heads + head];
    to[0] = slope * a.qkv[3 * i * f + c] * a.qkv[(3 * j + 1) * f + c];
    to[f] = w * p.g[i * f + c] * a.qkv[(3 * j + 2) * f + c];
}
