//! Counts the operations of a kernel: [`Counted`] are lanes that do the arithmetic of one f32 lane with AVX-512's estimates and
//! write down each operation. With the machine's speed for each kind this tells how far a kernel is from what arithmetic
//! alone would take (`cargo bench --bench limit`).

use crate::simd::{F32, Lanes, MAX_LANES, Terms};
use pulp::Scalar128b;
use std::cell::Cell;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub, SubAssign};

/// Numbers of operations by kind, per lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Fused multiply-add.
    pub fused: u64,
    /// Additions and subtractions.
    pub add: u64,
    /// Multiplications.
    pub mul: u64,
    /// Divisions.
    pub div: u64,
    /// Square roots.
    pub sqrt: u64,
    /// Estimates of `1/x` and `1/√x`.
    pub estimate: u64,
    /// Comparisons, selections, extrema, signs and operations on bits.
    pub other: u64,
}

impl Operations {
    /// Floating-point operations: two for a fused multiply-add, one for each other arithmetic operation.
    pub fn flops(&self) -> u64 {
        2 * self.fused + self.add + self.mul + self.div + self.sqrt + self.estimate
    }

    /// All operations, one vector instruction each.
    pub fn instructions(&self) -> u64 {
        self.fused + self.add + self.mul + self.div + self.sqrt + self.estimate + self.other
    }

    /// `n` times these.
    pub fn times(&self, n: u64) -> Self {
        let Operations { fused, add, mul, div, sqrt, estimate, other } = *self;
        Operations { fused: n * fused, add: n * add, mul: n * mul, div: n * div, sqrt: n * sqrt, estimate: n * estimate, other: n * other }
    }
}

impl Add for Operations {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Operations {
            fused: self.fused + o.fused,
            add: self.add + o.add,
            mul: self.mul + o.mul,
            div: self.div + o.div,
            sqrt: self.sqrt + o.sqrt,
            estimate: self.estimate + o.estimate,
            other: self.other + o.other,
        }
    }
}

thread_local! {
    static COUNT: Cell<Operations> = const {
        Cell::new(Operations { fused: 0, add: 0, mul: 0, div: 0, sqrt: 0, estimate: 0, other: 0 })
    };
}

/// The operations of this thread since the last call.
pub fn take() -> Operations {
    COUNT.take()
}

macro_rules! count {
    ($kind:ident, $n:expr) => {{
        let mut count = COUNT.get();
        count.$kind += $n;
        COUNT.set(count);
    }};
}

/// One f32 that counts what is done with it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub struct Counted(f32);

/// The instruction set whose series this type has.
type Like = F32<Scalar128b>;

macro_rules! operators {
    ($($trait:ident $method:ident $op:tt $kind:ident),*) => {
        $(impl $trait for Counted {
            type Output = Self;
            fn $method(self, o: Self) -> Self {
                count!($kind, 1);
                Counted(self.0 $op o.0)
            }
        })*
    };
}
operators!(Add add + add, Sub sub - add, Mul mul * mul, Div div / div);

impl Neg for Counted {
    type Output = Self;
    fn neg(self) -> Self {
        count!(other, 1);
        Counted(-self.0)
    }
}
impl AddAssign for Counted {
    fn add_assign(&mut self, o: Self) {
        *self = *self + o;
    }
}
impl SubAssign for Counted {
    fn sub_assign(&mut self, o: Self) {
        *self = *self - o;
    }
}

impl Lanes for Counted {
    type Scalar = f32;
    type Token = Scalar128b;
    type Mask = bool;
    const LANES: usize = 1;
    const MAGIC: f64 = Like::MAGIC;
    const TERMS: Terms = Like::TERMS;
    const LN: &'static [f64] = Like::LN;
    const ASIN: &'static [f64] = Like::ASIN;

