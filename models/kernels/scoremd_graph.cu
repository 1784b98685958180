// The graph transformer of a diffusion model at one time, after rows.cu: a row is a bead. Formulas and folded weights are those of
// fixed_time/fold.rs and graph.rs.
//
// Heads of the attention, and quarters of the hidden features, go one after the other through two products with h × h weights. In
// shared memory are the rows that products read and write; what the way back needs again is in the spill.

const int HEADS = 8, AXES = 3, SLOPES = AXES * HEADS, QUARTERS = 4;

struct alignas(8) Model {
    const real* weights;
    // Where a layer's parts begin among the weights: PLACES numbers per layer.
    const int* places;
    // Features before the first layer [h, N]; logits of the first layer [N, 8, N] and their slopes [N, 8, 3].
    const real *nodes, *logits, *slopes;
    real* spill;
    int spill_size;
    // Features, and how many of them are not padding.
    int layers, wide, features, potential;
    // c, kT c and kT.
    real scale, force_unit, energy_unit;
};

// Weights are [inputs, outputs]; BACK are their transposes. Of every head or quarter there is a block, one after the other.
enum Place {
    GATE_NEW, GATE_OLD, FIRST, FIRST_BIAS, FIRST_BACK,
    // Of a whole feed-forward layer: weights, bias, transposes and gate. Of one contracted to the energy: what hidden features
    // mean for energy and gate, the constants of both, the decoder, and what old features mean for the gate.
    SECOND, SECOND_BIAS, SECOND_BACK, SECOND_GATE_NEW, SECOND_GATE_OLD,
    ENERGY_HIDDEN = SECOND, GATE_HIDDEN, CONSTANTS, DECODER, ENERGY_OLD,
    // Of the first layer OUT and OUT_BACK alone, for weights [8 N] and displacements [24] together; of the last, where it has
    // one, the layer of the score [N h, 3 N] and its bias.
    LOGITS, LOGITS_BIAS, LOGITS_BACK, LOGIT_SLOPES, LOGIT_SLOPES_BIAS, LOGIT_SLOPES_BACK,
    OUT, OUT_BIAS, OUT_BACK, OUT_SHIFTS, OUT_SHIFTS_BACK, SCORE, SCORE_BIAS,
    PLACES
};

// A team's rows, in shared memory.
struct Work {
    int n, rows, stride;
    // Normalised features; two rows for products in between, one behind the other; what is new before a gate; gradients of
    // normalised features.
    real *unit, *one, *two, *fresh, *gradient;
    // Per head three numbers: mean displacements or their gradients, slopes of logits or their gradients.
    real *shift, *slope;
    // Of one head: weights and gradients of logits over the beads.
    real *weights, *back;
    // Coordinates and ∂E/∂x; energies; parts of three sums.
    real *at, *force, *energy, *parts;
};

// What a layer leaves for the way back.
struct Kept {
    real *after, *middle, *fresh[2], *unit[2], *hidden, *logits, *slope, *weights, *inverse[2], *gate[2];
};

DEVICE const real* part_of(const Model& m, int layer, Place place) { return m.weights + m.places[layer * PLACES + place]; }

DEVICE Kept kept_of(const Model& m, const Work& w, real* spill, int layer) {
    int block = m.wide * w.stride;
    Kept k;
    real* at = spill + layer * ((6 + QUARTERS + HEADS) * block + (SLOPES + HEADS * w.n + 4) * w.stride);
    k.after = at;
    k.middle = k.after + block;
    k.fresh[0] = k.middle + block;
    k.fresh[1] = k.fresh[0] + block;
    k.unit[0] = k.fresh[1] + block;
    k.unit[1] = k.unit[0] + block;
    k.hidden = k.unit[1] + block;
    k.logits = k.hidden + QUARTERS * block;
    k.slope = k.logits + HEADS * block;
    k.weights = k.slope + SLOPES * w.stride;
    k.inverse[0] = k.weights + HEADS * w.n * w.stride;
    k.inverse[1] = k.inverse[0] + w.stride;
    k.gate[0] = k.inverse[1] + w.stride;
    k.gate[1] = k.gate[0] + w.stride;
    return k;
}

