// DiTMC's PE(3) at a fixed time, after ditmc.cu. Formulas are those of ditmc/equivariant/transformer.rs and attention.rs.
//
// Features of parity p and degree l have a row per component and atom, all atoms of a component side by side: [F, (2l + 1) rows]. Both
// directions of a pair share radial functions and all that products make of them, except where bonds give them tokens of their own;
// what is of odd degree changes its sign. Messages go path by path: a filter's degree and a value's make a message's.
//
// Defined before it: MOST_DEGREE, the highest degree of the networks that it is for.

struct alignas(8) Model {
    const real* weights;
    // PLACES numbers per block, and those behind the blocks; of each path PATH_NUMBERS.
    const int *places, *paths;
    // Features before positions [F, n]; modulations [F, n], of which a block has its own number, behind them that of the readout.
    const real *nodes, *modulation;
    // What a pair is told about the graph: [(L + 1) · RADIAL, gate_rows]; rows of pairs [n receivers, n senders].
    const real* gates;
    const int* rows;
    real* spill;
    int spill_size;
    // Features, those between the layers of a block's perceptron, heads, and channels of a head; highest degree L; numbers of a pair
    // that couple degrees, padded to four; whether a pair's directions are two.
    int blocks, wide, hidden, heads, width, degree, gate_rows, numbers, directed;
    // Å per nm times the time; kJ/mol/nm of one Å.
    real scale, force_unit;
};

// Of a block: where weights [inputs, outputs] begin, for one irrep after the other, and biases of scalars; κ of its paths; its first
// modulation and path; parities and degree of what it reads, degree of what it makes. The scale of logits is that of queries.
enum Place {
    QKV, RELATIVE, FILTERS, KAPPA, OUT, OUT_BIAS, FIRST, FIRST_BIAS, SECOND, SECOND_BIAS,
    MODULATION, PATHS, PATHS_END, PARITIES_IN, DEGREE_IN, DEGREE_OUT, PLACES,
    // Behind the blocks: from harmonics to numbers of pairs, and the first modulation of the readout.
    COUPLINGS = 0, READOUT
};

// Of a path: degrees of filter, value and message, parities of both, and its first number of a pair.
enum PathPlace { FILTER, VALUE, MESSAGE, VALUE_PARITY, MESSAGE_PARITY, NUMBER, PATH_NUMBERS };

// Radial functions.
const int RADIAL = 64;

// Features of one parity and degree: [F, stride], of which `rows` are those of components and atoms; `first` of the rows of scalars
// that lie before them, by which memory of any width is found.
struct Irrep {
    int components, rows, stride, first;
};

// A team's memory, all of it in the spill.
struct Work {
    Atoms atoms;
    int pairs, pair_stride;
    real *drift;
    // All irreps: features, their norm, what is added to them.
    real *h, *x, *update;
    // Queries, keys and values of all irreps, or hidden features of one and the openings of all.
    real* broad;
    // Attention [heads, n − 1], parts of two sums of vectors.
    real *weights, *parts;
    // Of pairs: harmonics, numbers that couple degrees, gated radial functions of each degree, and what products make of these [F].
    real *harmonics, *numbers, *gated, *met;
};

FUNCTION Irrep irrep_of(const Model& m, const Atoms& a, int parity, int degree) {
    Irrep k;
    k.components = 2 * degree + 1;
    k.rows = k.components * a.rows;
    k.stride = row_stride(k.rows);
    k.first = 0;
    for (int l = 0; l <= m.degree; ++l) {
        int stride = row_stride((2 * l + 1) * a.rows);
        k.first += parity * stride + (l < degree ? stride : 0);
    }
    return k;
}

// Rows of all irreps.
DEVICE int rows_of_all(const Model& m, const Atoms& a) {
    Irrep last = irrep_of(m, a, 1, m.degree);
    return last.first + last.stride;
}

