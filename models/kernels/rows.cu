// Rows of features that go through a network together: products with weights, sums over a row. A team's rows are those of all its
// replicas. Feature f of row r is at f · stride + r, so that neighbouring threads have neighbouring rows; rows come in tiles of
// TILE_ROWS, and whoever writes a tile writes all of it. A row's numbers do not depend on the rows beside it.

// Long functions that several places call: inlined, the kernel would be many times as long. What they are told of an address
// makes its loads shorter.
#ifdef SCOREFIELD_HOST
#define FUNCTION DEVICE
#define IS_SHARED(address)
#define IS_GLOBAL(address)
#else
#define FUNCTION static __device__ __noinline__
#define IS_SHARED(address) __builtin_assume(__isShared(address))
#define IS_GLOBAL(address) __builtin_assume(__isGlobal(address))
#endif

// A thread's part of a product: it reads 12 numbers for 32 multiply-adds.
const int TILE_ROWS = 8, TILE_COLUMNS = 4;
// Weights that are on their way while others are used: they come from the second-level cache.
const int AHEAD = 4;
// Sums over the features of a row: each is made of so many parts, whatever the team.
const int PARTS = 8;

// From one feature to the next, as `Group::stride` in model.rs: tiles of neighbouring features lie in different banks.
DEVICE int row_stride(int rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS + TILE_ROWS / 2; }

struct alignas(16) Four {
    real at[4];
};

DEVICE Four four(const real* from) { return *reinterpret_cast<const Four*>(from); }
DEVICE void put(real* to, const real* from) {
    Four four = {{from[0], from[1], from[2], from[3]}};
    *reinterpret_cast<Four*>(to) = four;
}

DEVICE real sigmoid(real x) { return real(1) / (real(1) + exponential(-x)); }

// Value of x σ(x), and its slope.
DEVICE real swish(real x, real* slope) {
    real s = sigmoid(x), value = x * s;
    *slope = multiply_add(real(1) - s, value, s);
    return value;
}

// Value of GELU by its tanh approximation, x σ(2z) with z = √(2/π) (x + 0.044715 x³), and its slope.
DEVICE real gelu(real x, real* slope) {
    const real root = real(1.5957691216057307), cubic = real(0.044715);
    real square = x * x, s = sigmoid(x * multiply_add(square, root * cubic, root)), value = x * s;
    *slope = multiply_add(value * (real(1) - s), multiply_add(square, real(3) * root * cubic, root), s);
    return value;
}

// What becomes of the sums of a product: they replace what was there, are added to it, are kept twice, go through an activation
// whose slope is kept where there is memory for it, or are multiplied by slopes that were kept.
enum Finish { SET, ADD, KEEP, GELU, SWISH, SCALE };

// Adds one weight of each column times one feature of each row.
DEVICE void multiply_tile(const Four& w, const real* a, real (&sums)[TILE_COLUMNS][TILE_ROWS]) {
    Four low = four(a), high = four(a + 4);
#pragma unroll
    for (int c = 0; c < TILE_COLUMNS; ++c) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            sums[c][r] = multiply_add(w.at[c], low.at[r], sums[c][r]);
            sums[c][r + 4] = multiply_add(w.at[c], high.at[r], sums[c][r + 4]);
        }
    }
}

// What follows the sums, for four rows.
DEVICE void finish_four(Finish finish, real* out, real* keep) {
    Four value = four(out), kept = value;
    if (finish == SCALE) kept = four(keep);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        if (finish == GELU) value.at[r] = gelu(value.at[r], &kept.at[r]);
        if (finish == SWISH) value.at[r] = swish(value.at[r], &kept.at[r]);
        if (finish == SCALE) value.at[r] *= kept.at[r];
    }
    if (finish != KEEP) put(out, value.at);
    if (finish != SCALE && keep) put(keep, kept.at);
}

