// PaiNN, after rows.cu and pairs.cu: a row is an atom; vector features have a row per axis and atom, all atoms of an axis side by side.
// Every atom sees every other one of its molecule, and a filter is made once for both directions. Formulas are those of
// painn/network.rs and painn/kernels.rs.

struct alignas(8) Model {
    const real* weights;
    // PLACES numbers per layer and per block of the head.
    const int* places;
    // Radial weights of the filters [radial, layers · 3 F] and their bias; features before the first layer [F, N].
    const real *filter, *filter_bias, *nodes;
    real* spill;
    int spill_size;
    int layers, wide, blocks, direct, radial;
    // Å.
    real cutoff, distance_epsilon, norm_epsilon;
    // kJ/mol/nm of one unit of force, kJ/mol of one unit of energy.
    real force_unit, energy_unit;
};

// Where weights [inputs, outputs], biases and transposes begin, of a layer and of a block of the head. Of a block with an energy
// SECOND alone.
enum Place {
    FIRST, FIRST_BIAS, FIRST_BACK, SECOND, SECOND_BIAS, SECOND_BACK, MIX, MIX_BACK,
    UPDATE, UPDATE_BIAS, UPDATE_BACK, CHANGE, CHANGE_BIAS, CHANGE_BACK,
    // Of a block: inputs, outputs, and the width of what its perceptron reads.
    INPUTS = UPDATE, OUTPUTS, READS,
    PLACES = CHANGE_BACK + 1
};

// Radial functions per distance, how many widths away they are left out, and numbers per pair: functions times cutoff, the cutoff.
#ifdef DOUBLE
const int BAND = 18;
#define REACH 8.5
#else
const int BAND = 12;
#define REACH 5.5
#endif
const int STEP = BAND + 1;
#define NM_IN_ANGSTROMS 10.0
#define HALF_TURN 3.141592653589793

// Rows of a team, and where they are: all of it is in the spill.
struct Work {
    int n, rows, stride, wide3, pairs, pair_stride;
    // Vectors of pairs: unit vector and 1/d; first radial function; weights of the filter and their slopes; gradients.
    real *geometry, *weights, *slopes, *gradient;
    int* start;
    // Filters of a layer and their slopes [3 F, pairs]; parts of four sums.
    real *filter, *filter_slope, *parts;
    // What goes through a perceptron; gradients of scalars, of vectors now and before, and of what lies between.
    real *hidden, *gq, *gmu, *gmu_in, *ga, *gs, *gcat, *gvw;
};

// What a layer leaves for the way back: scalars, vectors, slopes of the perceptron, what neighbours send, vectors and
// [q | |V|] after the messages, [V | W], slopes and result of the other perceptron.
struct Kept {
    real *q, *mu, *context, *x, *middle, *cat, *vw, *update, *a;
};

DEVICE const real* part_of(const Model& m, int layer, Place place) { return m.weights + m.places[layer * PLACES + place]; }

// Length of one row per axis and atom.
DEVICE int vectors_of(const Work& w) { return row_stride(3 * w.rows); }

DEVICE Kept kept_of(const Model& m, const Work& w, real* spill, int layer) {
    int scalars = m.wide * w.stride, vectors = m.wide * vectors_of(w);
    // Without a way back all layers use the same memory, but for what goes from one to the next.
    real* at = spill + (u64)(m.direct ? layer % 2 : layer) * (11 * scalars + 4 * vectors);
    Kept k;
    k.q = at;
    k.context = k.q + scalars;
    k.x = k.context + scalars;
    k.cat = k.x + 3 * scalars;
    k.update = k.cat + 2 * scalars;
    k.a = k.update + scalars;
    k.mu = k.a + 3 * scalars;
    k.middle = k.mu + vectors;
    k.vw = k.middle + vectors;
    return k;
}

// ---- pairs ----------------------------------------------------------------------------------------------------------