DEVICE Work work_of(const Model& m, const Team& team, int n) {
    Work w;
    w.atoms = atoms_of(team, n);
    w.pairs = team.count * pairs_of(n, m.directed);
    w.pair_stride = row_stride(w.pairs);
    int all = m.wide * rows_of_all(m, w.atoms);
    int broad = m.hidden * (irrep_of(m, w.atoms, 0, m.degree).stride + w.atoms.stride);
    w.drift = m.spill + (u64)team.number * m.spill_size;
    w.h = w.drift + 3 * w.atoms.stride;
    w.x = w.h + all;
    w.update = w.x + all;
    w.broad = w.update + all;
    w.weights = w.broad + (broad > 3 * all ? broad : 3 * all);
    w.parts = w.weights + m.heads * (n - 1) * w.atoms.stride;
    w.harmonics = w.parts + 2 * PARTS * irrep_of(m, w.atoms, 0, 1).stride;
    w.numbers = w.harmonics + (m.degree + 1) * (m.degree + 1) * w.pair_stride;
    w.gated = w.numbers + m.numbers * w.pair_stride;
    w.met = w.gated + (m.degree + 1) * RADIAL * w.pair_stride;
    return w;
}

DEVICE int number_of(const Model& m, int block, Place place) { return m.places[block * PLACES + place]; }

DEVICE const real* part_of(const Model& m, int block, Place place) { return m.weights + number_of(m, block, place); }

DEVICE const real* column_of(const Model& m, const Work& w, int column) { return m.modulation + column * m.wide * w.atoms.n; }

// ---- pairs ----------------------------------------------------------------------------------------------------------

// x^63.
DEVICE double power_63(double x) {
    double two = x * x, four = two * two, eight = four * four, sixteen = eight * eight;
    return sixteen * sixteen * (sixteen * eight) * (four * two) * x;
}

DEVICE void gate(const Model& m, const Work& w, int p, int row, int k, double radial) {
    for (int l = 0; l <= m.degree; ++l) {
        int at = l * RADIAL + k;
        w.gated[at * w.pair_stride + p] = (real)(radial * (1.0 + (double)m.gates[at * m.gate_rows + row]));
    }
}

// Radial functions and harmonics of all pairs, in double precision as on the host, and the numbers that couple degrees.
FUNCTION void pairs(const Team& team, const Model& m, const Work& w, const real* x) {
    int n = w.atoms.n;
    EACH(p, w.pairs) {
        int i, j;
        ends_of(n, m.directed, p, &i, &j);
        double d[3], square = 0;
        for (int axis = 0; axis < 3; ++axis) {
            d[axis] = (double)m.scale * ((double)x[3 * j + axis] - (double)x[3 * i + axis]);
            square += d[axis] * d[axis];
        }
        double r = sqrt(square), inverse = 1 / r;
        int row = m.rows[i % n * n + j % n];
        if (r <= 1) {
            double b = power_63(1 / (1 + r));
            for (int k = 0; k < RADIAL; ++k) {
                gate(m, w, p, row, k, b);
                b *= r * (RADIAL - 1 - k) / (k + 1);
            }
        } else {
            double b = power_63(1 / (1 + inverse));
            for (int k = RADIAL - 1; k >= 0; --k) {
                gate(m, w, p, row, k, b);
                b *= inverse * k / (RADIAL - k);
            }
        }
        if (r == 0) inverse = 0;
        real* y = w.harmonics + p;
        y[0] = 1;
        for (int axis = 0; axis < 3; ++axis) {
            d[axis] *= inverse;
            y[(1 + axis) * w.pair_stride] = (real)d[axis];
        }
        if (m.degree < 2) continue;
        const double root = 1.7320508075688772;
        for (int axis = 0; axis < 3; ++axis) y[(4 + axis) * w.pair_stride] = (real)(root * d[axis] * d[(axis + 1) % 3]);
        y[7 * w.pair_stride] = (real)(0.5 * root * (d[0] * d[0] - d[1] * d[1]));
        y[8 * w.pair_stride] = (real)(d[2] * d[2] - 0.5 * (d[0] * d[0] + d[1] * d[1]));
    }
    sync();
    int components = (m.degree + 1) * (m.degree + 1);
    product_in_global(SET, team, w.pairs, components, m.numbers, part_of(m, m.blocks, COUPLINGS), 0, w.harmonics, w.numbers, 0);
}

