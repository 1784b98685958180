//! Products of small dense matrices.
//!
//! Every element is a chain of fused multiply-adds over the inner index in its natural order, whatever tile it falls into, so
//! that a row has the same bits alone and among any others. Constant matrices lie in panels of 64 columns, inner index by
//! inner index: a panel is read as one stream.

use pulp::{Simd, WithSimd};
use scorefield_integrators::simd::{AlignedBuffer, Lanes, SimdReal, dispatch};

/// Rows are padded to this many columns, the widest vector.
const PAD: usize = 16;
/// Columns of a panel: four of the widest vectors.
const PANEL: usize = 64;

/// `n` rounded up to whole vectors.
pub(super) fn padded(n: usize) -> usize {
    n.next_multiple_of(PAD)
}

/// A constant matrix `[inner, columns]`; columns are padded with zeros.
#[derive(Clone, Debug)]
pub(super) struct Panels<T> {
    inner: usize,
    columns: usize,
    data: AlignedBuffer<T>,
}

impl<T: SimdReal> Panels<T> {
    /// From a function of inner index and column.
    pub(super) fn new(inner: usize, columns: usize, at: impl Fn(usize, usize) -> f64) -> Self {
        let wide = padded(columns);
        let mut data = AlignedBuffer::zeros(inner * wide);
        for c in 0..columns {
            let first = c / PANEL * PANEL;
            let width = PANEL.min(wide - first);
            for k in 0..inner {
                data[inner * first + k * width + c - first] = T::from_f64(at(k, c));
            }
        }
        Panels { inner, columns: wide, data }
    }

    /// The element of inner index `k` and column `c`; zero beyond the matrix.
    pub(super) fn at(&self, k: usize, c: usize) -> T {
        if k >= self.inner || c >= self.columns {
            return T::default();
        }
        let first = c / PANEL * PANEL;
        self.data[self.inner * first + k * PANEL.min(self.columns - first) + c - first]
    }

    /// Multiply-adds of a product with one row.
    pub(super) fn multiply_adds(&self) -> usize {
        self.inner * self.columns
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a, T> {
    /// Nothing.
    Zero,
    /// The same row for all rows.
    Bias(&'a [T]),
    /// What is in the result already.
    Sum,
}

/// `C = start + A B` for a constant `B`.
pub(super) struct Apply<'a, T> {
    pub(super) matrix: &'a Panels<T>,
    pub(super) rows: usize,
    pub(super) a: &'a [T],
    pub(super) a_row: usize,
    pub(super) start: Start<'a, T>,
    pub(super) c: &'a mut [T],
    pub(super) c_row: usize,
}

impl<T: SimdReal> Apply<'_, T> {
    /// A function of its own, so that its many tiles are compiled once.
    #[inline(never)]
    pub(super) fn run(self) {
        dispatch(self);
    }
}

impl<T: SimdReal> WithSimd for Apply<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let Apply { matrix, rows, a, a_row, start, c, c_row } = self;
        let mut first = 0;
        while first < matrix.columns {
            let width = PANEL.min(matrix.columns - first);
            let start = match start {
                Start::Bias(bias) => Start::Bias(&bias[first..]),
                other => other,
            };
            let b = &matrix.data[matrix.inner * first..][..matrix.inner * width];
            let c = &mut c[first..];
            Product { rows, inner: matrix.inner, columns: width, a, a_row, a_inner: 1, b, b_inner: width, start, c, c_row }
                .tiles::<T::Of<S>>(t);
            first += width;
        }
    }
}

/// `C = start + A B` for any `A [rows, inner]`, and `B [inner, columns]` and `C [rows, columns]` whose columns are whole vectors
/// side by side.
pub(super) struct Product<'a, T> {
    pub(super) rows: usize,
    pub(super) inner: usize,
    pub(super) columns: usize,
    pub(super) a: &'a [T],
    pub(super) a_row: usize,
    pub(super) a_inner: usize,
    pub(super) b: &'a [T],
    pub(super) b_inner: usize,
    pub(super) start: Start<'a, T>,
    pub(super) c: &'a mut [T],
    pub(super) c_row: usize,
}