// Distances, directions and radial functions, in double precision as on the host.
FUNCTION void geometry_of(const Team& team, const Model& m, const Work& w, const real* x) {
    double spacing = (double)m.cutoff / (m.radial - 1), turn = HALF_TURN / (double)m.cutoff;
    int last = (m.radial > BAND ? m.radial : BAND) - BAND, stride = w.pair_stride;
    EACH(p, w.pairs) {
        int i, j;
        ends_of(w.n, false, p, &i, &j);
        double r[3], square = (double)m.distance_epsilon;
        for (int k = 0; k < 3; ++k) {
            r[k] = NM_IN_ANGSTROMS * (double)x[3 * j + k] - NM_IN_ANGSTROMS * (double)x[3 * i + k];
            square += r[k] * r[k];
        }
        double d = sqrt(square), inverse = d > 0 ? 1 / d : 0;
        bool near = d < (double)m.cutoff;
        double fc = near ? 0.5 * (cos(turn * d) + 1) : 0, dfc = near ? -0.5 * turn * sin(turn * d) : 0;
        double lowest = ceil(d / spacing - REACH);
        int start = lowest > 0 ? (lowest < last ? (int)lowest : last) : 0;
        w.start[p] = start;
        for (int k = 0; k < 3; ++k) w.geometry[k * stride + p] = (real)(r[k] * inverse);
        w.geometry[3 * stride + p] = (real)inverse;
        for (int k = 0; k < BAND; ++k) {
            double z = d / spacing - (start + k), phi = start + k < m.radial ? exp(-0.5 * z * z) : 0;
            w.weights[k * stride + p] = (real)(phi * fc);
            w.slopes[k * stride + p] = (real)(phi * (dfc - z / spacing * fc));
        }
        w.weights[BAND * stride + p] = (real)fc;
        w.slopes[BAND * stride + p] = (real)dfc;
        // NaN must not get lost in a comparison.
        if (!(square < 1e300)) w.geometry[p] = (real)square - (real)square;
        for (int k = 0; k < 3; ++k) w.gradient[k * stride + p] = 0;
    }
    sync();
}

// Filters of a layer, or their slopes: Σ_k weights[k] A[start + k] + weights[BAND] b, for four columns of eight pairs at a time.
FUNCTION void filters(const Team& team, const Model& m, const Work& w, int layer, const real* weights, real* out) {
    int columns = 3 * m.wide, stride = w.pair_stride, high = (w.pairs + TILE_ROWS - 1) / TILE_ROWS, all = m.layers * columns;
    EACH(t, (columns / TILE_COLUMNS + 7) / 8 * 8 * high) {
        int first = t / 8 % high * TILE_ROWS, column = (t / (8 * high) * 8 + t % 8) * TILE_COLUMNS;
        if (column >= columns) continue;
        real sums[TILE_COLUMNS][TILE_ROWS];
        Four bias = four(m.filter_bias + layer * columns + column);
#pragma unroll
        for (int r = 0; r < TILE_ROWS; ++r) {
            int p = first + r < w.pairs ? first + r : w.pairs - 1;
            const real* row = m.filter + (u64)w.start[p] * all + layer * columns + column;
#pragma unroll
            for (int c = 0; c < TILE_COLUMNS; ++c) sums[c][r] = weights[BAND * stride + p] * bias.at[c];
#pragma unroll 6
            for (int k = 0; k < BAND; ++k) {
                Four a = four(row + k * all);
                real weight = weights[k * stride + p];
#pragma unroll
                for (int c = 0; c < TILE_COLUMNS; ++c) sums[c][r] = multiply_add(weight, a.at[c], sums[c][r]);
            }
        }
#pragma unroll
        for (int c = 0; c < TILE_COLUMNS; ++c) {
            put(out + (column + c) * stride + first, &sums[c][0]);
            put(out + (column + c) * stride + first + 4, &sums[c][4]);
        }
    }
    sync();
}

