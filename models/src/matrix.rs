//! Matrix products over rows of atoms or pairs: one core, no packing, no allocation, in the instruction set of the process.
//!
//! Every element of a product is a chain of fused multiply-adds over the inner index in its natural order, whatever tile it
//! falls into. A row's result therefore does not depend on which rows are beside it, nor on how many.

use pulp::{Simd, WithSimd};
use scorefield_integrators::simd::{AlignedBuffer, Lanes, SimdReal, dispatch};

/// Rows are padded to this many columns, the widest vector.
pub(crate) const PAD: usize = 16;

/// `n` rounded up to whole vectors.
pub(crate) fn padded(n: usize) -> usize {
    n.next_multiple_of(PAD)
}

/// A constant matrix `[rows, columns]`, columns padded with zeros.
#[derive(Clone, Debug)]
pub(crate) struct Matrix<T> {
    rows: usize,
    columns: usize,
    data: AlignedBuffer<T>,
}

impl<T: SimdReal> Matrix<T> {
    /// From a function of row and column.
    pub(crate) fn new(rows: usize, columns: usize, at: impl Fn(usize, usize) -> f64) -> Self {
        let wide = padded(columns);
        let mut data = AlignedBuffer::zeros(rows * wide);
        for r in 0..rows {
            for c in 0..columns {
                data[r * wide + c] = T::from_f64(at(r, c));
            }
        }
        Matrix { rows, columns: wide, data }
    }

    /// Padded number of columns.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Floating-point operations of a product with one row.
    pub(crate) fn flops(&self) -> usize {
        2 * self.rows * self.columns
    }

    /// `c = a M + bias` for `m` rows; rows of `a` and `c` are `a_stride` and `c_stride` apart. `bias` is added where given.
    pub(crate) fn apply(&self, m: usize, a: &[T], a_stride: usize, bias: Option<&[T]>, c: &mut [T], c_stride: usize) {
        dispatch(Product { matrix: self, m, a, a_stride, bias, add: false, c, c_stride });
    }

    /// `c += a M`, as [`Matrix::apply`].
    pub(crate) fn add(&self, m: usize, a: &[T], a_stride: usize, c: &mut [T], c_stride: usize) {
        dispatch(Product { matrix: self, m, a, a_stride, bias: None, add: true, c, c_stride });
    }
}

struct Product<'a, T> {
    matrix: &'a Matrix<T>,
    m: usize,
    a: &'a [T],
    a_stride: usize,
    bias: Option<&'a [T]>,
    add: bool,
    c: &'a mut [T],
    c_stride: usize,
}

impl<T: SimdReal> WithSimd for Product<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, t: S) {
        // Vectors of 64 bytes come with 32 registers, shorter ones with at least 16.
        if size_of::<T::Of<S>>() == 64 {
            self.tiles::<T::Of<S>, 6, 4>(t);
        } else {
            self.tiles::<T::Of<S>, 6, 2>(t);
        }
    }
}

impl<T: SimdReal> Product<'_, T> {
    #[inline(always)]
    fn tiles<V: Lanes<Scalar = T>, const R: usize, const W: usize>(&mut self, t: V::Token) {
        let vectors = self.matrix.columns / V::LANES;
        let mut v = 0;
        while v + W <= vectors {
            self.columns::<V, R, W>(t, v);
            v += W;
        }
        while v + 2 <= vectors {
            self.columns::<V, R, 2>(t, v);
            v += 2;
        }
        while v < vectors {
            self.columns::<V, R, 1>(t, v);
            v += 1;
        }
    }

    /// `W` vectors of columns from vector `v` on, for all rows.
    #[inline(always)]
    fn columns<V: Lanes<Scalar = T>, const R: usize, const W: usize>(&mut self, t: V::Token, v: usize) {
        let mut row = 0;
        while row + R <= self.m {
            self.tile::<V, R, W>(t, row, v);
            row += R;
        }
        while row + 2 <= self.m {
            self.tile::<V, 2, W>(t, row, v);
            row += 2;
        }
        while row < self.m {
            self.tile::<V, 1, W>(t, row, v);
            row += 1;
        }
    }

    #[inline(always)]
    fn tile<V: Lanes<Scalar = T>, const R: usize, const W: usize>(&mut self, t: V::Token, row: usize, v: usize) {
        let k = self.matrix.rows;
        let first = v * V::LANES;
        let mut sum = [[V::zero(t); W]; R];
        let mut a = [&self.a[..0]; R];
        for r in 0..R {
            let start = (row + r) * self.a_stride;
            a[r] = &self.a[start..start + k];
            let c = &self.c[(row + r) * self.c_stride + first..][..W * V::LANES];
            for w in 0..W {
                if self.add {
                    sum[r][w] = V::load(t, &c[w * V::LANES..]);
                } else if let Some(bias) = self.bias {
                    sum[r][w] = V::load(t, &bias[first + w * V::LANES..]);
                }
            }
        }
        for (i, line) in self.matrix.data.chunks_exact(self.matrix.columns).enumerate().take(k) {
            let b = V::slice(t, &line[first..first + W * V::LANES]);
            for r in 0..R {
                let x = V::splat(t, a[r][i]);
                for w in 0..W {
                    sum[r][w] = x.mul_add(b[w], sum[r][w]);
                }
            }
        }
        for r in 0..R {
            let c = &mut self.c[(row + r) * self.c_stride + first..][..W * V::LANES];
            for w in 0..W {
                sum[r][w].store(&mut c[w * V::LANES..]);
            }
        }
    }
}

