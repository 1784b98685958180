// What a training launches one after the other, whatever the network: products, gradients of weights, the optimiser. Rows of
// features lie one after the other; a sum runs in an order that depends on sizes alone.

// This thread among all of a launch with a thread per number.
#define THREAD ((int)(blockIdx.x * blockDim.x + threadIdx.x))

struct alignas(16) Four {
    real at[4];
};

DEVICE Four four(const real* from) { return *reinterpret_cast<const Four*>(from); }
DEVICE real sigmoid(real x) { return real(1) / (real(1) + exponential(-x)); }
DEVICE real swish(real x) { return x * sigmoid(x); }
DEVICE real swish_slope(real x) {
    real s = sigmoid(x);
    return multiply_add(real(1) - s, x * s, s);
}

// GELU in its tanh form, x σ(2z) with z = √(2/π) (x + 0.044715 x³), and its slope.
DEVICE real gelu(real x) {
    const real root = real(1.5957691216057307), cubic = real(0.044715);
    return x * sigmoid(x * multiply_add(x * x, root * cubic, root));
}
DEVICE real gelu_slope(real x) {
    const real root = real(1.5957691216057307), cubic = real(0.044715);
    real square = x * x, s = sigmoid(x * multiply_add(square, root * cubic, root));
    return multiply_add(x * s * (real(1) - s), multiply_add(square, real(3) * root * cubic, root), s);
}

// ---- products -------------------------------------------------------------------------------------------------------

// A block makes SIDE × SIDE numbers, each thread 4 × 4 of them, DEPTH terms at a time from shared memory.
const int SIDE = 64, DEPTH = 16, PITCH = SIDE + 4;

// What becomes of sums: they replace what was there, are added to it, go through SiLU or GELU while `before` keeps them, or are multiplied
// by the slope of either at `before`.
enum Finish { SET, ADD, SWISH, SWISH_SLOPE, GELU, GELU_SLOPE };

// c [m, n] = finish(bias + a b), with a [m, inner] and b [inner, n] in memory as their strides say. The inner index is cut into parts,
// whose sums lie `part` apart: for gradients of weights, where it runs over all rows of a batch.
struct alignas(8) Product {
    const real *a, *b, *bias;
    real *c, *before;
    int m, n, inner;
    int a_row, a_inner, b_inner, b_column;
    int parts, part, finish;
};

// Puts [SIDE, DEPTH] of a matrix to `to` [DEPTH, PITCH], with zeros outside of it. Neighbouring threads read what lies side by side.
DEVICE void fetch(real* to, const real* from, int row, int rows, int inner, int end, int row_stride, int inner_stride) {
    for (int e = threadIdx.x; e < SIDE * DEPTH; e += TEAM) {
        int k = inner_stride == 1 ? e % DEPTH : e / SIDE, i = inner_stride == 1 ? e / DEPTH : e % SIDE;
        bool inside = row + i < rows && inner + k < end;
        to[k * PITCH + i] = inside ? from[(row + i) * row_stride + (inner + k) * inner_stride] : real(0);
    }
}

KERNEL(product, Product) {
    SHARED_REALS(left);
    real* right = left + DEPTH * PITCH;
    int high = (p.m + SIDE - 1) / SIDE, tiles = high * ((p.n + SIDE - 1) / SIDE);
    int tile = blockIdx.x % tiles, part = blockIdx.x / tiles;
    int row = tile % high * SIDE, column = tile / high * SIDE;
    int each = ((p.inner + p.parts - 1) / p.parts + DEPTH - 1) / DEPTH * DEPTH;
    int end = (part + 1) * each < p.inner ? (part + 1) * each : p.inner;
    int down = threadIdx.x / (SIDE / 4) * 4, across = threadIdx.x % (SIDE / 4) * 4;
    real sums[4][4];
    for (int r = 0; r < 4; ++r)
        for (int c = 0; c < 4; ++c) sums[r][c] = 0;
    for (int k = part * each; k < end; k += DEPTH) {
        fetch(left, p.a, row, p.m, k, end, p.a_row, p.a_inner);
        fetch(right, p.b, column, p.n, k, end, p.b_column, p.b_inner);
        sync();
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            Four a = four(left + d * PITCH + down), b = four(right + d * PITCH + across);
#pragma unroll
            for (int r = 0; r < 4; ++r)
#pragma unroll
                for (int c = 0; c < 4; ++c) sums[r][c] = multiply_add(a.at[r], b.at[c], sums[r][c]);
        }
        sync();
    }
    real* to = p.c + part * p.part;
    for (int r = row + down; r < row + down + 4 && r < p.m; ++r) {
        for (int c = column + across; c < column + across + 4 && c < p.n; ++c) {
            int at = r * p.n + c;
            real value = sums[r - row - down][c - column - across];
            if (p.bias) value += p.bias[c];
            if (p.finish == ADD) value += to[at];
            if (p.finish == SWISH || p.finish == GELU) {
                p.before[at] = value;
                value = p.finish == GELU ? gelu(value) : swish(value);
            }
            if (p.finish == SWISH_SLOPE) value *= swish_slope(p.before[at]);
            if (p.finish == GELU_SLOPE) value *= gelu_slope(p.before[at]);
            to[at] = value;
        }
    }
}

// Sums of the columns of a [rows, columns], in parts like those of a product.
struct alignas(8) Columns {
    const real* a;
    real* c;
    int rows, columns, parts, part;
};