// ---- norms ----------------------------------------------------------------------------------------------------------

// Norm of a channel; squares up to 1e-6 count as 0.
DEVICE real length(const Irrep& k, int rows, const real* x) {
    real square = x[0] * x[0];
    for (int c = 1; c < k.components; ++c) square = multiply_add(x[c * rows], x[c * rows], square);
    return square > real(1e-6) ? square_root(square) : square == square ? real(0) : square;
}

// h += alpha · update, then `to` = h scale/deviation of the norms of h.
FUNCTION void gate_and_scale(const Team& team, const Atoms& a, int wide, const Irrep& irrep, const Modulation& m, const real* update,
                             real* h, real* to, real* parts) {
    int n = a.n, rows = a.rows, stride = irrep.stride;
    real *sums = parts, *squares = sums + PARTS * a.stride;
    EACH_PART(part, row, begin, end, wide) {
        int atom = row % n;
        real sum = 0;
        for (int k = begin; k < end; ++k) {
            real* x = h + k * stride + row;
            const real* add = update + k * stride + row;
            for (int c = 0; m.alpha && c < irrep.components; ++c) {
                x[c * rows] = multiply_add(m.alpha[k * n + atom], add[c * rows], x[c * rows]);
            }
            sum += length(irrep, rows, x);
        }
        sums[part * a.stride + row] = sum;
    }
    sync();
    EACH_PART(part, row, begin, end, wide) {
        real mean = total(sums, a.stride, row) / real(wide), sum = 0;
        for (int k = begin; k < end; ++k) {
            real d = length(irrep, rows, h + k * stride + row) - mean;
            sum = multiply_add(d, d, sum);
        }
        squares[part * a.stride + row] = sum;
    }
    sync();
    EACH_PART(part, row, begin, end, wide) {
        int atom = row % n;
        real inverse = real(1) / square_root(total(squares, a.stride, row) / real(wide) + real(1e-6));
        for (int k = begin; k < end; ++k) {
            real factor = inverse * m.scale[k * n + atom];
            for (int c = 0; c < irrep.components; ++c) {
                int at = k * stride + c * rows + row;
                to[at] = h[at] * factor;
            }
        }
    }
    sync();
}

// ---- attention ------------------------------------------------------------------------------------------------------

// Adds Σ q k u over components and the channels of every head, for one irrep and all neighbours.
FUNCTION void logits(const Team& team, const Model& m, const Work& w, const Irrep& irrep, bool first) {
    int n = w.atoms.n, rows = w.atoms.rows, stride = irrep.stride, others = n - 1;
    const real* queries = w.broad + 3 * m.wide * irrep.first;
    EACH(t, m.heads * others * rows) {
        int row = t % rows, e = t / rows % others + 1, head = t / (rows * others), other;
        real sign, *to = w.weights + (head * others + e - 1) * w.atoms.stride + row, sum = first ? real(0) : *to;
        const real* met = w.met + pair_of(n, m.directed, row, e, &other, &sign);
        const real *query = queries + row, *key = queries + m.wide * stride + other;
        for (int c = head; c < m.wide; c += m.heads) {
            const real *q = query + c * stride, *k = key + c * stride;
            real dot = q[0] * k[0];
            for (int o = rows; o < irrep.rows; o += rows) dot = multiply_add(q[o], k[o], dot);
            sum = multiply_add(dot, met[c * w.pair_stride], sum);
        }
        *to = sum;
    }
    sync();
}