/// Columns of the panel that begins `column` columns into a matrix of `columns`: a multiple of three or four of the widest vectors
/// where possible, so that tiles fill the registers.
fn panel(columns: usize, column: usize) -> usize {
    let most = if columns.is_multiple_of(48) && !columns.is_multiple_of(64) { 48 } else { 64 };
    most.min(columns - column)
}

/// A matrix `[rows, columns]` for products with many rows at once: in panels of columns, each of which is contiguous.
#[derive(Clone, Debug, Default)]
pub(crate) struct Panels<T> {
    rows: usize,
    columns: usize,
    data: AlignedBuffer<T>,
}

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start<'a, T> {
    /// A bias in the first rows, as many as the number says; nothing in those after them.
    Bias(&'a [T], usize),
    /// Nothing.
    Zero,
}

impl<T: SimdReal> Panels<T> {
    /// Zeros.
    pub(crate) fn zeros(rows: usize, columns: usize) -> Self {
        let columns = padded(columns);
        Panels { rows, columns, data: AlignedBuffer::zeros(rows * columns) }
    }

    /// Writes `from [rows, columns]`, which is contiguous, to the place whose first element is `(row, column)`.
    pub(crate) fn set(&mut self, row: usize, column: usize, columns: usize, from: &[T]) {
        let mut start = 0;
        while start < self.columns {
            let wide = panel(self.columns, start);
            let (first, end) = (column.max(start), (column + columns).min(start + wide));
            if first < end {
                let data = &mut self.data[self.rows * start + row * wide..];
                for (to, from) in data.chunks_mut(wide).zip(from.chunks_exact(columns)) {
                    to[first - start..end - start].copy_from_slice(&from[first - column..end - column]);
                }
            }
            start += wide;
        }
    }

    /// The same for the transpose of `from [columns, rows]`.
    pub(crate) fn set_transposed(&mut self, row: usize, column: usize, rows: usize, from: &[T]) {
        let columns = from.len() / rows;
        let mut start = 0;
        while start < self.columns {
            let wide = panel(self.columns, start);
            let (first, end) = (column.max(start), (column + columns).min(start + wide));
            if first < end {
                let data = &mut self.data[self.rows * start + row * wide..];
                // Blocks keep both sides in the first-level cache.
                for block in (0..rows).step_by(64) {
                    for c in first..end {
                        let from = &from[(c - column) * rows..][..rows];
                        for r in block..rows.min(block + 64) {
                            data[r * wide + c - start] = from[r];
                        }
                    }
                }
            }
            start += wide;
        }
    }

    /// `c = start + a M` for `m` rows; rows of `a` and `c` are `a_stride` and `c_stride` apart.
    pub(crate) fn apply(&self, m: usize, a: &[T], a_stride: usize, start: Start<'_, T>, c: &mut [T], c_stride: usize) {
        dispatch(PanelProduct { matrix: self, m, a, a_stride, start, c, c_stride });
    }
}

struct PanelProduct<'a, T> {
    matrix: &'a Panels<T>,
    m: usize,
    a: &'a [T],
    a_stride: usize,
    start: Start<'a, T>,
    c: &'a mut [T],
    c_stride: usize,
}

/// Rows of a panel that are gone through for all rows of the left side before the next: they stay in the second-level cache.
const DEPTH: usize = 256;

impl<T: SimdReal> WithSimd for PanelProduct<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, t: S) {
        let (k, columns) = (self.matrix.rows, self.matrix.columns);
        let mut depth = 0;
        while depth < k {
            let end = k.min(depth + DEPTH);
            let mut column = 0;
            while column < columns {
                let wide = panel(columns, column);
                let start = k * column;
                self.panel::<T::Of<S>>(t, Part { from: depth, to: end, data: start + depth * wide..start + end * wide, wide, column });
                column += wide;
            }
            depth = end;
        }
    }
}