// ---- gates and normalisation ----------------------------------------------------------------------------------------

// s a + (1 − s) r with s = σ(w_a · a + w_r · r). Old features are the same for all replicas where `beads` is not zero.
struct Gate {
    const real *by_new, *by_old;
    const real *fresh, *old;
    real* s;
    int old_stride, beads;
};

DEVICE const real* old_of(const Gate& g, int row) { return g.old + (g.beads ? row % g.beads : row); }

// The gate's result, and its normalisation without the affine part: (x − mean)/σ, which is kept twice, and 1/σ.
FUNCTION void gate_and_normalise(const Team& team, const Model& m, const Work& w, const Gate& g, real* result, real* kept, real* inverse) {
    int rows = w.rows, stride = w.stride;
    real *sums = w.parts, *squares = sums + PARTS * stride;
    EACH_PART(part, row, begin, end, m.wide) {
        const real* old = old_of(g, row);
        real sum = 0;
        for (int k = begin; k < end; ++k) {
            sum = multiply_add(g.by_new[k], g.fresh[k * stride + row], multiply_add(g.by_old[k], old[k * g.old_stride], sum));
        }
        sums[part * stride + row] = sum;
    }
    sync();
    EACH_PART(part, row, begin, end, m.wide) {
        const real* old = old_of(g, row);
        real s = sigmoid(total(sums, stride, row)), sum = 0;
        if (part == 0) g.s[row] = s;
        for (int k = begin; k < end; ++k) {
            real r = old[k * g.old_stride], x = multiply_add(s, g.fresh[k * stride + row] - r, r);
            result[k * stride + row] = x;
            w.unit[k * stride + row] = x;
            sum += x;
        }
        squares[part * stride + row] = sum;
    }
    sync();
    real* deviations = sums;
    EACH_PART(part, row, begin, end, m.wide) {
        real mean = total(squares, stride, row) / real(m.features), sum = 0;
        for (int k = begin; k < end && k < m.features; ++k) {
            real x = w.unit[k * stride + row] - mean;
            w.unit[k * stride + row] = x;
            sum = multiply_add(x, x, sum);
        }
        deviations[part * stride + row] = sum;
    }
    sync();
    EACH_PART(part, row, begin, end, m.wide) {
        real i = real(1) / square_root(total(deviations, stride, row) / real(m.features) + real(1e-6));
        if (part == 0) inverse[row] = i;
        for (int k = begin; k < end; ++k) {
            real x = w.unit[k * stride + row] * i;
            w.unit[k * stride + row] = x;
            kept[k * stride + row] = x;
        }
    }
    sync();
}

// Adds to `g` the gradient that goes through a normalisation, from that of its result in w.gradient.
FUNCTION void normalise_back(const Team& team, const Model& m, const Work& w, const real* unit, const real* inverse, real* g) {
    int rows = w.rows, stride = w.stride;
    EACH_PART(part, row, begin, end, m.wide) {
        real sum = 0;
        for (int k = begin; k < end; ++k) sum = multiply_add(w.gradient[k * stride + row], unit[k * stride + row], sum);
        w.parts[part * stride + row] = sum;
    }
    sync();
    EACH_PART(part, row, begin, end, m.wide) {
        real along = total(w.parts, stride, row) / real(-m.features), i = inverse[row];
        for (int k = begin; k < end; ++k) {
            int at = k * stride + row;
            g[at] = multiply_add(i, multiply_add(along, unit[at], w.gradient[at]), g[at]);
        }
    }
    sync();
}

// From the gradient `g` of a gate's result that of what is new, into w.fresh; `g` becomes that of what is old.
FUNCTION void gate_back(const Team& team, const Model& m, const Work& w, const Gate& gate, real* g) {
    int rows = w.rows, stride = w.stride;
    EACH_PART(part, row, begin, end, m.wide) {
        const real* old = old_of(gate, row);
        real sum = 0;
        for (int k = begin; k < end; ++k) {
            sum = multiply_add(gate.fresh[k * stride + row] - old[k * gate.old_stride], g[k * stride + row], sum);
        }
        w.parts[part * stride + row] = sum;
    }
    sync();
    EACH_PART(part, row, begin, end, m.wide) {
        real s = gate.s[row], rest = real(1) - s, slope = total(w.parts, stride, row) * s * rest;
        for (int k = begin; k < end; ++k) {
            int at = k * stride + row;
            w.fresh[at] = multiply_add(slope, gate.by_new[k], s * g[at]);
            g[at] = multiply_add(slope, gate.by_old[k], rest * g[at]);
        }
    }
    sync();
}

