// DiTMC's aPE and rPE at a fixed time, after ditmc.cu. Formulas are those of ditmc/scalar.rs and ditmc/attention.rs.
//
// What a pair of atoms meets queries, keys and values with is a row of a table that the graph gives; rPE adds what its displacement d
// says, silu(d A) B. As silu(−z) = silu(z) − z, the other direction of a pair has silu(d A) B − d A B, which is three more
// multiply-adds: both directions share all products.

struct alignas(8) Model {
    const real* weights;
    // PLACES numbers per block, and those behind the blocks.
    const int* places;
    // Features before positions [F, n]; of each block six modulations [F, n], behind them two of the readout.
    const real *nodes, *modulation;
    // What queries and keys meet, and what values meet [blocks, 2, F, table_rows]; rows of pairs [n receivers, n senders].
    const real* table;
    const int* rows;
    real* spill;
    int spill_size;
    // Features, those between the layers of a block's perceptron, heads, and channels of a head.
    int blocks, wide, hidden, heads, width, table_rows, relative;
    // Å per nm times the time; kJ/mol/nm of one Å.
    real scale, force_unit;
};

// Weights [inputs, outputs] and biases of a block. The scale of logits is that of queries, and κ is with OUT. Of rPE PAIR has two
// matrices, for queries with keys and for values, TURN as many [F, 4] with what a turned pair has less.
enum Place {
    QKV, OUT, OUT_BIAS, FIRST, FIRST_BIAS, SECOND, SECOND_BIAS, PAIR, TURN, PLACES,
    // Behind the blocks; aPE alone has POSITION_OUT.
    POSITION = 0, POSITION_OUT, READOUT, READOUT_BIAS
};

// Modulations of a block, and of the readout behind them.
enum Column { SCALE_1, SHIFT_1, ALPHA_1, SCALE_2, SHIFT_2, ALPHA_2, COLUMNS };

// A team's memory, all of it in the spill.
struct Work {
    Atoms atoms;
    int pairs, pair_stride;
    // Coordinates and drifts [3]; features, their norm, what is added to them; queries, keys and values, or hidden features.
    real *at, *drift, *h, *x, *update, *broad;
    // Attention [heads, n − 1], parts of three sums.
    real *weights, *parts;
    // Of pairs: displacement [3], silu(d A), and what a block makes of it [F].
    real *displacement, *tokens, *met;
};

DEVICE Work work_of(const Model& m, const Team& team, int n) {
    Work w;
    w.atoms = atoms_of(team, n);
    w.pairs = m.relative ? team.count * pairs_of(n, false) : 0;
    w.pair_stride = row_stride(w.pairs);
    int s = w.atoms.stride, block = m.wide * s, broad = m.hidden > 3 * m.wide ? m.hidden : 3 * m.wide;
    w.at = m.spill + (u64)team.number * m.spill_size;
    w.drift = w.at + 3 * s;
    w.h = w.drift + 3 * s;
    w.x = w.h + block;
    w.update = w.x + block;
    w.broad = w.update + block;
    w.weights = w.broad + broad * s;
    w.parts = w.weights + m.heads * (n - 1) * s;
    w.displacement = w.parts + 3 * PARTS * s;
    w.tokens = w.displacement + 3 * w.pair_stride;
    w.met = w.tokens + m.wide * w.pair_stride;
    return w;
}

DEVICE const real* part_of(const Model& m, int block, Place place) { return m.weights + m.places[block * PLACES + place]; }

DEVICE const real* column_of(const Model& m, const Work& w, int block, Column column) {
    return m.modulation + (block * COLUMNS + column) * m.wide * w.atoms.n;
}

// ---- attention ------------------------------------------------------------------------------------------------------

// A row of the table, of one block and part, and a pair with what it adds.
struct Meeting {
    const real *table, *met, *turn;
    real d[3];
    int other;
    bool turned;
};