// Adds to scalars and vectors what all neighbours send.
FUNCTION void messages(const Team& team, const Model& m, const Work& w, const Kept& k) {
    int rows = w.rows, stride = w.stride, vectors = vectors_of(w), f = m.wide;
    EACH(t, f * rows) {
        int feature = t / rows, row = t - feature * rows;
        const real *to_q = w.filter + feature * w.pair_stride, *along = to_q + f * w.pair_stride, *to_mu = along + f * w.pair_stride;
        const real *xq = k.x + feature * stride, *xr = xq + f * stride, *xm = xr + f * stride, *mu = k.mu + feature * vectors;
        real q = k.q[feature * stride + row], x = mu[row], y = mu[rows + row], z = mu[2 * rows + row];
        for (int e = 1; e < w.n; ++e) {
            int other;
            real sign;
            int p = pair_of(w.n, false, row, e, &other, &sign);
            real r = sign * along[p] * xr[other], c = to_mu[p] * xm[other];
            q = multiply_add(to_q[p], xq[other], q);
            x = multiply_add(r, w.geometry[p], multiply_add(c, mu[other], x));
            y = multiply_add(r, w.geometry[w.pair_stride + p], multiply_add(c, mu[rows + other], y));
            z = multiply_add(r, w.geometry[2 * w.pair_stride + p], multiply_add(c, mu[2 * rows + other], z));
        }
        k.cat[feature * stride + row] = q;
        real* middle = k.middle + feature * vectors;
        middle[row] = x;
        middle[rows + row] = y;
        middle[2 * rows + row] = z;
    }
    sync();
}

// Gradients of what neighbours sent into w.ga, and of vectors before into w.gmu_in: an atom gathers them from those it sent to.
FUNCTION void messages_back(const Team& team, const Model& m, const Work& w, const Kept& k) {
    int rows = w.rows, stride = w.stride, vectors = vectors_of(w), f = m.wide;
    EACH(t, f * rows) {
        int feature = t / rows, row = t - feature * rows;
        const real *to_q = w.filter + feature * w.pair_stride, *along = to_q + f * w.pair_stride, *to_mu = along + f * w.pair_stride;
        const real *gq = w.gq + feature * stride, *g = w.gmu + feature * vectors, *mu = k.mu + feature * vectors;
        real mine = k.x[(2 * f + feature) * stride + row], mx = mu[row], my = mu[rows + row], mz = mu[2 * rows + row];
        real xq = 0, xr = 0, xm = 0, x = g[row], y = g[rows + row], z = g[2 * rows + row];
        for (int e = 1; e < w.n; ++e) {
            int other;
            real sign;
            int p = pair_of(w.n, false, row, e, &other, &sign);
            real gx = g[other], gy = g[rows + other], gz = g[2 * rows + other];
            const real* u = w.geometry + p;
            real onto = multiply_add(gx, u[0], multiply_add(gy, u[w.pair_stride], gz * u[2 * w.pair_stride]));
            xq = multiply_add(to_q[p], gq[other], xq);
            // The direction is from the other atom to this one.
            xr = multiply_add(-sign * along[p], onto, xr);
            xm = multiply_add(to_mu[p], multiply_add(gx, mx, multiply_add(gy, my, gz * mz)), xm);
            real c = to_mu[p] * mine;
            x = multiply_add(c, gx, x);
            y = multiply_add(c, gy, y);
            z = multiply_add(c, gz, z);
        }
        w.ga[feature * stride + row] = xq;
        w.ga[(f + feature) * stride + row] = xr;
        w.ga[(2 * f + feature) * stride + row] = xm;
        real* in = w.gmu_in + feature * vectors;
        in[row] = x;
        in[rows + row] = y;
        in[2 * rows + row] = z;
    }
    sync();
}