/// Some rows of a panel.
#[derive(Clone)]
struct Part {
    from: usize,
    to: usize,
    /// Where they lie.
    data: std::ops::Range<usize>,
    wide: usize,
    /// First column.
    column: usize,
}

impl<T: SimdReal> PanelProduct<'_, T> {
    #[inline(always)]
    fn panel<V: Lanes<Scalar = T>>(&mut self, t: V::Token, part: Part) {
        let vectors = part.wide / V::LANES;
        let mut v = 0;
        while v < vectors {
            let offset = v * V::LANES;
            // Vectors of 64 bytes come with 32 registers, shorter ones with at least 16.
            if size_of::<V>() != 64 {
                self.rows::<V, 6, 2>(t, &part, offset);
                v += 2;
            } else if vectors.is_multiple_of(4) {
                self.rows::<V, 6, 4>(t, &part, offset);
                v += 4;
            } else if vectors.is_multiple_of(3) {
                self.rows::<V, 8, 3>(t, &part, offset);
                v += 3;
            } else if vectors.is_multiple_of(2) {
                self.rows::<V, 8, 2>(t, &part, offset);
                v += 2;
            } else {
                self.rows::<V, 8, 1>(t, &part, offset);
                v += 1;
            }
        }
    }

    #[inline(always)]
    fn rows<V: Lanes<Scalar = T>, const R: usize, const W: usize>(&mut self, t: V::Token, part: &Part, offset: usize) {
        let mut row = 0;
        while row + R <= self.m {
            self.tile::<V, R, W>(t, part, offset, row);
            row += R;
        }
        while row + 2 <= self.m {
            self.tile::<V, 2, W>(t, part, offset, row);
            row += 2;
        }
        while row < self.m {
            self.tile::<V, 1, W>(t, part, offset, row);
            row += 1;
        }
    }

    #[inline(always)]
    fn tile<V: Lanes<Scalar = T>, const R: usize, const W: usize>(&mut self, t: V::Token, part: &Part, offset: usize, row: usize) {
        let first = part.column + offset;
        let mut sum = [[V::zero(t); W]; R];
        let mut a = [&self.a[..0]; R];
        for r in 0..R {
            let start = (row + r) * self.a_stride;
            a[r] = &self.a[start + part.from..start + part.to];
            if part.from > 0 {
                let c = &self.c[(row + r) * self.c_stride + first..][..W * V::LANES];
                sum[r].copy_from_slice(V::slice(t, c));
            } else if let Start::Bias(bias, rows) = self.start
                && row + r < rows
            {
                sum[r].copy_from_slice(V::slice(t, &bias[first..first + W * V::LANES]));
            }
        }
        let panel = &self.matrix.data[part.data.clone()];
        for (i, line) in panel.chunks_exact(part.wide).enumerate() {
            let b = V::slice(t, &line[offset..offset + W * V::LANES]);
            for r in 0..R {
                let x = V::splat(t, a[r][i]);
                for w in 0..W {
                    sum[r][w] = x.mul_add(b[w], sum[r][w]);
                }
            }
        }
        for r in 0..R {
            let c = &mut self.c[(row + r) * self.c_stride + first..][..W * V::LANES];
            V::slice_mut(t, c).copy_from_slice(&sum[r]);
        }
    }
}

/// `c[o][i] += Σ_m g[m][o] x[m][i]` for `m` rows, `outputs` columns of `g` and `inputs` columns of `x`, the latter whole vectors
/// of [`PAD`]: the gradient of a weight `[outputs, inputs]`.
pub(crate) struct Outer<'a, T> {
    pub(crate) m: usize,
    pub(crate) g: &'a [T],
    pub(crate) g_stride: usize,
    pub(crate) outputs: usize,
    pub(crate) x: &'a [T],
    pub(crate) x_stride: usize,
    pub(crate) inputs: usize,
    pub(crate) c: &'a mut [T],
    pub(crate) c_stride: usize,
}

impl<T: SimdReal> Outer<'_, T> {
    /// Adds.
    pub(crate) fn run(self) {
        debug_assert!(self.inputs.is_multiple_of(PAD));
        dispatch(self);
    }
}

/// Rows that are summed before they are added to memory, and columns of `g` that are packed for that.
const ROWS: usize = 192;
const PACKED: usize = 16;