// ---- attention ------------------------------------------------------------------------------------------------------

// Σ_j weight_j x_j − x_i of one head, for a row whose weights are at `weights` with w.stride between them.
FUNCTION void displace(const Work& w, int row, const real* weights, real* to) {
    int base = row - row % w.n;
    for (int axis = 0; axis < AXES; ++axis) {
        const real* x = w.at + axis * w.stride;
        real sum = 0;
        for (int j = 0; j < w.n; ++j) sum = multiply_add(weights[j * w.stride + row], x[base + j], sum);
        to[axis * w.stride + row] = sum - x[row];
    }
}

// Softmax over the beads of a row's logits.
FUNCTION void softmax(const Work& w, int row, real* logits) {
    real most = logits[row], sum = 0;
    for (int j = 1; j < w.n; ++j) most = larger(most, logits[j * w.stride + row]);
    for (int j = 0; j < w.n; ++j) {
        real e = exponential(logits[j * w.stride + row] - most);
        logits[j * w.stride + row] = e;
        sum += e;
    }
    real inverse = real(1) / sum;
    for (int j = 0; j < w.n; ++j) logits[j * w.stride + row] *= inverse;
}

// From gradients of a row's weights those of its logits.
FUNCTION void softmax_back(const Work& w, int row, const real* weights, real* g) {
    real mean = 0;
    for (int j = 0; j < w.n; ++j) mean = multiply_add(weights[j * w.stride + row], g[j * w.stride + row], mean);
    for (int j = 0; j < w.n; ++j) g[j * w.stride + row] = weights[j * w.stride + row] * (g[j * w.stride + row] - mean);
}

// Attention of the first layer: weights and displacements of all heads, as rows behind w.one, to w.fresh.
FUNCTION void first_attention(const Team& team, const Model& m, const Work& w, const Kept& kept) {
    int n = w.n, stride = w.stride;
    EACH(t, HEADS * w.rows) {
        int head = t / w.rows, row = t - head * w.rows, bead = row % n, base = row - bead;
        const real *start = m.logits + (bead * HEADS + head) * n, *slope = m.slopes + (bead * HEADS + head) * AXES;
        real* logits = w.one + head * n * stride;
        for (int j = 0; j < n; ++j) {
            real x = w.at[base + j], y = w.at[stride + base + j], z = w.at[2 * stride + base + j];
            logits[j * stride + row] = multiply_add(slope[0], x, multiply_add(slope[1], y, multiply_add(slope[2], z, start[j])));
        }
        softmax(w, row, logits);
        for (int j = 0; j < n; ++j) kept.weights[(head * n + j) * stride + row] = logits[j * stride + row];
        displace(w, row, logits, w.one + (HEADS * n + AXES * head) * stride);
    }
    sync();
    product(SET, team, w.rows, HEADS * n + SLOPES, m.wide, part_of(m, 0, OUT), part_of(m, 0, OUT_BIAS), w.one, w.fresh, 0);
    sync();
}