// Adds the gradients of pairs' vectors, from the first atom to the second.
FUNCTION void pairs_back(const Team& team, const Model& m, const Work& w, const Kept& k) {
    int pairs = w.pairs, ps = w.pair_stride, rows = w.rows, stride = w.stride, vectors = vectors_of(w), f = m.wide;
    EACH(t, PARTS * pairs) {
        int part = t / pairs, p = t - part * pairs, i, j;
        ends_of(w.n, false, p, &i, &j);
        real ux = w.geometry[p], uy = w.geometry[ps + p], uz = w.geometry[2 * ps + p];
        real along = 0, tx = 0, ty = 0, tz = 0;
        for (int c = part * f / PARTS; c < (part + 1) * f / PARTS; ++c) {
            const real *gi = w.gmu + c * vectors + i, *gj = w.gmu + c * vectors + j;
            const real *mi = k.mu + c * vectors + i, *mj = k.mu + c * vectors + j;
            const real *x = k.x + c * stride, *slope = w.filter_slope + c * ps + p;
            real gix = gi[0], giy = gi[rows], giz = gi[2 * rows], gjx = gj[0], gjy = gj[rows], gjz = gj[2 * rows];
            real along_i = multiply_add(gix, ux, multiply_add(giy, uy, giz * uz));
            real along_j = -multiply_add(gjx, ux, multiply_add(gjy, uy, gjz * uz));
            real dot_i = multiply_add(gix, mj[0], multiply_add(giy, mj[rows], giz * mj[2 * rows]));
            real dot_j = multiply_add(gjx, mi[0], multiply_add(gjy, mi[rows], gjz * mi[2 * rows]));
            real xri = x[f * stride + i], xrj = x[f * stride + j];
            along = multiply_add(slope[0], multiply_add(x[j], w.gq[c * stride + i], x[i] * w.gq[c * stride + j]), along);
            along = multiply_add(slope[f * ps], multiply_add(xrj, along_i, xri * along_j), along);
            along = multiply_add(slope[2 * f * ps], multiply_add(x[2 * f * stride + j], dot_i, x[2 * f * stride + i] * dot_j), along);
            real filter = w.filter[(f + c) * ps + p], rj = filter * xrj, ri = -(filter * xri);
            tx = multiply_add(rj, gix, multiply_add(ri, gjx, tx));
            ty = multiply_add(rj, giy, multiply_add(ri, gjy, ty));
            tz = multiply_add(rj, giz, multiply_add(ri, gjz, tz));
        }
        real* to = w.parts + part * ps + p;
        to[0] = along;
        to[PARTS * ps] = tx;
        to[2 * PARTS * ps] = ty;
        to[3 * PARTS * ps] = tz;
    }
    sync();
    EACH(p, pairs) {
        real along = total(w.parts, ps, p), turn[3], radial = 0;
        for (int c = 0; c < 3; ++c) {
            turn[c] = total(w.parts + (c + 1) * PARTS * ps, ps, p);
            radial = multiply_add(w.geometry[c * ps + p], turn[c], radial);
        }
        // d = √(r² + ε), u = r/d: ∂d/∂r = u, ∂u/∂r = (1 − u uᵀ)/d.
        for (int c = 0; c < 3; ++c) {
            real u = w.geometry[c * ps + p], across = multiply_add(-radial, u, turn[c]);
            w.gradient[c * ps + p] += multiply_add(w.geometry[3 * ps + p], across, along * u);
        }
    }
    sync();
}

// ---- atoms ----------------------------------------------------------------------------------------------------------

// Behind the scalars of `cat`: lengths of V, of [V | W] of `width` features each.
DEVICE void lengths(const Team& team, const Model& m, const Work& w, int scalars, int width, const real* vw, real* cat) {
    int rows = w.rows, vectors = vectors_of(w);
    EACH(t, width * rows) {
        int feature = t / rows, row = t - feature * rows;
        const real* v = vw + feature * vectors + row;
        real square = multiply_add(v[0], v[0], multiply_add(v[rows], v[rows], multiply_add(v[2 * rows], v[2 * rows], m.norm_epsilon)));
        cat[(scalars + feature) * w.stride + row] = square_root(square);
    }
    sync();
}

