// PaiNN forward and back to its parameters, after training.cu, for molecules of any sizes. An atom has a row of scalars [F] and three of
// vectors; formulas are those of painn/network.rs and painn/kernels.rs. Atoms gather from their neighbours, so that no two threads
// write to one place.

// Radial functions of a pair.
#ifdef DOUBLE
const int BAND = 18;
#else
const int BAND = 12;
#endif
// Numbers per pair: weights of the band, then that of the bias.
const int STEP = 20;

// Pairs of all molecules, i before j, and who sees whom.
struct Pairs {
    // First radial function [P]; weights [P, STEP]; unit vector from i to j and 1/d [P, 4]; i and j [P, 2].
    const int* start;
    const real *weights, *geometry;
    const int* ends;
    // Where an atom's neighbours begin [A + 1]; of each the other atom and the pair, −1 − pair where the atom is the pair's j [2 P, 2].
    const int *first, *neighbours;
};

// ---- pairs ----------------------------------------------------------------------------------------------------------

// Filters of a layer [P, 3 F]: Σ_k weights[k] A[start + k] + weights[BAND] b.
struct alignas(8) Filters {
    Pairs pairs;
    // Of this layer's first column.
    const real *filter, *bias;
    real* to;
    int count, columns, stride;
};

KERNEL(filters, Filters) {
    int t = THREAD, pair = t / p.columns, column = t - pair * p.columns;
    if (pair >= p.count) return;
    const real *weights = p.pairs.weights + pair * STEP, *row = p.filter + p.pairs.start[pair] * p.stride + column;
    real sum = weights[BAND] * p.bias[column];
#pragma unroll
    for (int k = 0; k < BAND; ++k) sum = multiply_add(weights[k], row[k * p.stride], sum);
    p.to[t] = sum;
}

// Adds to scalars and vectors what all neighbours send: `cat` [A, 2 F] gets scalars in its first half, `middle` [3 A, F] vectors.
struct alignas(8) Messages {
    Pairs pairs;
    const real *filter, *x, *q, *mu;
    real *cat, *middle;
    int atoms, wide;
};

KERNEL(messages, Messages) {
    int t = THREAD, f = p.wide, i = t / f, feature = t - i * f;
    if (i >= p.atoms) return;
    const real* mu = p.mu + 3 * i * f + feature;
    real q = p.q[t], x = mu[0], y = mu[f], z = mu[2 * f];
    for (int e = p.pairs.first[i]; e < p.pairs.first[i + 1]; ++e) {
        int j = p.pairs.neighbours[2 * e], pair = p.pairs.neighbours[2 * e + 1];
        real sign = pair < 0 ? real(-1) : real(1);
        pair = pair < 0 ? -1 - pair : pair;
        const real *w = p.filter + pair * 3 * f + feature, *sent = p.x + 3 * j * f + feature, *other = p.mu + 3 * j * f + feature;
        const real* u = p.pairs.geometry + 4 * pair;
        real r = sign * w[f] * sent[f], c = w[2 * f] * sent[2 * f];
        q = multiply_add(w[0], sent[0], q);
        x = multiply_add(r, u[0], multiply_add(c, other[0], x));
        y = multiply_add(r, u[1], multiply_add(c, other[f], y));
        z = multiply_add(r, u[2], multiply_add(c, other[2 * f], z));
    }
    p.cat[2 * i * f + feature] = q;
    real* to = p.middle + 3 * i * f + feature;
    to[0] = x;
    to[f] = y;
    to[2 * f] = z;
}

// Gradients of what atoms sent `gx` [A, 3 F], and of vectors before `before` [3 A, F].
struct alignas(8) MessagesBack {
    Pairs pairs;
    const real *filter, *x, *mu, *gq, *gmu;
    real *gx, *before;
    int atoms, wide;
};