// The way back to the coordinates, from the gradient of the attention's result in w.fresh.
FUNCTION void first_attention_back(const Team& team, const Model& m, const Work& w, const Kept& kept) {
    int n = w.n, stride = w.stride;
    product(SET, team, w.rows, m.wide, HEADS * n + SLOPES, part_of(m, 0, OUT_BACK), 0, w.fresh, w.one, 0);
    sync();
    const real* shift = w.one + HEADS * n * stride;
    EACH(t, HEADS * w.rows) {
        int head = t / w.rows, row = t - head * w.rows, base = row - row % n;
        const real* d = shift + AXES * head * stride + row;
        real* g = w.one + head * n * stride;
        for (int j = 0; j < n; ++j) {
            real x = w.at[base + j], y = w.at[stride + base + j], z = w.at[2 * stride + base + j];
            g[j * stride + row] = multiply_add(d[0], x, multiply_add(d[stride], y, multiply_add(d[2 * stride], z, g[j * stride + row])));
        }
        softmax_back(w, row, kept.weights + head * n * stride, g);
    }
    sync();
    EACH(t, AXES * w.rows) {
        int axis = t / w.rows, row = t - axis * w.rows, bead = row % n, base = row - bead;
        real sum = w.force[axis * stride + row];
        for (int head = 0; head < HEADS; ++head) {
            const real *d = shift + (AXES * head + axis) * stride, *g = w.one + (head * n + bead) * stride;
            const real* weights = kept.weights + (head * n + bead) * stride;
            for (int i = 0; i < n; ++i) {
                sum = multiply_add(weights[base + i], d[base + i], sum);
                sum = multiply_add(g[base + i], m.slopes[(i * HEADS + head) * AXES + axis], sum);
            }
            sum -= d[row];
        }
        w.force[axis * stride + row] = sum;
    }
    sync();
}

// Beads that a thread multiplies one row with, and features that it takes means of.
const int BEADS = 4, FEATURES = 4;

// to[j] of each row: Σ_f a[f] u_j[f] + s · x_j, for all beads j of the row's replica.
FUNCTION void dots(const Team& team, const Model& m, const Work& w, const real* a, const real* s, real* to) {
    int n = w.n, stride = w.stride;
    const real *at = w.at, *units = w.unit;
    IS_SHARED(a);
    IS_SHARED(s);
    IS_SHARED(to);
    IS_SHARED(at);
    IS_SHARED(units);
    EACH(t, (n + BEADS - 1) / BEADS * w.rows) {
        int tile = t / w.rows, row = t - tile * w.rows, base = row - row % n, first = tile * BEADS;
        real sums[BEADS];
        const real* unit[BEADS];
#pragma unroll
        for (int b = 0; b < BEADS; ++b) {
            int j = base + (first + b < n ? first + b : n - 1);
            const real *x = at + j, *slope = s + row;
            sums[b] = multiply_add(slope[0], x[0], multiply_add(slope[stride], x[stride], slope[2 * stride] * x[2 * stride]));
            unit[b] = units + j;
        }
#pragma unroll 4
        for (int k = 0; k < m.features; ++k) {
            real factor = a[k * stride + row];
#pragma unroll
            for (int b = 0; b < BEADS; ++b) sums[b] = multiply_add(factor, unit[b][k * stride], sums[b]);
        }
#pragma unroll
        for (int b = 0; b < BEADS; ++b) {
            if (first + b < n) to[(first + b) * stride + row] = sums[b];
        }
    }
    sync();
}

// to[f] of each row: Σ_j weights[j] u_j[f].
FUNCTION void means(const Team& team, const Model& m, const Work& w, const real* weights, real* to) {
    int n = w.n, stride = w.stride;
    const real* units = w.unit;
    IS_SHARED(weights);
    IS_SHARED(to);
    IS_SHARED(units);
    EACH(t, m.wide / FEATURES * w.rows) {
        int tile = t / w.rows, row = t - tile * w.rows, base = row - row % n, first = tile * FEATURES;
        real sums[FEATURES] = {0, 0, 0, 0};
        const real* unit = units + first * stride + base;
        for (int j = 0; j < n; ++j) {
            real weight = weights[j * stride + row];
#pragma unroll
            for (int k = 0; k < FEATURES; ++k) sums[k] = multiply_add(weight, unit[k * stride + j], sums[k]);
        }
#pragma unroll
        for (int k = 0; k < FEATURES; ++k) to[(first + k) * stride + row] = sums[k];
    }
    sync();
}