// An interaction and a mixing, from k to q and mu of the next layer.
FUNCTION void layer_of(const Team& team, const Model& m, const Work& w, const Kept& k, const Kept& next, int layer) {
    int rows = w.rows, stride = w.stride, vectors = vectors_of(w), f = m.wide;
    product_in_global(SWISH, team, rows, f, f, part_of(m, layer, FIRST), part_of(m, layer, FIRST_BIAS), k.q, w.hidden, k.context);
    sync();
    product_in_global(SET, team, rows, f, 3 * f, part_of(m, layer, SECOND), part_of(m, layer, SECOND_BIAS), w.hidden, k.x, 0);
    filters(team, m, w, layer, w.weights, w.filter);
    messages(team, m, w, k);
    product_in_global(SET, team, 3 * rows, f, 2 * f, part_of(m, layer, MIX), 0, k.middle, k.vw, 0);
    sync();
    lengths(team, m, w, f, f, k.vw, k.cat);
    product_in_global(SWISH, team, rows, 2 * f, f, part_of(m, layer, UPDATE), part_of(m, layer, UPDATE_BIAS), k.cat, w.hidden, k.update);
    sync();
    product_in_global(SET, team, rows, f, 3 * f, part_of(m, layer, CHANGE), part_of(m, layer, CHANGE_BIAS), w.hidden, k.a, 0);
    sync();
    EACH(t, f * rows) {
        int feature = t / rows, row = t - feature * rows, at = feature * stride + row;
        const real *v = k.vw + feature * vectors + row, *u = v + f * vectors, *middle = k.middle + feature * vectors + row;
        real* out = next.mu + feature * vectors + row;
        real along = multiply_add(v[0], u[0], multiply_add(v[rows], u[rows], v[2 * rows] * u[2 * rows]));
        real change = k.a[f * stride + at];
        next.q[at] = multiply_add(k.a[2 * f * stride + at], along, k.cat[at] + k.a[at]);
        for (int c = 0; c < 3; ++c) out[c * rows] = multiply_add(change, u[c * rows], middle[c * rows]);
    }
    sync();
}

// The way back through a layer: w.gq and w.gmu become the gradients of what it began with.
FUNCTION void layer_back(const Team& team, const Model& m, Work& w, const Kept& k, int layer) {
    int rows = w.rows, stride = w.stride, vectors = vectors_of(w), f = m.wide;
    EACH(t, f * rows) {
        int feature = t / rows, row = t - feature * rows, at = feature * stride + row;
        const real *v = k.vw + feature * vectors + row, *u = v + f * vectors, *g = w.gmu + feature * vectors + row;
        real along = multiply_add(v[0], u[0], multiply_add(v[rows], u[rows], v[2 * rows] * u[2 * rows]));
        w.ga[at] = w.gq[at];
        w.ga[f * stride + at] = multiply_add(g[0], u[0], multiply_add(g[rows], u[rows], g[2 * rows] * u[2 * rows]));
        w.ga[2 * f * stride + at] = w.gq[at] * along;
    }
    sync();
    product_in_global(SCALE, team, rows, 3 * f, f, part_of(m, layer, CHANGE_BACK), 0, w.ga, w.gs, k.update);
    sync();
    product_in_global(SET, team, rows, f, 2 * f, part_of(m, layer, UPDATE_BACK), 0, w.gs, w.gcat, 0);
    sync();
    EACH(t, f * rows) {
        int feature = t / rows, row = t - feature * rows, at = feature * stride + row;
        const real *v = k.vw + feature * vectors + row, *u = v + f * vectors, *g = w.gmu + feature * vectors + row;
        real *gv = w.gvw + feature * vectors + row, *gu = gv + f * vectors;
        real along = w.gq[at] * k.a[2 * f * stride + at], change = k.a[f * stride + at];
        real length = w.gcat[f * stride + at] / k.cat[f * stride + at];
        for (int c = 0; c < 3; ++c) {
            gv[c * rows] = multiply_add(along, u[c * rows], length * v[c * rows]);
            gu[c * rows] = multiply_add(along, v[c * rows], change * g[c * rows]);
        }
        w.gq[at] += w.gcat[at];
    }
    sync();
    product_in_global(ADD, team, 3 * rows, 2 * f, f, part_of(m, layer, MIX_BACK), 0, w.gvw, w.gmu, 0);
    filters(team, m, w, layer, w.weights, w.filter);
    filters(team, m, w, layer, w.slopes, w.filter_slope);
    pairs_back(team, m, w, k);
    messages_back(team, m, w, k);
    product_in_global(SCALE, team, rows, 3 * f, f, part_of(m, layer, SECOND_BACK), 0, w.ga, w.gs, k.context);
    sync();
    product_in_global(ADD, team, rows, f, f, part_of(m, layer, FIRST_BACK), 0, w.gs, w.gq, 0);
    sync();
    real* before = w.gmu_in;
    w.gmu_in = w.gmu;
    w.gmu = before;
}