KERNEL(messages_back, MessagesBack) {
    int t = THREAD, f = p.wide, i = t / f, feature = t - i * f, at = 3 * i * f + feature;
    if (i >= p.atoms) return;
    real mine = p.x[at + 2 * f], mx = p.mu[at], my = p.mu[at + f], mz = p.mu[at + 2 * f];
    real xq = 0, xr = 0, xm = 0, x = p.gmu[at], y = p.gmu[at + f], z = p.gmu[at + 2 * f];
    for (int e = p.pairs.first[i]; e < p.pairs.first[i + 1]; ++e) {
        int j = p.pairs.neighbours[2 * e], pair = p.pairs.neighbours[2 * e + 1];
        // The direction is from the other atom to this one.
        real sign = pair < 0 ? real(1) : real(-1);
        pair = pair < 0 ? -1 - pair : pair;
        const real *w = p.filter + pair * 3 * f + feature, *g = p.gmu + 3 * j * f + feature, *u = p.pairs.geometry + 4 * pair;
        real onto = multiply_add(g[0], u[0], multiply_add(g[f], u[1], g[2 * f] * u[2]));
        xq = multiply_add(w[0], p.gq[j * f + feature], xq);
        xr = multiply_add(sign * w[f], onto, xr);
        xm = multiply_add(w[2 * f], multiply_add(g[0], mx, multiply_add(g[f], my, g[2 * f] * mz)), xm);
        real c = w[2 * f] * mine;
        x = multiply_add(c, g[0], x);
        y = multiply_add(c, g[f], y);
        z = multiply_add(c, g[2 * f], z);
    }
    p.gx[at] = xq;
    p.gx[at + f] = xr;
    p.gx[at + 2 * f] = xm;
    p.before[at] = x;
    p.before[at + f] = y;
    p.before[at + 2 * f] = z;
}

// Gradients of filters [P, 3 F].
struct alignas(8) FiltersBack {
    Pairs pairs;
    const real *x, *mu, *gq, *gmu;
    real* to;
    int count, wide;
};

KERNEL(filters_back, FiltersBack) {
    int t = THREAD, f = p.wide, pair = t / f, feature = t - pair * f;
    if (pair >= p.count) return;
    int i = p.pairs.ends[2 * pair], j = p.pairs.ends[2 * pair + 1], at_i = 3 * i * f + feature, at_j = 3 * j * f + feature;
    const real *u = p.pairs.geometry + 4 * pair, *gi = p.gmu + at_i, *gj = p.gmu + at_j, *mi = p.mu + at_i, *mj = p.mu + at_j;
    const real *xi = p.x + at_i, *xj = p.x + at_j;
    real along_i = multiply_add(gi[0], u[0], multiply_add(gi[f], u[1], gi[2 * f] * u[2]));
    real along_j = -multiply_add(gj[0], u[0], multiply_add(gj[f], u[1], gj[2 * f] * u[2]));
    real dot_i = multiply_add(gi[0], mj[0], multiply_add(gi[f], mj[f], gi[2 * f] * mj[2 * f]));
    real dot_j = multiply_add(gj[0], mi[0], multiply_add(gj[f], mi[f], gj[2 * f] * mi[2 * f]));
    real* to = p.to + 3 * pair * f + feature;
    to[0] = multiply_add(xj[0], p.gq[i * f + feature], xi[0] * p.gq[j * f + feature]);
    to[f] = multiply_add(xj[f], along_i, xi[f] * along_j);
    to[2 * f] = multiply_add(xj[2 * f], dot_i, xi[2 * f] * dot_j);
}

// Of segments of pairs with one first radial function [S, BAND + 1, columns]: Σ weights[k] g. Pairs are in the order of first functions.
struct alignas(8) Segments {
    Pairs pairs;
    // Pairs in order [P]; where segments begin [S + 1].
    const int *order, *segments;
    const real* gradient;
    real* to;
    int count, columns;
};

KERNEL(segments, Segments) {
    int t = THREAD, segment = t / p.columns, column = t - segment * p.columns;
    if (segment >= p.count) return;
    real sums[BAND + 1];
#pragma unroll
    for (int k = 0; k <= BAND; ++k) sums[k] = 0;
    for (int e = p.segments[segment]; e < p.segments[segment + 1]; ++e) {
        int pair = p.order[e];
        const real* weights = p.pairs.weights + pair * STEP;
        real g = p.gradient[pair * p.columns + column];
#pragma unroll
        for (int k = 0; k <= BAND; ++k) sums[k] = multiply_add(weights[k], g, sums[k]);
    }
#pragma unroll
    for (int k = 0; k <= BAND; ++k) p.to[(segment * (BAND + 1) + k) * p.columns + column] = sums[k];
}