// Adds to the gradient of each bead's features what the rows of its replica have to do with them: weights times gradients of means
// in w.one, gradients of logits times logits in w.two.
FUNCTION void spread(const Team& team, const Model& m, const Work& w) {
    int n = w.n, stride = w.stride;
    const real *weights = w.weights, *backs = w.back, *means = w.one, *logits = w.two;
    real* gradient = w.gradient;
    IS_SHARED(weights);
    IS_SHARED(backs);
    IS_SHARED(means);
    IS_SHARED(logits);
    IS_SHARED(gradient);
    EACH(t, m.wide / FEATURES * w.rows) {
        int tile = t / w.rows, row = t - tile * w.rows, bead = row % n, base = row - bead, first = tile * FEATURES * stride;
        const real *weight = weights + bead * stride + base, *back = backs + bead * stride + base;
        const real *mean = means + first + base, *logit = logits + first + base;
        real *g = gradient + first + row, sums[FEATURES];
#pragma unroll
        for (int k = 0; k < FEATURES; ++k) sums[k] = g[k * stride];
        for (int i = 0; i < n; ++i) {
            real a = weight[i], b = back[i];
#pragma unroll
            for (int k = 0; k < FEATURES; ++k) {
                sums[k] = multiply_add(b, logit[k * stride + i], multiply_add(a, mean[k * stride + i], sums[k]));
            }
        }
#pragma unroll
        for (int k = 0; k < FEATURES; ++k) g[k * stride] = sums[k];
    }
}

// Attention of a later layer, from w.unit to w.fresh.
FUNCTION void attention(const Team& team, const Model& m, const Work& w, const Kept& kept, int layer) {
    int n = w.n, stride = w.stride, h = m.features, block = h * m.wide;
    product(KEEP, team, w.rows, h, SLOPES, part_of(m, layer, LOGIT_SLOPES), part_of(m, layer, LOGIT_SLOPES_BIAS), w.unit, w.slope, kept.slope);
    for (int head = 0; head < HEADS; ++head) {
        product(KEEP, team, w.rows, h, m.wide, part_of(m, layer, LOGITS) + head * block, part_of(m, layer, LOGITS_BIAS) + head * m.wide,
                      w.unit, w.one, kept.logits + head * m.wide * stride);
        sync();
        dots(team, m, w, w.one, w.slope + AXES * head * stride, w.weights);
        EACH(row, w.rows) {
            softmax(w, row, w.weights);
            for (int j = 0; j < n; ++j) kept.weights[(head * n + j) * stride + row] = w.weights[j * stride + row];
            displace(w, row, w.weights, w.shift + AXES * head * stride);
        }
        sync();
        means(team, m, w, w.weights, w.two);
        const real* out = part_of(m, layer, OUT) + head * block;
        if (head == 0) product(SET, team, w.rows, h, m.wide, out, part_of(m, layer, OUT_BIAS), w.two, w.fresh, 0);
        else product(ADD, team, w.rows, h, m.wide, out, 0, w.two, w.fresh, 0);
    }
    product(ADD, team, w.rows, SLOPES, m.wide, part_of(m, layer, OUT_SHIFTS), 0, w.shift, w.fresh, 0);
    sync();
}

