// A multilayer perceptron of a diffusion model at one time, after rows.cu: a row is a replica. Features of the time are part of the
// first bias. The formulas are those of fixed_time/perceptron.rs.

struct alignas(8) Model {
    // Weights of all layers; for each layer its outputs, and where weights [inputs, outputs], bias and transposed weights begin.
    // Outputs are padded to a multiple of four. After them the same of the layer of the score, or where the weights of the
    // energy begin.
    const real* weights;
    const int* layers;
    int dimension, hidden, widest, potential;
    // c, kT c and kT.
    real scale, force_unit, energy_unit;
};

const int INTEGERS = 4;

template <bool ENERGY>
DEVICE real forces(const Model& m, const Team& team, int n, const real* x, real* f, real* scratch) {
    int rows = team.count, stride = row_stride(rows), d = (m.dimension + 3) / 4 * 4;
    // Coordinates and their gradient; two rows of values; parts; slopes.
    real *at = scratch, *values = at + d * stride, *other = values + m.widest * stride, *parts = other + m.widest * stride;
    real* slopes = parts + PARTS * stride;
    EACH(k, m.dimension * rows) {
        int axis = k / rows, row = k - axis * rows;
        at[axis * stride + row] = m.scale * x[3 * n * row + axis];
    }
    sync();
    const real* in = at;
    int inputs = m.dimension;
    for (int l = 0; l < m.hidden; ++l) {
        const int* layer = m.layers + INTEGERS * l;
        product(SWISH, team, rows, inputs, layer[0], m.weights + layer[1], m.weights + layer[2], in, values, slopes);
        sync();
        slopes += layer[0] * stride;
        in = values;
        inputs = layer[0];
        real* next = other;
        other = values;
        values = next;
    }
    const int* last = m.layers + INTEGERS * m.hidden;
    real energy = 0, sign = m.force_unit;
    if (m.potential) {
        const real* w = m.weights + last[0];
        if (ENERGY) {
            EACH_PART(part, row, begin, end, inputs) {
                real sum = 0;
                for (int k = begin; k < end; ++k) sum = multiply_add(w[k], in[k * stride + row], sum);
                parts[part * stride + row] = sum;
            }
            sync();
            if (team.lane % n == 0 && team.lane / n < rows) energy = m.energy_unit * total(parts, stride, team.lane / n);
        }
        slopes -= inputs * stride;
        EACH(k, inputs * rows) {
            int feature = k / rows, i = feature * stride + k - feature * rows;
            values[i] = w[feature] * slopes[i];
        }
        sync();
        for (int l = m.hidden - 1; l > 0; --l) {
            const int *layer = m.layers + INTEGERS * l, *below = layer - INTEGERS;
            slopes -= below[0] * stride;
            product(SCALE, team, rows, layer[0], below[0], m.weights + layer[3], 0, values, other, slopes);
            sync();
            real* next = other;
            other = values;
            values = next;
        }
        product(SET, team, rows, m.layers[0], d, m.weights + m.layers[3], 0, values, at, 0);
        sign = -sign;
    } else {
        product(SET, team, rows, inputs, d, m.weights + last[1], m.weights + last[2], in, at, 0);
    }
    sync();
    EACH(k, 3 * n * rows) {
        int row = k / (3 * n), axis = k - 3 * n * row;
        f[k] = axis < m.dimension ? sign * at[axis * stride + row] : real(0);
    }
    return energy;
}
