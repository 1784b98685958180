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
}