// The way back: from the gradient of the attention's result in w.fresh to that of w.unit in w.gradient, and to the coordinates.
FUNCTION void attention_back(const Team& team, const Model& m, const Work& w, const Kept& kept, int layer) {
    int n = w.n, stride = w.stride, h = m.features, block = h * m.wide;
    EACH(k, m.wide * stride) {
        w.unit[k] = kept.unit[0][k];
        w.gradient[k] = 0;
    }
    product(SET, team, w.rows, h, SLOPES, part_of(m, layer, OUT_SHIFTS_BACK), 0, w.fresh, w.shift, 0);
    for (int head = 0; head < HEADS; ++head) {
        product(SET, team, w.rows, h, m.wide, part_of(m, layer, OUT_BACK) + head * block, 0, w.fresh, w.one, 0);
        sync();
        dots(team, m, w, w.one, w.shift + AXES * head * stride, w.back);
        const real* logits = kept.logits + head * m.wide * stride;
        EACH(k, m.wide * stride) { w.two[k] = logits[k]; }
        EACH(row, w.rows) {
            for (int j = 0; j < n; ++j) w.weights[j * stride + row] = kept.weights[(head * n + j) * stride + row];
            softmax_back(w, row, w.weights, w.back);
            // Slopes of logits: Σ_j ∂E/∂logit_j x_j, with no displacement, because a constant is no matter in a softmax.
            for (int axis = 0; axis < AXES; ++axis) {
                const real* x = w.at + axis * stride + row - row % n;
                real sum = 0;
                for (int j = 0; j < n; ++j) sum = multiply_add(w.back[j * stride + row], x[j], sum);
                w.slope[(AXES * head + axis) * stride + row] = sum;
            }
        }
        sync();
        spread(team, m, w);
        EACH(t, AXES * w.rows) {
            int axis = t / w.rows, row = t - axis * w.rows, bead = row % n, base = row - bead, at = AXES * head + axis;
            const real *d = w.shift + at * stride, *slope = kept.slope + at * stride;
            real sum = w.force[axis * stride + row];
            for (int i = base; i < base + n; ++i) {
                sum = multiply_add(w.weights[bead * stride + i], d[i], sum);
                sum = multiply_add(w.back[bead * stride + i], slope[i], sum);
            }
            w.force[axis * stride + row] = sum - d[row];
        }
        sync();
        means(team, m, w, w.back, w.two);
        product(ADD, team, w.rows, h, m.wide, part_of(m, layer, LOGITS_BACK) + head * block, 0, w.two, w.gradient, 0);
    }
    product(ADD, team, w.rows, SLOPES, m.wide, part_of(m, layer, LOGIT_SLOPES_BACK), 0, w.slope, w.gradient, 0);
    sync();
}

// ---- feed-forward layers --------------------------------------------------------------------------------------------

// Hidden features from w.unit, quarter by quarter, to what is new; slopes are kept.
FUNCTION void feed_forward(const Team& team, const Model& m, const Work& w, const Kept& kept, int layer) {
    int h = m.features, block = h * m.wide;
    for (int q = 0; q < QUARTERS; ++q) {
        real* hidden = q % 2 ? w.two : w.one;
        product(GELU, team, w.rows, h, m.wide, part_of(m, layer, FIRST) + q * block, part_of(m, layer, FIRST_BIAS) + q * m.wide, w.unit,
                      hidden, kept.hidden + q * m.wide * w.stride);
        sync();
        const real* second = part_of(m, layer, SECOND) + q * block;
        if (q == 0) product(SET, team, w.rows, h, m.wide, second, part_of(m, layer, SECOND_BIAS), hidden, w.fresh, 0);
        else product(ADD, team, w.rows, h, m.wide, second, 0, hidden, w.fresh, 0);
    }
    sync();
}

// The same contracted to the energy of each bead; `g` becomes the gradient of features before, and gradients of hidden features
// take the place of their slopes.
FUNCTION void energies(const Team& team, const Model& m, const Work& w, const Kept& kept, int layer, real* g) {
    int rows = w.rows, stride = w.stride, h = m.features;
    real *by_hidden = w.parts, *by_gate = by_hidden + PARTS * stride, *by_old = by_gate + PARTS * stride;
    const real *to_energy = part_of(m, layer, ENERGY_HIDDEN), *to_gate = part_of(m, layer, GATE_HIDDEN);
    const real *decoder = part_of(m, layer, DECODER), *old_gate = part_of(m, layer, ENERGY_OLD), *constants = part_of(m, layer, CONSTANTS);
    EACH_PART(part, row, begin, end, m.wide) {
        real gate = 0, old = 0;
        for (int k = begin; k < end; ++k) {
            real x = kept.middle[k * stride + row];
            gate = multiply_add(old_gate[k], x, gate);
            old = multiply_add(decoder[k], x, old);
        }
        by_hidden[part * stride + row] = 0;
        by_gate[part * stride + row] = gate;
        by_old[part * stride + row] = old;
    }
    for (int q = 0; q < QUARTERS; ++q) {
        real* hidden = q % 2 ? w.two : w.one;
        product(GELU, team, rows, h, m.wide, part_of(m, layer, FIRST) + q * h * m.wide, part_of(m, layer, FIRST_BIAS) + q * m.wide, w.unit,
                      hidden, kept.hidden + q * m.wide * stride);
        sync();
        EACH_PART(part, row, begin, end, m.wide) {
            real energy = by_hidden[part * stride + row], gate = by_gate[part * stride + row];
            for (int k = begin; k < end; ++k) {
                real value = hidden[k * stride + row];
                energy = multiply_add(value, to_energy[q * m.wide + k], energy);
                gate = multiply_add(value, to_gate[q * m.wide + k], gate);
            }
            by_hidden[part * stride + row] = energy;
            by_gate[part * stride + row] = gate;
        }
    }
    sync();
    EACH_PART(part, row, begin, end, m.wide) {
        real f = total(by_hidden, stride, row) + constants[0], r = total(by_old, stride, row);
        real s = sigmoid(total(by_gate, stride, row) + constants[1]), rest = real(1) - s, along = s * rest * (f - r);
        if (part == 0) w.energy[row] = multiply_add(s, f, rest * r);
        for (int k = begin; k < end; ++k) {
            g[k * stride + row] = multiply_add(rest, decoder[k], along * old_gate[k]);
            for (int q = 0; q < QUARTERS; ++q) {
                real factor = multiply_add(s, to_energy[q * m.wide + k], along * to_gate[q * m.wide + k]);
                kept.hidden[(q * m.wide + k) * stride + row] *= factor;
            }
        }
    }
    sync();
}