DEVICE Meeting meeting_of(const Model& m, const Work& w, int block, int part, int row, int e) {
    int n = w.atoms.n, i = row % n;
    Meeting k;
    real sign;
    int p = pair_of(n, false, row, e, &k.other, &sign);
    k.table = m.table + (2 * block + part) * m.wide * m.table_rows + m.rows[i * n + k.other - (row - i)];
    k.turned = m.relative && sign < real(0);
    k.met = w.met + p;
    k.turn = k.turned ? part_of(m, block, TURN) + part * 4 * m.wide : 0;
    for (int axis = 0; axis < 3; ++axis) k.d[axis] = k.turned ? w.displacement[axis * w.pair_stride + p] : real(0);
    return k;
}

DEVICE real met_by(const Model& m, const Work& w, const Meeting& k, int channel) {
    real value = k.table[channel * m.table_rows];
    if (!m.relative) return value;
    value += k.met[channel * w.pair_stride];
    if (!k.turned) return value;
    Four turn = four(k.turn + 4 * channel);
    return multiply_add(-turn.at[0], k.d[0], multiply_add(-turn.at[1], k.d[1], multiply_add(-turn.at[2], k.d[2], value)));
}

// What pairs add to the tables of a block.
DEVICE void meet(const Team& team, const Model& m, const Work& w, int block, int part) {
    if (!m.relative) return;
    const real* weights = part_of(m, block, PAIR) + part * m.wide * m.wide;
    product_in_global(SET, team, w.pairs, m.wide, m.wide, weights, 0, w.tokens, w.met, 0);
    sync();
}

// Σ q k R over the channels of every head, for all neighbours.
FUNCTION void logits(const Team& team, const Model& m, const Work& w, int block) {
    int rows = w.atoms.rows, stride = w.atoms.stride, others = w.atoms.n - 1;
    EACH(t, m.heads * others * rows) {
        int row = t % rows, e = t / rows % others + 1, head = t / (rows * others);
        Meeting k = meeting_of(m, w, block, 0, row, e);
        const real *query = w.broad + row, *key = w.broad + m.wide * stride + k.other;
        real sum = 0;
        for (int c = head; c < m.wide; c += m.heads) sum = multiply_add(query[c * stride] * key[c * stride], met_by(m, w, k, c), sum);
        w.weights[(head * others + e - 1) * stride + row] = sum;
    }
    sync();
}

// Σ w v U over neighbours, to w.x.
FUNCTION void messages(const Team& team, const Model& m, const Work& w, int block) {
    int rows = w.atoms.rows, stride = w.atoms.stride, others = w.atoms.n - 1;
    const real* values = w.broad + 2 * m.wide * stride;
    EACH(t, tiles_of(m.width) * m.heads * rows) {
        Channels c = channels_of(t, rows, m.heads, m.width);
        const real* weights = w.weights + c.head * others * stride + c.row;
        real sums[CHANNELS] = {0, 0, 0, 0};
        for (int e = 1; e <= others; ++e) {
            Meeting k = meeting_of(m, w, block, 1, c.row, e);
            real weight = weights[(e - 1) * stride];
#pragma unroll
            for (int s = 0; s < CHANNELS; ++s) {
                sums[s] = multiply_add(weight * values[c.at[s] * stride + k.other], met_by(m, w, k, c.at[s]), sums[s]);
            }
        }
#pragma unroll
        for (int s = 0; s < CHANNELS; ++s) {
            if (s < c.count) w.x[c.at[s] * stride + c.row] = sums[s];
        }
    }
    sync();
}

// ---- the whole network ----------------------------------------------------------------------------------------------