    fn token(self) -> Scalar128b {
        Scalar128b
    }
    fn splat(_: Scalar128b, x: f32) -> Self {
        Counted(x)
    }
    fn load(_: Scalar128b, from: &[f32]) -> Self {
        Counted(from[0])
    }
    fn store(self, to: &mut [f32]) {
        to[0] = self.0;
    }
    fn slice(_: Scalar128b, from: &[f32]) -> &[Self] {
        // SAFETY: `Counted` is a transparent f32.
        unsafe { std::slice::from_raw_parts(from.as_ptr().cast(), from.len()) }
    }
    fn slice_mut(_: Scalar128b, from: &mut [f32]) -> &mut [Self] {
        // SAFETY: as in `slice`.
        unsafe { std::slice::from_raw_parts_mut(from.as_mut_ptr().cast(), from.len()) }
    }
    fn scalars(from: &[Self]) -> &[f32] {
        // SAFETY: as in `slice`.
        unsafe { std::slice::from_raw_parts(from.as_ptr().cast(), from.len()) }
    }
    fn scalars_mut(from: &mut [Self]) -> &mut [f32] {
        // SAFETY: as in `slice`.
        unsafe { std::slice::from_raw_parts_mut(from.as_mut_ptr().cast(), from.len()) }
    }
    fn mul_add(self, b: Self, c: Self) -> Self {
        count!(fused, 1);
        Counted(self.0.mul_add(b.0, c.0))
    }
    fn sqrt(self) -> Self {
        count!(sqrt, 1);
        Counted(self.0.sqrt())
    }
    fn abs(self) -> Self {
        count!(other, 1);
        Counted(self.0.abs())
    }
    fn max(self, o: Self) -> Self {
        count!(other, 1);
        Counted(self.0.max(o.0))
    }
    fn min(self, o: Self) -> Self {
        count!(other, 1);
        Counted(self.0.min(o.0))
    }
    fn lt(self, o: Self) -> bool {
        count!(other, 1);
        self.0 < o.0
    }
    fn select(mask: bool, yes: Self, no: Self) -> Self {
        count!(other, 1);
        if mask { yes } else { no }
    }
    fn and(_: Scalar128b, a: bool, b: bool) -> bool {
        count!(other, 1);
        a && b
    }
    fn exp2_of_magic(self) -> Self {
        // A shift and an addition.
        count!(other, 2);
        Counted(f32::from_bits((self.0.to_bits() << 23).wrapping_add(0x3f80_0000)))
    }
    fn split_exponent(self) -> (Self, Self) {
        const ROOT_HALF: u32 = std::f32::consts::FRAC_1_SQRT_2.to_bits();
        // Two additions, a shift and two logical operations on bits, and one subtraction.
        count!(other, 5);
        count!(add, 1);
        let k = self.0.to_bits().wrapping_add(0x3f80_0000 - ROOT_HALF);
        let m = (k & 0x007f_ffff) + ROOT_HALF;
        (Counted(f32::from_bits(m)), Counted((k >> 23) as f32 - 127.0))
    }
    fn uniform(_: Scalar128b, bits: &[u32; MAX_LANES]) -> Self {
        // Shift, conversion, addition, multiplication.
        count!(other, 2);
        count!(add, 1);
        count!(mul, 1);
        Counted(((bits[0] >> 9) as f32 + 0.5) * (1.0 / 8_388_608.0))
    }
    fn rsqrt_estimate(self) -> Option<Self> {
        count!(estimate, 1);
        Some(Counted(1.0 / self.0.sqrt()))
    }
    fn recip_estimate(self) -> Option<Self> {
        count!(estimate, 1);
        Some(Counted(1.0 / self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_computes() {
        let t = Scalar128b;
        take();
        let x = Counted::lit(t, 2.0);
        assert_eq!((x.mul_add(x, x) * x - x).0, 10.0);
        assert_eq!(take(), Operations { fused: 1, mul: 1, add: 1, ..Operations::default() });
        // The series are those of the real lanes, hence right.
        for (got, want) in [(x.exp().0, 2f32.exp()), (x.ln().0, 2f32.ln()), (x.rsqrt().0, 0.5f32.sqrt()), (x.acos().0, 0.0)] {
            assert!((got - want).abs() <= 4.0 * f32::EPSILON * want.abs().max(1.0), "{got} {want}");
        }
        let all = take();
        assert_eq!((all.sqrt, all.estimate, all.div), (1, 1, 0));
        assert!(all.flops() > all.instructions() - all.other && all.times(2) == all + all);
        let (s, c) = Counted::lit(t, 0.125).sin_cos_turns();
        assert!((s.0 - 0.5f32.sqrt()).abs() < 1e-6 && (c.0 - 0.5f32.sqrt()).abs() < 1e-6);
        let (m, e) = Counted(40.0).split_exponent();
        assert_eq!(m.0 * e.0.exp2(), 40.0);
    }
}