// c = finish(bias + a · weights) for a [inner, rows], weights [inner, columns], c and kept [columns, rows]; columns are a multiple of
// four; a and c are in shared memory where SHARED, else in global memory. Every sum runs over the inner index in order. Eight
// neighbouring threads have neighbouring columns of the same rows.
template <bool SHARED>
FUNCTION void multiply(Finish finish, const Team& team, int rows, int inner, int columns, const real* weights, const real* bias,
                       const real* a, real* c, real* kept) {
    if (SHARED) {
        IS_SHARED(a);
        IS_SHARED(c);
    } else {
        IS_GLOBAL(a);
        IS_GLOBAL(c);
    }
    IS_GLOBAL(weights);
    int stride = row_stride(rows), high = (rows + TILE_ROWS - 1) / TILE_ROWS, across = columns / TILE_COLUMNS;
    EACH(t, (across + 7) / 8 * 8 * high) {
        int row = t / 8 % high * TILE_ROWS, column = (t / (8 * high) * 8 + t % 8) * TILE_COLUMNS;
        if (column >= columns) continue;
        real* out = c + column * stride + row;
        real sums[TILE_COLUMNS][TILE_ROWS];
#pragma unroll
        for (int i = 0; i < TILE_COLUMNS; ++i) {
            if (finish == ADD) {
                Four low = four(out + i * stride), high = four(out + i * stride + 4);
                for (int r = 0; r < 4; ++r) sums[i][r] = low.at[r], sums[i][r + 4] = high.at[r];
            } else {
                real start = bias ? bias[column + i] : real(0);
                for (int r = 0; r < TILE_ROWS; ++r) sums[i][r] = start;
            }
        }
        const real *w = weights + column, *from = a + row;
        int whole = inner / AHEAD * AHEAD;
        Four coming[AHEAD];
#pragma unroll
        for (int d = 0; d < AHEAD; ++d) {
            if (whole > 0) coming[d] = four(w + d * columns);
        }
        for (int k = 0; k < whole; k += AHEAD) {
            Four now[AHEAD];
#pragma unroll
            for (int d = 0; d < AHEAD; ++d) now[d] = coming[d];
            w += AHEAD * columns;
            if (k + AHEAD < whole) {
#pragma unroll
                for (int d = 0; d < AHEAD; ++d) coming[d] = four(w + d * columns);
            }
#pragma unroll
            for (int d = 0; d < AHEAD; ++d) multiply_tile(now[d], from + d * stride, sums);
            from += AHEAD * stride;
        }
        for (int k = whole; k < inner; ++k, w += columns, from += stride) multiply_tile(four(w), from, sums);
#pragma unroll
        for (int i = 0; i < TILE_COLUMNS; ++i) {
            put(out + i * stride, &sums[i][0]);
            put(out + i * stride + 4, &sums[i][4]);
        }
        if (finish <= ADD) continue;
        real* keep = kept ? kept + column * stride + row : 0;
#pragma unroll 1
        for (int at = 0; at < TILE_COLUMNS * stride; at += stride) {
#pragma unroll 1
            for (int half = at; half < at + TILE_ROWS; half += TILE_ROWS / 2) finish_four(finish, out + half, keep ? keep + half : 0);
        }
    }
}

// For rows in shared and in global memory.
#define product multiply<true>
#define product_in_global multiply<false>

// Goes through the parts of all rows: `row`, and features [begin, end) of `features`, always by the same thread.
#define EACH_PART(part, row, begin, end, features)                                                                        \
    EACH(part_and_row, PARTS * rows)                                                                                      \
    for (int part = part_and_row / rows, row = part_and_row - part * rows, begin = part * (features) / PARTS,             \
             end = (part + 1) * (features) / PARTS, once = 1;                                                             \
         once; once = 0)

// The sum of a row's parts [PARTS, rows].
DEVICE real total(const real* parts, int stride, int row) {
    real sum = parts[row];
    for (int p = 1; p < PARTS; ++p) sum += parts[p * stride + row];
    return sum;
}