// Gradients of a layer's radial weights and, behind the last of them, of its bias, from those of segments.
struct alignas(8) Radial {
    // First segment of each first function [radial − BAND + 2].
    const int* from;
    const real* segments;
    // Of this layer's first column.
    real *filter, *bias;
    int radial, starts, columns, stride;
};

KERNEL(radial_back, Radial) {
    int t = THREAD, r = t / p.columns, column = t - r * p.columns;
    if (r > p.radial) return;
    bool bias = r == p.radial;
    int low = bias || r < BAND ? 0 : r - BAND + 1, high = bias || r >= p.starts ? p.starts : r + 1;
    real sum = 0;
    for (int start = low; start < high; ++start) {
        int k = bias ? BAND : r - start;
        for (int s = p.from[start]; s < p.from[start + 1]; ++s) sum += p.segments[(s * (BAND + 1) + k) * p.columns + column];
    }
    if (bias) p.bias[column] = sum;
    else p.filter[r * p.stride + column] = sum;
}

// ---- atoms ----------------------------------------------------------------------------------------------------------

// Features before the first layer.
struct alignas(8) Embed {
    const int* types;
    const real* embedding;
    real *q, *mu;
    int atoms, wide;
};

KERNEL(embed, Embed) {
    int t = THREAD, i = t / p.wide, feature = t - i * p.wide;
    if (i >= p.atoms) return;
    p.q[t] = p.embedding[p.types[i] * p.wide + feature];
    for (int axis = 0; axis < 3; ++axis) p.mu[(3 * i + axis) * p.wide + feature] = 0;
}

// Gradients of the features of the elements that there are; those of all others are zero.
struct alignas(8) EmbedBack {
    const int *types, *elements;
    const real* gq;
    real* embedding;
    int atoms, wide, count;
};

KERNEL(embed_back, EmbedBack) {
    int t = THREAD, element = t / p.wide, feature = t - element * p.wide;
    if (element >= p.count) return;
    int type = p.elements[element];
    real sum = 0;
    for (int i = 0; i < p.atoms; ++i) {
        if (p.types[i] == type) sum += p.gq[i * p.wide + feature];
    }
    p.embedding[type * p.wide + feature] = sum;
}

// What a perceptron of atoms reads, [q | |V| | time]: q is copied where given.
struct alignas(8) Concatenate {
    const real *q, *vw, *time;
    real* cat;
    int atoms, scalars, vectors, width;
    real epsilon;
};

KERNEL(concatenate, Concatenate) {
    int t = THREAD, i = t / p.width, column = t - i * p.width;
    if (i >= p.atoms) return;
    if (column < p.scalars) {
        if (p.q) p.cat[t] = p.q[i * p.scalars + column];
    } else if (column < p.scalars + p.vectors) {
        const real* v = p.vw + 6 * i * p.vectors + column - p.scalars;
        int next = 2 * p.vectors;
        p.cat[t] = square_root(multiply_add(v[0], v[0], multiply_add(v[next], v[next], multiply_add(v[2 * next], v[2 * next], p.epsilon))));
    } else {
        p.cat[t] = column == p.scalars + p.vectors ? p.time[i] : real(0);
    }
}

// Arrays of a mixing: [V | W] in `vw`, a in `a`, and their gradients.
struct alignas(8) Mix {
    const real *cat, *vw, *a, *middle;
    real *q, *mu;
    const real *gmu, *gcat;
    real *gq, *ga, *gvw;
    int atoms, wide;
};

DEVICE real inner_of(const real* a, const real* b, int next) {
    return multiply_add(a[0], b[0], multiply_add(a[next], b[next], a[2 * next] * b[2 * next]));
}