// Adds to the messages of some channels of an atom what one path brings: κ Σ w f C(Y, v) over neighbours.
template <int READS, int MAKES>
FUNCTION void follow(const Model& m, const Work& w, const Channels& c, const int* path, const real* kappa) {
    int n = w.atoms.n, rows = w.atoms.rows;
    Irrep from = irrep_of(m, w.atoms, path[VALUE_PARITY], path[VALUE]), to = irrep_of(m, w.atoms, path[MESSAGE_PARITY], path[MESSAGE]);
    const real* values = w.broad + 3 * m.wide * from.first + 2 * m.wide * from.stride;
    const real* weights = w.weights + c.head * (n - 1) * w.atoms.stride + c.row;
    bool odd = path[FILTER] % 2;
    real sums[CHANNELS][MAKES];
#pragma unroll
    for (int s = 0; s < CHANNELS; ++s) {
#pragma unroll
        for (int b = 0; b < MAKES; ++b) sums[s][b] = 0;
    }
    for (int e = 1; e < n; ++e) {
        int other;
        real sign;
        int p = pair_of(n, m.directed, c.row, e, &other, &sign);
        real weight = weights[(e - 1) * w.atoms.stride] * (odd ? sign : real(1));
        const real* number = w.numbers + path[NUMBER] * w.pair_stride + p;
        real products[CHANNELS];
#pragma unroll
        for (int s = 0; s < CHANNELS; ++s) products[s] = weight * w.met[c.at[s] * w.pair_stride + p];
#pragma unroll
        for (int a = 0; a < READS; ++a) {
            const real* value = values + a * rows + other;
            real v[CHANNELS];
#pragma unroll
            for (int s = 0; s < CHANNELS; ++s) v[s] = products[s] * value[c.at[s] * from.stride];
#pragma unroll
            for (int b = 0; b < MAKES; ++b) {
                real factor = number[(a * MAKES + b) * w.pair_stride];
#pragma unroll
                for (int s = 0; s < CHANNELS; ++s) sums[s][b] = multiply_add(factor, v[s], sums[s][b]);
            }
        }
    }
    real* message = w.x + m.wide * to.first + c.row;
#pragma unroll
    for (int s = 0; s < CHANNELS; ++s) {
        if (s >= c.count) continue;
#pragma unroll
        for (int b = 0; b < MAKES; ++b) {
            real* sum = message + c.at[s] * to.stride + b * rows;
            *sum = multiply_add(kappa[c.at[s]], sums[s][b], *sum);
        }
    }
}

// Messages through filters of one degree, to w.x, which those of degree 0 begin anew. Each number there is of one thread.
FUNCTION void messages(const Team& team, const Model& m, const Work& w, int block, int filter) {
    int first = number_of(m, block, PATHS), end = number_of(m, block, PATHS_END), rows = w.atoms.rows;
    EACH(t, tiles_of(m.width) * m.heads * rows) {
        Channels c = channels_of(t, rows, m.heads, m.width);
        for (int k = 0; filter == 0 && k < 2 * (m.degree + 1); ++k) {
            Irrep irrep = irrep_of(m, w.atoms, k / (m.degree + 1), k % (m.degree + 1));
            for (int s = 0; s < c.count; ++s) {
                real* to = w.x + m.wide * irrep.first + c.at[s] * irrep.stride + c.row;
                for (int b = 0; b < irrep.components; ++b) to[b * rows] = 0;
            }
        }
        for (int k = first; k < end; ++k) {
            const int* path = m.paths + k * PATH_NUMBERS;
            const real* kappa = part_of(m, block, KAPPA) + (k - first) * m.wide;
            if (path[FILTER] != filter) continue;
            switch (3 * path[VALUE] + path[MESSAGE]) {
                case 0: follow<1, 1>(m, w, c, path, kappa); break;
                case 1: follow<1, 3>(m, w, c, path, kappa); break;
                case 3: follow<3, 1>(m, w, c, path, kappa); break;
                case 4: follow<3, 3>(m, w, c, path, kappa); break;
#if MOST_DEGREE > 1
                case 2: follow<1, 5>(m, w, c, path, kappa); break;
                case 5: follow<3, 5>(m, w, c, path, kappa); break;
                case 6: follow<5, 1>(m, w, c, path, kappa); break;
                case 7: follow<5, 3>(m, w, c, path, kappa); break;
                case 8: follow<5, 5>(m, w, c, path, kappa); break;
#endif
            }
        }
    }
    sync();
}

// ---- blocks ---------------------------------------------------------------------------------------------------------