// From gradients in w.fresh, or of hidden features where these are kept, to that of the normalised features in w.gradient.
FUNCTION void feed_forward_back(const Team& team, const Model& m, const Work& w, const Kept& kept, int layer, bool hidden_are_kept) {
    int h = m.features, block = h * m.wide;
    for (int q = 0; q < QUARTERS; ++q) {
        real *hidden = q % 2 ? w.two : w.one, *slopes = kept.hidden + q * m.wide * w.stride;
        if (hidden_are_kept) EACH(k, m.wide * w.stride) { hidden[k] = slopes[k]; }
        else product(SCALE, team, w.rows, h, m.wide, part_of(m, layer, SECOND_BACK) + q * block, 0, w.fresh, hidden, slopes);
        sync();
        const real* first = part_of(m, layer, FIRST_BACK) + q * block;
        if (q == 0) product(SET, team, w.rows, h, m.wide, first, 0, hidden, w.gradient, 0);
        else product(ADD, team, w.rows, h, m.wide, first, 0, hidden, w.gradient, 0);
    }
    sync();
}

// ---- the whole network ----------------------------------------------------------------------------------------------

DEVICE Gate gate_of(const Model& m, const Work& w, const Kept& kept, const real* old, int layer, int half) {
    Gate g;
    g.by_new = part_of(m, layer, half ? SECOND_GATE_NEW : GATE_NEW);
    g.by_old = part_of(m, layer, half ? SECOND_GATE_OLD : GATE_OLD);
    g.fresh = kept.fresh[half];
    g.s = kept.gate[half];
    g.beads = half == 0 && layer == 0 ? w.n : 0;
    g.old = half ? kept.middle : layer ? old : m.nodes;
    g.old_stride = g.beads ? w.n : w.stride;
    return g;
}

DEVICE Work work_of(const Model& m, const Team& team, int n, real* scratch) {
    Work w;
    w.n = n;
    w.rows = team.count * n;
    w.stride = row_stride(w.rows);
    int block = m.wide * w.stride, both = 2 * m.wide > HEADS * n + SLOPES ? 2 * m.wide : HEADS * n + SLOPES;
    w.unit = scratch;
    w.fresh = w.unit + block;
    w.gradient = w.fresh + block;
    w.one = w.gradient + block;
    w.two = w.one + block;
    w.shift = w.one + both * w.stride;
    w.slope = w.shift + SLOPES * w.stride;
    w.weights = w.slope + SLOPES * w.stride;
    w.back = w.weights + n * w.stride;
    w.at = w.back + n * w.stride;
    w.force = w.at + AXES * w.stride;
    w.energy = w.force + AXES * w.stride;
    w.parts = w.energy + w.stride;
    return w;
}