// ---- heads ----------------------------------------------------------------------------------------------------------

// Gated blocks, from scalars and vectors to one vector per atom in w.gmu. Their memory is that of gradients, which a network with
// vectors has none of.
FUNCTION void vectors_of_atoms(const Team& team, const Model& m, Work& w, const Kept& last) {
    int rows = w.rows, stride = w.stride, vectors = vectors_of(w);
    const real *q = last.q, *mu = last.mu;
    for (int b = 0; b < m.blocks; ++b) {
        const int* place = m.places + (m.layers + b) * PLACES;
        int n = place[INPUTS], width = place[OUTPUTS], reads = place[READS];
        product_in_global(SET, team, 3 * rows, n, 2 * width, m.weights + place[MIX], 0, mu, w.gvw, 0);
        EACH(t, n * stride) { w.gcat[t] = q[t]; }
        EACH(t, (reads - n - width) * stride) { w.gcat[(n + width) * stride + t] = 0; }
        sync();
        lengths(team, m, w, n, width, w.gvw, w.gcat);
        product_in_global(SWISH, team, rows, reads, n, m.weights + place[FIRST], m.weights + place[FIRST_BIAS], w.gcat, w.hidden, w.gs);
        sync();
        product_in_global(SET, team, rows, n, 2 * width, m.weights + place[SECOND], m.weights + place[SECOND_BIAS], w.hidden, w.ga, 0);
        sync();
        EACH(t, width * rows) {
            int feature = t / rows, row = t - feature * rows, at = feature * stride + row;
            const real* u = w.gvw + (width + feature) * vectors + row;
            real *out = w.gmu + feature * vectors + row, slope;
            w.gq[at] = swish(w.ga[at], &slope);
            for (int c = 0; c < 3; ++c) out[c * rows] = w.ga[width * stride + at] * u[c * rows];
        }
        sync();
        q = w.gq;
        mu = w.gmu;
    }
}

// An energy per atom, returned by the thread of each, and its gradients of scalars in w.gq and of vectors in w.gmu. Slopes of hidden
// layers are in w.gcat, values in w.hidden and w.ga by turns.
FUNCTION real energies_of_atoms(const Team& team, const Model& m, Work& w, const Kept& last) {
    int stride = w.stride;
    const real* in = last.q;
    real *slopes = w.gcat, *out = w.hidden;
    for (int b = 0; b < m.blocks; ++b) {
        const int* place = m.places + (m.layers + b) * PLACES;
        const real *weights = m.weights + place[SECOND], *bias = m.weights + place[SECOND_BIAS];
        out = b % 2 ? w.ga : w.hidden;
        if (b + 1 < m.blocks) product_in_global(SWISH, team, w.rows, place[INPUTS], place[OUTPUTS], weights, bias, in, out, slopes);
        else product_in_global(SET, team, w.rows, place[INPUTS], place[OUTPUTS], weights, bias, in, out, 0);
        sync();
        if (b + 1 < m.blocks) slopes += place[OUTPUTS] * stride;
        in = out;
    }
    real energy = team.lane < w.rows ? out[team.lane] : real(0);
    sync();
    real *g = w.hidden, *to = w.ga;
    EACH(t, m.places[(m.layers + m.blocks - 1) * PLACES + OUTPUTS] * stride) { g[t] = t < stride ? real(1) : real(0); }
    EACH(t, m.wide * vectors_of(w)) { w.gmu[t] = 0; }
    sync();
    for (int b = m.blocks - 1; b >= 0; --b) {
        const int* place = m.places + (m.layers + b) * PLACES;
        const real* weights = m.weights + place[SECOND_BACK];
        if (b > 0) {
            slopes -= place[INPUTS] * stride;
            product_in_global(SCALE, team, w.rows, place[OUTPUTS], place[INPUTS], weights, 0, g, to, slopes);
        } else {
            product_in_global(SET, team, w.rows, place[OUTPUTS], place[INPUTS], weights, 0, g, w.gq, 0);
        }
        sync();
        real* next = g;
        g = to;
        to = next;
    }
    return energy;
}