// Attention of a block, from normalised features in w.x to updates.
FUNCTION void attend(const Team& team, const Model& m, const Work& w, int block) {
    int parities = number_of(m, block, PARITIES_IN), degree_in = number_of(m, block, DEGREE_IN), degree = number_of(m, block, DEGREE_OUT);
    int f = m.wide, square = f * f, met = RADIAL * f;
    for (int k = 0; k < parities * (degree_in + 1); ++k) {
        Irrep irrep = irrep_of(m, w.atoms, k / (degree_in + 1), k % (degree_in + 1));
        const real* weights = part_of(m, block, QKV) + 3 * k * square;
        product_in_global(SET, team, irrep.rows, f, 3 * f, weights, 0, w.x + f * irrep.first, w.broad + 3 * f * irrep.first, 0);
    }
    for (int k = 0; k < parities * (degree_in + 1); ++k) {
        product_in_global(SET, team, w.pairs, RADIAL, f, part_of(m, block, RELATIVE) + k * met, 0, w.gated, w.met, 0);
        sync();
        logits(team, m, w, irrep_of(m, w.atoms, k / (degree_in + 1), k % (degree_in + 1)), k == 0);
    }
    softmax(team, w.atoms, m.heads, w.weights);
    for (int l = 0; l <= degree; ++l) {
        const real* gated = w.gated + l * RADIAL * w.pair_stride;
        product_in_global(SET, team, w.pairs, RADIAL, f, part_of(m, block, FILTERS) + l * met, 0, gated, w.met, 0);
        sync();
        messages(team, m, w, block, l);
    }
    // From scalars the first block makes one parity of each degree.
    for (int k = 0; k < (block ? 2 : 1) * (degree + 1); ++k) {
        int l = k % (degree + 1);
        Irrep irrep = irrep_of(m, w.atoms, block ? k / (degree + 1) : l % 2, l);
        const real *weights = part_of(m, block, OUT) + k * square, *bias = k == 0 ? part_of(m, block, OUT_BIAS) : 0;
        product_in_global(SET, team, irrep.rows, f, f, weights, bias, w.x + f * irrep.first, w.update + f * irrep.first, 0);
    }
    sync();
}

// Adds updates to features and normalises these to w.x: features up to `degree` of `parities` parities, of which there were some before.
// Modulations begin with `alpha` (of none below 0), and with `scale`, behind which there is the shift of scalars.
FUNCTION void change(const Team& team, const Model& m, const Work& w, int parities, int degree, int alpha, int scale, bool first) {
    for (int k = 0; k < parities * (degree + 1); ++k) {
        int parity = k / (degree + 1), l = k % (degree + 1);
        Irrep irrep = irrep_of(m, w.atoms, parity, l), from = first ? irrep_of(m, w.atoms, l % 2, l) : irrep;
        Modulation by = {alpha < 0 ? 0 : column_of(m, w, alpha + k), column_of(m, w, scale + k), 0};
        const real* update = w.update + m.wide * from.first;
        real *h = w.h + m.wide * irrep.first, *to = w.x + m.wide * irrep.first;
        if (k == 0) {
            by.shift = column_of(m, w, scale + parities * (degree + 1));
            gate_and_normalise(team, w.atoms, m.wide, by, update, h, to, w.parts);
        } else {
            gate_and_scale(team, w.atoms, m.wide, irrep, by, update, h, to, w.parts);
        }
    }
}

// What a hidden feature of scalars opens: GELU is x times that.
DEVICE real opened(real x) {
    const real root = real(1.5957691216057307), cubic = real(0.044715);
    return sigmoid(x * multiply_add(x * x, root * cubic, root));
}

// The perceptron of a block, from normalised features in w.x to updates: what scalars say opens hidden features of all irreps.
FUNCTION void transform(const Team& team, const Model& m, const Work& w, int block) {
    int degree = number_of(m, block, DEGREE_OUT), f = m.wide, rows = w.atoms.rows, stride = w.atoms.stride;
    real *opening = w.broad, *hidden = opening + m.hidden * stride;
    for (int k = 0; k < 2 * (degree + 1); ++k) {
        Irrep irrep = irrep_of(m, w.atoms, k / (degree + 1), k % (degree + 1));
        const real *in = part_of(m, block, FIRST) + k * f * m.hidden, *out = part_of(m, block, SECOND) + k * m.hidden * f;
        const real *in_bias = k ? 0 : part_of(m, block, FIRST_BIAS), *out_bias = k ? 0 : part_of(m, block, SECOND_BIAS);
        product_in_global(SET, team, irrep.rows, f, m.hidden, in, in_bias, w.x + f * irrep.first, hidden, 0);
        sync();
        EACH(t, m.hidden * irrep.rows) {
            int feature = t / irrep.rows, row = t - feature * irrep.rows;
            real *x = hidden + feature * irrep.stride + row, *s = opening + feature * stride + row % rows;
            if (k == 0) *s = opened(*x);
            *x *= *s;
        }
        sync();
        product_in_global(SET, team, irrep.rows, m.hidden, f, out, out_bias, hidden, w.update + f * irrep.first, 0);
        sync();
    }
}