// A gate of what is new in w.fresh, which the way back finds again in what is kept: far behind the next barrier.
DEVICE Gate gate_ahead(const Team& team, const Model& m, const Work& w, const Kept& kept, const real* old, int layer, int half) {
    EACH(k, m.wide * w.stride) { kept.fresh[half][k] = w.fresh[k]; }
    Gate gate = gate_of(m, w, kept, old, layer, half);
    gate.fresh = w.fresh;
    return gate;
}

// Forces of the rows; afterwards energies are in w.energy.
FUNCTION void forces_of(const Model& m, const Team& team, int n, const real* x, real* f, real* scratch) {
    Work w = work_of(m, team, n, scratch);
    int rows = w.rows, stride = w.stride;
    real* spill = m.spill + (u64)team.number * m.spill_size;
    real* g = spill + m.spill_size - m.wide * stride;
    // Coordinates relative to the centre, by way of the first bead: far from the origin no digit is lost.
    EACH(row, rows) {
        int bead = row % n;
        const real* at = x + 3 * (row - bead);
        for (int axis = 0; axis < AXES; ++axis) {
            real sum = 0;
            for (int j = 1; j < n; ++j) sum += at[3 * j + axis] - at[axis];
            w.at[axis * stride + row] = m.scale * (at[3 * bead + axis] - at[axis] - sum / real(n));
            w.force[axis * stride + row] = 0;
        }
    }
    sync();
    for (int l = 0; l < m.layers; ++l) {
        Kept kept = kept_of(m, w, spill, l);
        if (l == 0) first_attention(team, m, w, kept);
        else attention(team, m, w, kept, l);
        Gate gate = gate_ahead(team, m, w, kept, l ? kept_of(m, w, spill, l - 1).after : 0, l, 0);
        gate_and_normalise(team, m, w, gate, kept.middle, kept.unit[1], kept.inverse[1]);
        if (m.potential && l + 1 == m.layers) {
            energies(team, m, w, kept, l, g);
        } else {
            feed_forward(team, m, w, kept, l);
            // The normalised features are the next layer's; behind the last they are of no use, and do no harm.
            Kept next = kept_of(m, w, spill, l + 1 < m.layers ? l + 1 : l);
            gate_and_normalise(team, m, w, gate_ahead(team, m, w, kept, 0, l, 1), kept.after, next.unit[0], next.inverse[0]);
        }
    }
    if (!m.potential) {
        const real *weights = part_of(m, m.layers - 1, SCORE), *bias = part_of(m, m.layers - 1, SCORE_BIAS);
        const real* nodes = kept_of(m, w, spill, m.layers - 1).after;
        EACH(t, 3 * rows) {
            int out = t % (3 * n), base = t / (3 * n) * n;
            real sum = bias[out];
            for (int j = 0; j < n; ++j) {
                for (int k = 0; k < m.features; ++k) {
                    sum = multiply_add(weights[(j * m.features + k) * 3 * n + out], nodes[k * stride + base + j], sum);
                }
            }
            f[t] = m.force_unit * sum;
        }
        return;
    }
    for (int l = m.layers - 1; l >= 0; --l) {
        Kept kept = kept_of(m, w, spill, l);
        bool last = l + 1 == m.layers;
        if (!last) gate_back(team, m, w, gate_of(m, w, kept, 0, l, 1), g);
        feed_forward_back(team, m, w, kept, l, last);
        normalise_back(team, m, w, kept.unit[1], kept.inverse[1], g);
        gate_back(team, m, w, gate_of(m, w, kept, l ? kept_of(m, w, spill, l - 1).after : 0, l, 0), g);
        if (l == 0) {
            first_attention_back(team, m, w, kept);
        } else {
            attention_back(team, m, w, kept, l);
            normalise_back(team, m, w, kept.unit[0], kept.inverse[0], g);
        }
    }
    EACH(k, 3 * rows) { f[k] = -m.force_unit * w.force[k % 3 * stride + k / 3]; }
}

template <bool ENERGY>
DEVICE real forces(const Model& m, const Team& team, int n, const real* x, real* f, real* scratch) {
    forces_of(m, team, n, x, f, scratch);
    bool mine = ENERGY && m.potential && team.lane < team.count * n;
    return mine ? m.energy_unit * work_of(m, team, n, scratch).energy[team.lane] : real(0);
}