KERNEL(mix, Mix) {
    int t = THREAD, f = p.wide, i = t / f, feature = t - i * f;
    if (i >= p.atoms) return;
    const real *v = p.vw + 6 * i * f + feature, *w = v + f, *a = p.a + 3 * i * f + feature;
    p.q[t] = multiply_add(a[2 * f], inner_of(v, w, 2 * f), p.cat[2 * i * f + feature] + a[0]);
    for (int axis = 0; axis < 3; ++axis) {
        int at = (3 * i + axis) * f + feature;
        p.mu[at] = multiply_add(a[f], w[2 * axis * f], p.middle[at]);
    }
}

KERNEL(mix_back_a, Mix) {
    int t = THREAD, f = p.wide, i = t / f, feature = t - i * f;
    if (i >= p.atoms) return;
    const real *v = p.vw + 6 * i * f + feature, *w = v + f, *g = p.gmu + 3 * i * f + feature;
    real* to = p.ga + 3 * i * f + feature;
    to[0] = p.gq[t];
    to[f] = multiply_add(g[0], w[0], multiply_add(g[f], w[2 * f], g[2 * f] * w[4 * f]));
    to[2 * f] = p.gq[t] * inner_of(v, w, 2 * f);
}

// Of V and W; what came through `cat` is added to gq.
KERNEL(mix_back_v, Mix) {
    int t = THREAD, f = p.wide, i = t / f, feature = t - i * f, at = 2 * i * f + feature;
    if (i >= p.atoms) return;
    const real* a = p.a + 3 * i * f + feature;
    real along = p.gq[t] * a[2 * f], change = a[f], length = p.gcat[at + f] / p.cat[at + f];
    for (int axis = 0; axis < 3; ++axis) {
        int v = (6 * i + 2 * axis) * f + feature, w = v + f;
        p.gvw[v] = multiply_add(along, p.vw[w], length * p.vw[v]);
        p.gvw[w] = multiply_add(along, p.vw[v], change * p.gmu[(3 * i + axis) * f + feature]);
    }
    p.gq[t] += p.gcat[at];
}

// A gated block of the head: `scalars` features in, `wide` out, and o of its perceptron [A, 2 wide].
struct alignas(8) Gate {
    const real *cat, *vw, *o;
    real *q, *mu;
    // Nothing for the last block.
    const real *gq_in;
    const real *gmu, *gcat;
    real *gq, *go, *gvw;
    int atoms, scalars, wide, width;
};

KERNEL(gate, Gate) {
    int t = THREAD, f = p.wide, i = t / f, feature = t - i * f;
    if (i >= p.atoms) return;
    const real* o = p.o + 2 * i * f + feature;
    p.q[t] = swish(o[0]);
    for (int axis = 0; axis < 3; ++axis) p.mu[(3 * i + axis) * f + feature] = o[f] * p.vw[(6 * i + 2 * axis + 1) * f + feature];
}

KERNEL(gate_back_o, Gate) {
    int t = THREAD, f = p.wide, i = t / f, feature = t - i * f;
    if (i >= p.atoms) return;
    const real *w = p.vw + (6 * i + 1) * f + feature, *g = p.gmu + 3 * i * f + feature;
    real* to = p.go + 2 * i * f + feature;
    to[0] = p.gq_in ? p.gq_in[t] * swish_slope(p.o[2 * i * f + feature]) : real(0);
    to[f] = multiply_add(g[0], w[0], multiply_add(g[f], w[2 * f], g[2 * f] * w[4 * f]));
}

// Of V and W, and of scalars in.
KERNEL(gate_back_v, Gate) {
    int t = THREAD, most = p.scalars > p.wide ? p.scalars : p.wide, i = t / most, feature = t - i * most, f = p.wide;
    if (i >= p.atoms) return;
    if (feature < p.scalars) p.gq[i * p.scalars + feature] = p.gcat[i * p.width + feature];
    if (feature >= f) return;
    int norm = i * p.width + p.scalars + feature;
    real length = p.gcat[norm] / p.cat[norm], open = p.o[(2 * i + 1) * f + feature];
    for (int axis = 0; axis < 3; ++axis) {
        int v = (6 * i + 2 * axis) * f + feature;
        p.gvw[v] = length * p.vw[v];
        p.gvw[v + f] = open * p.gmu[(3 * i + axis) * f + feature];
    }
}