impl<T: SimdReal> WithSimd for Outer<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, t: S) {
        let vectors = self.inputs / T::Of::<S>::LANES;
        let mut packed = [T::default(); ROWS * PACKED];
        let mut start = 0;
        while start < self.m {
            let rows = ROWS.min(self.m - start);
            let mut o = 0;
            while o < self.outputs {
                // Columns of `g` lie far apart: each line of the cache is fetched once, and used for all of `x`.
                let outputs = PACKED.min(self.outputs - o);
                let g = self.g[start * self.g_stride..].chunks(self.g_stride);
                for (to, g) in packed.as_chunks_mut::<PACKED>().0.iter_mut().zip(g).take(rows) {
                    to[..outputs].copy_from_slice(&g[o..o + outputs]);
                }
                let part = Strip { g: packed[..rows * PACKED].as_chunks().0, start, o, outputs };
                let mut v = 0;
                while v < vectors {
                    let left = vectors - v;
                    // As in products; 4 tiles of 4 or 2 of 8 are what is packed.
                    if size_of::<T::Of<S>>() != 64 {
                        self.strip::<T::Of<S>, 4, 2>(t, part, v);
                        v += 2;
                    } else if left.is_multiple_of(3) {
                        self.strip::<T::Of<S>, 8, 3>(t, part, v);
                        v += 3;
                    } else if left >= 2 {
                        self.strip::<T::Of<S>, 8, 2>(t, part, v);
                        v += 2;
                    } else {
                        self.strip::<T::Of<S>, 8, 1>(t, part, v);
                        v += 1;
                    }
                }
                o += outputs;
            }
            start += rows;
        }
    }
}

/// Packed columns of `g`.
#[derive(Clone, Copy)]
struct Strip<'a, T> {
    g: &'a [[T; PACKED]],
    /// First row.
    start: usize,
    /// First column, and how many.
    o: usize,
    outputs: usize,
}

impl<T: SimdReal> Outer<'_, T> {
    #[inline(always)]
    fn strip<V: Lanes<Scalar = T>, const R: usize, const W: usize>(&mut self, t: V::Token, part: Strip<'_, T>, v: usize) {
        let mut o = 0;
        while o + R <= part.outputs {
            self.tile::<V, R, W>(t, part, o, v * V::LANES);
            o += R;
        }
        while o < part.outputs {
            self.tile::<V, 1, W>(t, part, o, v * V::LANES);
            o += 1;
        }
    }

    #[inline(always)]
    fn tile<V: Lanes<Scalar = T>, const R: usize, const W: usize>(&mut self, t: V::Token, part: Strip<'_, T>, o: usize, first: usize) {
        let mut sum = [[V::zero(t); W]; R];
        for (g, x) in part.g.iter().zip(self.x[part.start * self.x_stride..].chunks(self.x_stride)) {
            let x = V::slice(t, &x[first..first + W * V::LANES]);
            let g = &g[o..o + R];
            for r in 0..R {
                let s = V::splat(t, g[r]);
                for w in 0..W {
                    sum[r][w] = s.mul_add(x[w], sum[r][w]);
                }
            }
        }
        for r in 0..R {
            let c = &mut self.c[(part.o + o + r) * self.c_stride + first..][..W * V::LANES];
            let c = V::slice_mut(t, c);
            for w in 0..W {
                c[w] += sum[r][w];
            }
        }
    }
}

/// `c[o] += Σ_m g[m][o]` for `m` rows and `c.len()` columns.
pub(crate) fn add_columns<T: SimdReal>(m: usize, g: &[T], g_stride: usize, c: &mut [T]) {
    dispatch(Columns { m, g, g_stride, c });
}