KERNEL(columns, Columns) {
    int t = THREAD, column = t % p.columns, part = t / p.columns;
    if (part >= p.parts) return;
    int each = ((p.rows + p.parts - 1) / p.parts + DEPTH - 1) / DEPTH * DEPTH;
    int end = (part + 1) * each < p.rows ? (part + 1) * each : p.rows;
    real sum = 0;
    for (int r = part * each; r < end; ++r) sum += p.a[r * p.columns + column];
    p.c[part * p.part + column] = sum;
}

// to [n] = the sum of parts that lie `stride` apart.
struct alignas(8) Parts {
    const real* parts;
    real* to;
    int n, count, stride;
};

KERNEL(sum_parts, Parts) {
    int t = THREAD;
    if (t >= p.n) return;
    real sum = p.parts[t];
    for (int k = 1; k < p.count; ++k) sum += p.parts[k * p.stride + t];
    p.to[t] = sum;
}

// ---- vectors of molecules -------------------------------------------------------------------------------------------

// A network's vectors: axis k of atom i is at i · atom + k · axis. First atoms [M + 1].
struct Vectors {
    const int* first;
    const real* v;
    int molecules, atom, axis;
};

DEVICE real mean_of(const Vectors& p, int m, int axis) {
    real mean = 0;
    for (int i = p.first[m]; i < p.first[m + 1]; ++i) mean += p.v[i * p.atom + axis * p.axis];
    return mean / real(p.first[m + 1] - p.first[m]);
}

// Vectors without their molecule's mean, times a factor: forces [A, 3].
struct alignas(8) Forces {
    Vectors vectors;
    real* f;
    real factor;
};

KERNEL(forces, Forces) {
    const Vectors& v = p.vectors;
    int t = THREAD, m = t / 3, axis = t - 3 * m;
    if (m >= v.molecules) return;
    real mean = mean_of(v, m, axis);
    for (int i = v.first[m]; i < v.first[m + 1]; ++i) p.f[3 * i + axis] = p.factor * (v.v[i * v.atom + axis * v.axis] - mean);
}

// Losses of molecules and axes: Σ (v − label)² and Σ v² of vectors v without their mean; and, where wanted, gradients of
// factor Σ (v − label)², in places as those of the vectors.
struct alignas(8) Losses {
    Vectors vectors;
    const real *label, *factor;
    real *seed, *sums;
};

KERNEL(losses, Losses) {
    const Vectors& v = p.vectors;
    int t = THREAD, m = t / 3, axis = t - 3 * m;
    if (m >= v.molecules) return;
    int begin = v.first[m], end = v.first[m + 1];
    real mean = mean_of(v, m, axis), error = 0, square = 0, mean_error = 0;
    for (int i = begin; i < end; ++i) {
        real x = v.v[i * v.atom + axis * v.axis] - mean, e = x - p.label[3 * i + axis];
        error = multiply_add(e, e, error);
        square = multiply_add(x, x, square);
        mean_error += e;
    }
    mean_error /= real(end - begin);
    for (int i = begin; p.seed && i < end; ++i) {
        int at = i * v.atom + axis * v.axis;
        p.seed[at] = p.factor[m] * (v.v[at] - mean - p.label[3 * i + axis] - mean_error);
    }
    p.sums[2 * t] = error;
    p.sums[2 * t + 1] = square;
}

struct alignas(8) Fill {
    real* a;
    int n;
};

KERNEL(clear, Fill) {
    int t = THREAD;
    if (t < p.n) p.a[t] = 0;
}

// ---- the optimiser --------------------------------------------------------------------------------------------------

// Parameters of one sum of squares.
const int PIECE = 8192;

struct alignas(8) Squares {
    const real* a;
    real* sums;
    int n;
};

KERNEL(squares, Squares) {
    SHARED_REALS(sums);
    int end = (blockIdx.x + 1) * PIECE < p.n ? (blockIdx.x + 1) * PIECE : p.n;
    real sum = 0;
    for (int i = blockIdx.x * PIECE + threadIdx.x; i < end; i += TEAM) sum = multiply_add(p.a[i], p.a[i], sum);
    sums[threadIdx.x] = sum;
    sync();
    for (int half = TEAM / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        sync();
    }
    if (threadIdx.x == 0) p.sums[blockIdx.x] = sums[0];
}

// Padding of weights stays zero.
struct alignas(8) Places {
    real* a;
    const int* places;
    int n;
};

KERNEL(clear_places, Places) {
    int t = THREAD;
    if (t < p.n) p.a[p.places[t]] = 0;
}

// AdamW with a clipped gradient, and the average of parameters (train/adamw.rs, train/step.rs).
struct alignas(8) Move {
    real *values, *first, *second, *average;
    const real* gradient;
    int n;
    // Of the gradient, and the bound on its elements after that.
    real factor, bound;
    // Shares of the old average and of the new parameters.
    real memory, fresh;
    // Shares of old moments and of what is new; learning rate over the bias of the mean; 1 over that of the mean square.
    real beta1, beta2, new1, new2, rate, unbias2, epsilon, decay;
};

KERNEL(move, Move) {
    int t = THREAD;
    if (t >= p.n) return;
    real g = smaller(larger(p.gradient[t] * p.factor, -p.bound), p.bound);
    real m = p.beta1 * p.first[t] + p.new1 * g, v = p.beta2 * p.second[t] + p.new2 * (g * g);
    real value = p.decay * p.values[t] - p.rate * m / (square_root(p.unbias2 * v) + p.epsilon);
    p.first[t] = m;
    p.second[t] = v;
    p.values[t] = value;
    p.average[t] = p.memory * p.average[t] + p.fresh * value;
}