impl<T: SimdReal> WithSimd for Product<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        self.tiles::<T::Of<S>>(t);
    }
}

impl<T: SimdReal> Product<'_, T> {
    /// As [`Apply::run`].
    #[inline(never)]
    pub(super) fn run(self) {
        dispatch(self);
    }

    #[inline(always)]
    fn tiles<V: Lanes<Scalar = T>>(mut self, t: V::Token) {
        if self.rows == 0 {
            return;
        }
        // The tiles below rely on these bounds.
        assert!(self.columns.is_multiple_of(V::LANES));
        assert!(self.inner > 0 && self.columns > 0);
        assert!((self.rows - 1) * self.a_row + (self.inner - 1) * self.a_inner < self.a.len());
        assert!((self.inner - 1) * self.b_inner + self.columns <= self.b.len());
        assert!((self.rows - 1) * self.c_row + self.columns <= self.c.len());
        if let Start::Bias(bias) = self.start {
            assert!(self.columns <= bias.len());
        }
        // Vectors of 64 bytes come with 32 registers, shorter ones with at least 16.
        // SAFETY: the bounds were just checked, and the tiles stay within `rows`, `inner` and `columns`.
        unsafe {
            if size_of::<V>() == 64 {
                self.wide::<V>(t);
            } else {
                self.narrow::<V>(t);
            }
        }
    }

    #[inline(always)]
    unsafe fn wide<V: Lanes<Scalar = T>>(&mut self, t: V::Token) {
        let vectors = self.columns / V::LANES;
        let mut v = 0;
        // SAFETY: as the caller's.
        unsafe {
            while v + 4 <= vectors {
                self.rows_of::<V, 6, 4>(t, v * V::LANES);
                v += 4;
            }
            while v + 2 <= vectors {
                self.rows_of::<V, 8, 2>(t, v * V::LANES);
                v += 2;
            }
            while v < vectors {
                self.rows_of::<V, 8, 1>(t, v * V::LANES);
                v += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn narrow<V: Lanes<Scalar = T>>(&mut self, t: V::Token) {
        let vectors = self.columns / V::LANES;
        let mut v = 0;
        // SAFETY: as the caller's.
        unsafe {
            while v + 2 <= vectors {
                self.rows_of::<V, 6, 2>(t, v * V::LANES);
                v += 2;
            }
            while v < vectors {
                self.rows_of::<V, 8, 1>(t, v * V::LANES);
                v += 1;
            }
        }
    }

    /// `W` vectors of columns from `first` on, for all rows, `R` at a time.
    #[inline(always)]
    unsafe fn rows_of<V: Lanes<Scalar = T>, const R: usize, const W: usize>(&mut self, t: V::Token, first: usize) {
        let mut row = 0;
        // SAFETY: as the caller's.
        unsafe {
            while row + R <= self.rows {
                self.tile::<V, R, W>(t, row, first);
                row += R;
            }
            match self.rows - row {
                0 => {}
                1 => self.tile::<V, 1, W>(t, row, first),
                2 => self.tile::<V, 2, W>(t, row, first),
                3 => self.tile::<V, 3, W>(t, row, first),
                4 => self.tile::<V, 4, W>(t, row, first),
                5 => self.tile::<V, 5, W>(t, row, first),
                left if R > 6 => {
                    if left == 6 {
                        self.tile::<V, 6, W>(t, row, first);
                    } else {
                        self.tile::<V, 7, W>(t, row, first);
                    }
                }
                _ => unreachable!("fewer than {R} rows are left"),
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<V: Lanes<Scalar = T>, const R: usize, const W: usize>(&mut self, t: V::Token, row: usize, first: usize) {
        let mut sum = [[V::zero(t); W]; R];
        // SAFETY: rows `row..row + R` and columns `first..first + W * LANES` are within the matrices, as `tiles` has checked.
        unsafe {
            let a = self.a.as_ptr().add(row * self.a_row);
            let b = self.b.as_ptr().add(first);
            let c = self.c.as_mut_ptr().add(row * self.c_row + first);
            match self.start {
                Start::Zero => {}
                Start::Bias(bias) => {
                    for r in 0..R {
                        for w in 0..W {
                            sum[r][w] = load(t, bias.as_ptr().add(first + w * V::LANES));
                        }
                    }
                }
                Start::Sum => {
                    for r in 0..R {
                        for w in 0..W {
                            sum[r][w] = load(t, c.add(r * self.c_row + w * V::LANES));
                        }
                    }
                }
            }
            for k in 0..self.inner {
                let mut line = [V::zero(t); W];
                for w in 0..W {
                    line[w] = load(t, b.add(k * self.b_inner + w * V::LANES));
                }
                for r in 0..R {
                    let x = V::splat(t, *a.add(r * self.a_row + k * self.a_inner));
                    for w in 0..W {
                        sum[r][w] = x.mul_add(line[w], sum[r][w]);
                    }
                }
            }
            for r in 0..R {
                for w in 0..W {
                    let to = std::slice::from_raw_parts_mut(c.add(r * self.c_row + w * V::LANES), V::LANES);
                    sum[r][w].store(to);
                }
            }
        }
    }
}

/// # Safety
/// `from` must have `LANES` elements behind it.
#[inline(always)]
unsafe fn load<V: Lanes>(t: V::Token, from: *const V::Scalar) -> V {
    // SAFETY: the caller's.
    V::load(t, unsafe { std::slice::from_raw_parts(from, V::LANES) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(i: usize) -> f64 {
        ((i * 7919 + 13) % 101) as f64 / 101.0 - 0.5
    }

    fn check<T: SimdReal>(tolerance: f64) {
        for (rows, inner, columns) in [(1, 4, 16), (7, 33, 64), (13, 96, 200), (6, 68, 112), (8, 5, 16), (21, 17, 5)] {
            let matrix = Panels::<T>::new(inner, columns, |k, c| number(k * columns + c));
            let (wide, a_row) = (padded(columns), inner + 3);
            let a: Vec<T> = (0..rows * a_row).map(|i| T::from_f64(number(3 * i))).collect();
            let bias: Vec<T> = (0..wide).map(|i| T::from_f64(number(5 * i))).collect();
            let mut c = vec![T::from_f64(7.0); rows * (wide + 2)];
            let apply = |a: &[T], rows, start, c: &mut [T], c_row| Apply { matrix: &matrix, rows, a, a_row, start, c, c_row }.run();
            apply(&a, rows, Start::Bias(&bias), &mut c, wide + 2);
            apply(&a, rows, Start::Sum, &mut c, wide + 2);
            // The same from plain arrays, and with A transposed.
            let plain: Vec<T> = (0..inner * wide)
                .map(|i| T::from_f64(if i % wide < columns { number(i / wide * columns + i % wide) } else { 0.0 }))
                .collect();
            let turned: Vec<T> = (0..inner * rows).map(|i| a[i % rows * a_row + i / rows]).collect();
            let mut other = vec![T::default(); rows * wide];
            let product = Product {
                rows,
                inner,
                columns: wide,
                a: &turned,
                a_row: 1,
                a_inner: rows,
                b: &plain,
                b_inner: wide,
                start: Start::Bias(&bias),
                c: &mut other,
                c_row: wide,
            };
            product.run();
            for i in 0..rows {
                let mut one = vec![T::default(); wide];
                apply(&a[i * a_row..], 1, Start::Bias(&bias), &mut one, wide);
                assert_eq!(one, other[i * wide..(i + 1) * wide]);
                // A row alone has the same bits.
                apply(&a[i * a_row..], 1, Start::Sum, &mut one, wide);
                assert_eq!(one[..], c[i * (wide + 2)..][..wide]);
                for j in 0..columns {
                    let sum: f64 = (0..inner).map(|k| a[i * a_row + k].to_f64() * number(k * columns + j)).sum();
                    let want = bias[j].to_f64() + 2.0 * sum;
                    assert!((one[j].to_f64() - want).abs() < tolerance);
                }
            }
        }
    }

    #[test]
    fn products_are_right_and_rows_independent() {
        check::<f64>(1e-13);
        check::<f32>(2e-5);
    }
}