struct Columns<'a, T> {
    m: usize,
    g: &'a [T],
    g_stride: usize,
    c: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Columns<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let whole = self.c.len() - self.c.len() % T::Of::<S>::LANES;
        let (c, rest) = self.c.split_at_mut(whole);
        let c = T::Of::<S>::slice_mut(t, c);
        for g in self.g.chunks(self.g_stride).take(self.m) {
            for (c, &g) in c.iter_mut().zip(T::Of::<S>::slice(t, &g[..whole])) {
                *c += g;
            }
            for (c, &g) in rest.iter_mut().zip(&g[whole..]) {
                *c += g;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(i: usize) -> f64 {
        ((i * 7919 + 13) % 101) as f64 / 101.0 - 0.5
    }

    fn check<T: SimdReal>(tolerance: f64) {
        for (m, k, n) in [(1, 4, 16), (7, 33, 64), (13, 128, 144), (6, 68, 80), (20, 17, 5)] {
            let matrix = Matrix::<T>::new(k, n, |r, c| number(r * n + c));
            let wide = matrix.columns();
            let a: Vec<T> = (0..m * (k + 3)).map(|i| T::from_f64(number(3 * i))).collect();
            let bias: Vec<T> = (0..wide).map(|i| T::from_f64(number(5 * i))).collect();
            let mut c = vec![T::from_f64(7.0); m * (wide + 2)];
            matrix.apply(m, &a, k + 3, Some(&bias), &mut c, wide + 2);
            matrix.add(m, &a, k + 3, &mut c, wide + 2);
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|l| a[i * (k + 3) + l].to_f64() * number(l * n + j)).sum();
                    let want = bias[j].to_f64() + 2.0 * sum;
                    assert!((c[i * (wide + 2) + j].to_f64() - want).abs() < tolerance);
                }
                // A row alone has the same bits.
                let mut one = vec![T::from_f64(0.0); wide];
                matrix.apply(1, &a[i * (k + 3)..], k + 3, Some(&bias), &mut one, wide);
                matrix.add(1, &a[i * (k + 3)..], k + 3, &mut one, wide);
                assert_eq!(one[..n], c[i * (wide + 2)..i * (wide + 2) + n]);
            }
        }
    }

    #[test]
    fn products_are_right_and_rows_independent() {
        check::<f64>(1e-13);
        check::<f32>(2e-5);
    }

    fn check_panels<T: SimdReal>(tolerance: f64) {
        for (m, k, n) in [(1, 4, 16), (7, 33, 64), (13, 5, 144), (6, 68, 80), (20, 17, 5), (9, 70, 96), (11, 12, 50)] {
            let wide = padded(n);
            let weight: Vec<T> = (0..n * k).map(|i| T::from_f64(number(i))).collect();
            let mut forward = Panels::zeros(k, n);
            forward.set_transposed(0, 0, k, &weight);
            let mut backward = Panels::zeros(n, k);
            backward.set(0, 0, k, &weight);
            let a: Vec<T> = (0..m * (k + 3)).map(|i| T::from_f64(number(3 * i))).collect();
            let bias: Vec<T> = (0..wide).map(|i| T::from_f64(number(5 * i))).collect();
            let mut c = vec![T::from_f64(7.0); m * (wide + 2)];
            forward.apply(m, &a, k + 3, Start::Bias(&bias, m / 2), &mut c, wide + 2);
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|l| a[i * (k + 3) + l].to_f64() * weight[j * k + l].to_f64()).sum();
                    let want = sum + if i < m / 2 { bias[j].to_f64() } else { 0.0 };
                    assert!((c[i * (wide + 2) + j].to_f64() - want).abs() < tolerance);
                }
                let mut one = vec![T::from_f64(0.0); wide];
                forward.apply(1, &a[i * (k + 3)..], k + 3, Start::Bias(&bias, usize::from(i < m / 2)), &mut one, wide);
                assert_eq!(one[..n], c[i * (wide + 2)..i * (wide + 2) + n]);
            }
            // Back through the transpose, and the gradient of the weight.
            let back = padded(k);
            let mut x = vec![T::from_f64(0.0); m * back];
            backward.apply(m, &c, wide + 2, Start::Zero, &mut x, back);
            let mut gradient = vec![T::from_f64(1.0); n * back];
            Outer { m, g: &c, g_stride: wide + 2, outputs: n, x: &x, x_stride: back, inputs: back, c: &mut gradient, c_stride: back }.run();
            let mut sums = vec![T::from_f64(2.0); n];
            add_columns(m, &c, wide + 2, &mut sums);
            for j in 0..n {
                for l in 0..k {
                    for i in 0..m {
                        let row = &c[i * (wide + 2)..][..n];
                        let want: f64 = row.iter().enumerate().map(|(j, c)| c.to_f64() * weight[j * k + l].to_f64()).sum();
                        assert!((x[i * back + l].to_f64() - want).abs() < 10.0 * tolerance);
                    }
                    let want: f64 = (0..m).map(|i| c[i * (wide + 2) + j].to_f64() * x[i * back + l].to_f64()).sum();
                    assert!((gradient[j * back + l].to_f64() - 1.0 - want).abs() < 100.0 * tolerance);
                }
                let want: f64 = (0..m).map(|i| c[i * (wide + 2) + j].to_f64()).sum();
                assert!((sums[j].to_f64() - 2.0 - want).abs() < 10.0 * tolerance);
            }
        }
    }

    #[test]
    fn panel_products_and_their_gradients_are_right() {
        check_panels::<f64>(1e-13);
        check_panels::<f32>(2e-5);
    }
}