// ---- the whole network ----------------------------------------------------------------------------------------------

// Vectors of both parities after the last update, at modulations from `alpha` on, and one number of each of their components.
FUNCTION void readout(const Team& team, const Model& m, const Work& w, int alpha, int degree) {
    int n = w.atoms.n, rows = 3 * w.atoms.rows;
    Irrep even = irrep_of(m, w.atoms, 0, 1), odd = irrep_of(m, w.atoms, 1, 1);
    const real *weights = part_of(m, m.blocks, READOUT), *by_even = column_of(m, w, alpha + 1), *by_odd = column_of(m, w, alpha + degree + 2);
    EACH(t, m.wide * rows) {
        int feature = t / rows, row = t - feature * rows, at = feature * even.stride + row, place = feature * n + row % w.atoms.rows % n;
        int first = m.wide * even.first + at, second = m.wide * odd.first + at;
        real sum = multiply_add(by_even[place], w.update[first], w.h[first]);
        w.h[first] = sum + multiply_add(by_odd[place], w.update[second], w.h[second]);
    }
    sync();
    Modulation last = {0, column_of(m, w, number_of(m, m.blocks, MODULATION)), 0};
    real* x = w.x + m.wide * even.first;
    gate_and_scale(team, w.atoms, m.wide, even, last, 0, w.h + m.wide * even.first, x, w.parts);
    EACH_PART(part, row, begin, end, m.wide) {
        real sum = 0;
        for (int k = begin; k < end; ++k) sum = multiply_add(x[k * even.stride + row], weights[k], sum);
        w.parts[part * even.stride + row] = sum;
    }
    sync();
    EACH(t, rows) {
        int axis = t / w.atoms.rows;
        w.drift[axis * w.atoms.stride + t - axis * w.atoms.rows] = total(w.parts, even.stride, t);
    }
    sync();
}

FUNCTION void forces_of(const Model& m, const Team& team, int n, const real* x, real* f) {
    Work w = work_of(m, team, n);
    pairs(team, m, w, x);
    // Of all but scalars, which come first, there is nothing in the beginning.
    EACH(t, m.wide * rows_of_all(m, w.atoms)) {
        int feature = t / w.atoms.stride, row = t - feature * w.atoms.stride;
        w.h[t] = feature < m.wide && row < w.atoms.rows ? m.nodes[feature * n + row % n] : real(0);
    }
    sync();
    int alpha = -1, degree = 0;
    for (int block = 0; block < m.blocks; ++block) {
        int parities = number_of(m, block, PARITIES_IN), degree_in = number_of(m, block, DEGREE_IN);
        int column = number_of(m, block, MODULATION), inputs = parities * (degree_in + 1);
        degree = number_of(m, block, DEGREE_OUT);
        int features = 2 * (degree + 1);
        change(team, m, w, parities, degree_in, alpha, column, false);
        attend(team, m, w, block);
        change(team, m, w, 2, degree, column + inputs + 1, column + inputs + 1 + features, block == 0);
        transform(team, m, w, block);
        alpha = column + inputs + 2 + 2 * features;
    }
    readout(team, m, w, alpha, degree);
    forces_of_drifts(team, w.atoms, m.force_unit, x, w.drift, f);
}

template <bool ENERGY>
DEVICE real forces(const Model& m, const Team& team, int n, const real* x, real* f, real* scratch) {
    forces_of(m, team, n, x, f);
    return real(0);
}