// ---- the whole network ----------------------------------------------------------------------------------------------

DEVICE Work work_of(const Model& m, const Team& team, int n, real* spill) {
    Work w;
    w.n = n;
    w.rows = team.count * n;
    w.stride = row_stride(w.rows);
    w.pairs = team.count * pairs_of(n, false);
    w.pair_stride = row_stride(w.pairs);
    int scalars = m.wide * w.stride, vectors = m.wide * vectors_of(w), ps = w.pair_stride;
    w.hidden = spill;
    w.gs = w.hidden + scalars;
    w.gq = w.gs + scalars;
    w.ga = w.gq + scalars;
    w.gcat = w.ga + 3 * scalars;
    w.gmu = w.gcat + 3 * scalars;
    w.gmu_in = w.gmu + vectors;
    w.gvw = w.gmu_in + vectors;
    w.geometry = w.gvw + 2 * vectors;
    w.gradient = w.geometry + 4 * ps;
    w.weights = w.gradient + 3 * ps;
    w.slopes = w.weights + STEP * ps;
    w.parts = w.slopes + STEP * ps;
    w.start = reinterpret_cast<int*>(w.parts + 4 * PARTS * ps);
    w.filter = w.parts + (4 * PARTS + 1) * ps;
    w.filter_slope = w.filter + 3 * m.wide * ps;
    return w;
}

FUNCTION real forces_of(const Model& m, const Team& team, int n, const real* x, real* f) {
    real* spill = m.spill + (u64)team.number * m.spill_size;
    Work w = work_of(m, team, n, spill);
    int rows = w.rows, stride = w.stride, vectors = vectors_of(w);
    // The layers' memory is behind: filters of pairs, and their slopes where there is a way back.
    real* kept = w.filter + (m.direct ? 3 : 6) * m.wide * w.pair_stride;
    geometry_of(team, m, w, x);
    Kept k = kept_of(m, w, kept, 0);
    EACH(t, m.wide * rows) {
        int feature = t / rows, row = t - feature * rows;
        k.q[feature * stride + row] = m.nodes[feature * n + row % n];
        for (int c = 0; c < 3; ++c) k.mu[feature * vectors + c * rows + row] = 0;
    }
    sync();
    for (int l = 0; l < m.layers; ++l) layer_of(team, m, w, kept_of(m, w, kept, l), kept_of(m, w, kept, l + 1), l);
    Kept last = kept_of(m, w, kept, m.layers);
    real energy = 0;
    if (m.direct) {
        vectors_of_atoms(team, m, w, last);
        // Molecules are not pushed as a whole.
        EACH(t, 3 * rows) {
            int row = t / 3, axis = t - 3 * row, base = row - row % n;
            const real* v = w.gmu + axis * rows;
            real sum = 0;
            for (int j = 0; j < n; ++j) sum += v[base + j];
            f[t] = m.force_unit * (v[row] - sum / real(n));
        }
        return 0;
    }
    energy = energies_of_atoms(team, m, w, last);
    for (int l = m.layers - 1; l >= 0; --l) layer_back(team, m, w, kept_of(m, w, kept, l), l);
    EACH(t, 3 * rows) {
        int row = t / 3, axis = t - 3 * row;
        const real* gradient = w.gradient + axis * w.pair_stride;
        real sum = 0;
        for (int e = 1; e < n; ++e) {
            int other;
            real sign;
            int p = pair_of(w.n, false, row, e, &other, &sign);
            sum = multiply_add(-sign, gradient[p], sum);
        }
        f[t] = -m.force_unit * sum;
    }
    return energy;
}

template <bool ENERGY>
DEVICE real forces(const Model& m, const Team& team, int n, const real* x, real* f, real* scratch) {
    real energy = forces_of(m, team, n, x, f);
    return ENERGY ? m.energy_unit * energy : real(0);
}