// From features and an update of the block before to features and the update of this one.
FUNCTION void block_of(const Team& team, const Model& m, const Work& w, int block) {
    int rows = w.atoms.rows, f = m.wide;
    const real* alpha = block ? column_of(m, w, block - 1, ALPHA_2) : 0;
    Modulation first = {alpha, column_of(m, w, block, SCALE_1), column_of(m, w, block, SHIFT_1)};
    gate_and_normalise(team, w.atoms, f, first, w.update, w.h, w.x, w.parts);
    product_in_global(SET, team, rows, f, 3 * f, part_of(m, block, QKV), 0, w.x, w.broad, 0);
    sync();
    meet(team, m, w, block, 0);
    logits(team, m, w, block);
    softmax(team, w.atoms, m.heads, w.weights);
    meet(team, m, w, block, 1);
    messages(team, m, w, block);
    product_in_global(SET, team, rows, f, f, part_of(m, block, OUT), part_of(m, block, OUT_BIAS), w.x, w.update, 0);
    sync();
    Modulation second = {column_of(m, w, block, ALPHA_1), column_of(m, w, block, SCALE_2), column_of(m, w, block, SHIFT_2)};
    gate_and_normalise(team, w.atoms, f, second, w.update, w.h, w.x, w.parts);
    product_in_global(GELU, team, rows, f, m.hidden, part_of(m, block, FIRST), part_of(m, block, FIRST_BIAS), w.x, w.broad, 0);
    sync();
    product_in_global(SET, team, rows, m.hidden, f, part_of(m, block, SECOND), part_of(m, block, SECOND_BIAS), w.broad, w.update, 0);
    sync();
}

// Three numbers of every atom from its normalised features.
FUNCTION void readout(const Team& team, const Model& m, const Work& w) {
    int rows = w.atoms.rows, stride = w.atoms.stride;
    const real *weights = part_of(m, m.blocks, READOUT), *bias = part_of(m, m.blocks, READOUT_BIAS);
    EACH_PART(part, row, begin, end, m.wide) {
        real sums[3] = {0, 0, 0};
        for (int k = begin; k < end; ++k) {
            real x = w.x[k * stride + row];
            Four to = four(weights + 4 * k);
            for (int axis = 0; axis < 3; ++axis) sums[axis] = multiply_add(x, to.at[axis], sums[axis]);
        }
        for (int axis = 0; axis < 3; ++axis) w.parts[(axis * PARTS + part) * stride + row] = sums[axis];
    }
    sync();
    EACH(t, 3 * rows) {
        int axis = t / rows, row = t - axis * rows;
        w.drift[axis * stride + row] = bias[axis] + total(w.parts + axis * PARTS * stride, stride, row);
    }
    sync();
}

FUNCTION void forces_of(const Model& m, const Team& team, int n, const real* x, real* f) {
    Work w = work_of(m, team, n);
    int rows = w.atoms.rows, stride = w.atoms.stride;
    coordinates(team, w.atoms, m.scale, x, w.at);
    EACH(t, m.wide * rows) {
        int feature = t / rows, row = t - feature * rows;
        w.h[feature * stride + row] = m.nodes[feature * n + row % n];
    }
    EACH(p, w.pairs) {
        int i, j;
        ends_of(n, false, p, &i, &j);
        for (int axis = 0; axis < 3; ++axis) {
            double d = (double)x[3 * j + axis] - (double)x[3 * i + axis];
            w.displacement[axis * w.pair_stride + p] = (real)((double)m.scale * d);
        }
    }
    sync();
    const real* position = part_of(m, m.blocks, POSITION);
    if (m.relative) {
        product_in_global(SWISH, team, w.pairs, 3, m.wide, position, 0, w.displacement, w.tokens, 0);
    } else {
        product_in_global(SWISH, team, rows, 3, m.wide, position, 0, w.at, w.x, 0);
        sync();
        product_in_global(ADD, team, rows, m.wide, m.wide, part_of(m, m.blocks, POSITION_OUT), 0, w.x, w.h, 0);
    }
    sync();
    for (int block = 0; block < m.blocks; ++block) block_of(team, m, w, block);
    Modulation last = {column_of(m, w, m.blocks - 1, ALPHA_2), column_of(m, w, m.blocks, SCALE_1), column_of(m, w, m.blocks, SHIFT_1)};
    gate_and_normalise(team, w.atoms, m.wide, last, w.update, w.h, w.x, w.parts);
    readout(team, m, w);
    forces_of_drifts(team, w.atoms, m.force_unit, x, w.drift, f);
}

template <bool ENERGY>
DEVICE real forces(const Model& m, const Team& team, int n, const real* x, real* f, real* scratch) {
    forces_of(m, team, n, x, f);
    return real(0);
}
