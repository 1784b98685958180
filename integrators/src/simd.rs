//! Vectors of replicas (or of pairs, or of atoms): one trait over `f32` and `f64` and over instruction sets, so that a
//! kernel is written once and the best version of it runs on any machine.
//!
//! A kernel is a function generic over [`Lanes`], marked `#[inline(always)]`, and entered through [`dispatch`]. It calls no
//! closure and no `array::map` on vectors: those are functions of their own, compiled without the instruction set, in which
//! every vector operation becomes a call. Every lane
//! goes through the same correctly rounded operations whatever its neighbours hold, so a result does not depend on how
//! work is laid out in lanes; it may depend on the instruction set (fused multiply-add or not).

use crate::array::Real;
use crate::error::{Result, invalid};
use pulp::{Simd, WithSimd};
use serde::{Deserialize, Serialize};
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub, SubAssign};
use std::sync::OnceLock;

/// Widest vector of any supported instruction set, in lanes.
pub const MAX_LANES: usize = 16;

/// A vector of floating-point numbers of one instruction set.
pub trait Lanes:
    Copy
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
{
    /// Element type.
    type Scalar: Real;
    /// Proof that the instruction set is there.
    type Token: Simd;
    /// One truth value per lane.
    type Mask: Copy;
    /// Number of lanes.
    const LANES: usize;

    /// The instruction set's token.
    fn token(self) -> Self::Token;
    /// The same value in every lane.
    fn splat(t: Self::Token, x: Self::Scalar) -> Self;
    /// A constant in every lane, rounded to the element type.
    #[inline(always)]
    fn lit(t: Self::Token, x: f64) -> Self {
        Self::splat(t, Self::Scalar::from_f64(x))
    }
    /// Zero in every lane.
    #[inline(always)]
    fn zero(t: Self::Token) -> Self {
        Self::lit(t, 0.0)
    }
    /// The first `LANES` elements of `from`.
    fn load(t: Self::Token, from: &[Self::Scalar]) -> Self;
    /// Writes the lanes to the first `LANES` elements of `to`.
    fn store(self, to: &mut [Self::Scalar]);
    /// `from` as vectors; its length must be a multiple of `LANES`.
    fn slice(t: Self::Token, from: &[Self::Scalar]) -> &[Self];
    /// `from` as mutable vectors; its length must be a multiple of `LANES`.
    fn slice_mut(t: Self::Token, from: &mut [Self::Scalar]) -> &mut [Self];

    /// Vectors as their scalars.
    fn scalars(from: &[Self]) -> &[Self::Scalar];
    /// Vectors as their mutable scalars.
    fn scalars_mut(from: &mut [Self]) -> &mut [Self::Scalar];

    /// `self * b + c`, fused where the instruction set does so at full speed.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// The larger of each lane.
    fn max(self, o: Self) -> Self;
    /// The smaller of each lane.
    fn min(self, o: Self) -> Self;
    /// `self < o`.
    fn lt(self, o: Self) -> Self::Mask;
    /// `yes` where `mask`, else `no`.
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// Both masks at once.
    fn and(t: Self::Token, a: Self::Mask, b: Self::Mask) -> Self::Mask;

    /// `2^n` for the integer `n = self − magic`, where `magic` is 1.5 · 2^(mantissa bits); see [`Lanes::exp`].
    fn exp2_of_magic(self) -> Self;
    /// Mantissa in [√½, √2) and exponent, so that `self = mantissa · 2^exponent`, for positive normal numbers.
    fn split_exponent(self) -> (Self, Self);
    /// Uniform numbers in (0, 1) from 32 random bits per lane.
    fn uniform(t: Self::Token, bits: &[u32; MAX_LANES]) -> Self;
    /// 1.5 · 2^(mantissa bits): adding it rounds to an integer.
    const MAGIC: f64;
    /// Terms of the series of exp and sin/cos, and Newton steps, that reach this type's precision.
    const TERMS: Terms;
    /// A hardware estimate of `1/√self` good to 14 bits, where there is one.
    fn rsqrt_estimate(self) -> Option<Self>;
    /// A hardware estimate of `1/self` good to 14 bits, where there is one.
    fn recip_estimate(self) -> Option<Self>;
    /// Coefficients of `(ln(1 + y) − y + y²/2)/y³` on [√½ − 1, √2 − 1], lowest first (Chebyshev fit in 50 digits).
    const LN: &'static [f64];
    /// Coefficients of `asin(√z)/√z` on [0, ¼], lowest first (Chebyshev fit of the exact function in 40 digits).
    const ASIN: &'static [f64];

    /// Sum over lanes, as a balanced tree.
    #[inline(always)]
    fn total(self) -> Self::Scalar {
        let mut a = [Self::Scalar::default(); MAX_LANES];
        self.store(&mut a);
        let mut n = Self::LANES;
        while n > 1 {
            n /= 2;
            for l in 0..n {
                a[l] += a[l + n];
            }
        }
        a[0]
    }

    /// The nearest integer (ties to even), for |x| far below 2^(mantissa bits).
    #[inline(always)]
    fn round(self) -> Self {
        let magic = Self::lit(self.token(), Self::MAGIC);
        (self + magic) - magic
    }

    /// `1/√self` for positive normal numbers, to a few units of rounding: a hardware estimate with Newton steps where that is
    /// faster than dividing.
    #[inline(always)]
    fn rsqrt(self) -> Self {
        match self.rsqrt_estimate() {
            None => Self::lit(self.token(), 1.0) / self.sqrt(),
            Some(estimate) => {
                let t = self.token();
                let half = self * Self::lit(t, -0.5);
                let mut y = estimate;
                let mut step = 0;
                while step < Self::TERMS.newton {
                    // y (3/2 − x y²/2)
                    y = y * (half * y).mul_add(y, Self::lit(t, 1.5));
                    step += 1;
                }
                y
            }
        }
    }

    /// `1/self` for normal numbers, to a few units of rounding; as [`Lanes::rsqrt`].
    #[inline(always)]
    fn recip(self) -> Self {
        let t = self.token();
        match self.recip_estimate() {
            None => Self::lit(t, 1.0) / self,
            Some(estimate) => {
                let mut y = estimate;
                let mut step = 0;
                while step < Self::TERMS.newton {
                    // y + y (1 − x y)
                    y = y.mul_add((-self).mul_add(y, Self::lit(t, 1.0)), y);
                    step += 1;
                }
                y
            }
        }
    }

    /// `e^self`, relative error a few units of rounding; saturates where the result would leave the normal numbers.
    #[inline(always)]
    fn exp(self) -> Self {
        let t = self.token();
        let x = self.max(Self::lit(t, Self::TERMS.exp_min)).min(Self::lit(t, Self::TERMS.exp_max));
        let magic = Self::lit(t, Self::MAGIC);
        let shifted = x.mul_add(Self::lit(t, std::f64::consts::LOG2_E), magic);
        let n = shifted - magic;
        // ln 2 in two parts, the first short enough that n times it is exact.
        let r = n.mul_add(Self::lit(t, -0.693_145_751_953_125), x);
        let r = n.mul_add(Self::lit(t, -1.428_606_820_309_417e-6), r);
        let mut p = Self::lit(t, inverse_factorial(Self::TERMS.exp));
        let mut k = Self::TERMS.exp;
        while k > 0 {
            k -= 1;
            p = p.mul_add(r, Self::lit(t, inverse_factorial(k)));
        }
        p * shifted.exp2_of_magic()
    }

    /// Natural logarithm of a positive normal number: with mantissa `1 + y`, `y − y²/2 + y³ q(y) + e ln 2`.
    #[inline(always)]
    fn ln(self) -> Self {
        let t = self.token();
        let (m, e) = self.split_exponent();
        let y = m - Self::lit(t, 1.0);
        let mut k = Self::LN.len() - 1;
        let mut q = Self::lit(t, Self::LN[k]);
        while k > 0 {
            k -= 1;
            q = q.mul_add(y, Self::lit(t, Self::LN[k]));
        }
        let y2 = y * y;
        let tail = (y * y2).mul_add(q, y2 * Self::lit(t, -0.5));
        let low = e.mul_add(Self::lit(t, 1.428_606_820_309_417e-6), tail);
        e.mul_add(Self::lit(t, 0.693_145_751_953_125), y + low)
    }

    /// Sine and cosine of `2π self` for `self` in [0, 1].
    #[inline(always)]
    fn sin_cos_turns(self) -> (Self, Self) {
        let t = self.token();
        let quarter = (self * Self::lit(t, 4.0)).round();
        let f = quarter.mul_add(Self::lit(t, -0.25), self);
        let a = f * Self::lit(t, 2.0 * std::f64::consts::PI);
        let z = a * a;
        let s = alternating_series(t, z, 1, Self::TERMS.sin) * a;
        let c = alternating_series(t, z, 0, Self::TERMS.cos);
        // Quarter turns 0..4: (s, c), (c, −s), (−s, −c), (−c, s), (s, c).
        let [h1, h3, h5, h7] = [Self::lit(t, 0.5), Self::lit(t, 1.5), Self::lit(t, 2.5), Self::lit(t, 3.5)];
        let odd_1 = Self::and(t, h1.lt(quarter), quarter.lt(h3));
        let odd_3 = Self::and(t, h5.lt(quarter), quarter.lt(h7));
        let swapped_s = Self::select(odd_3, c, Self::select(odd_1, c, s));
        let swapped_c = Self::select(odd_3, s, Self::select(odd_1, s, c));
        let sin_negative = Self::and(t, h3.lt(quarter), quarter.lt(h7));
        let cos_negative = Self::and(t, h1.lt(quarter), quarter.lt(h5));
        (Self::select(sin_negative, -swapped_s, swapped_s), Self::select(cos_negative, -swapped_c, swapped_c))
    }

    /// Arc cosine, with arguments outside [−1, 1] taken as ±1.
    #[inline(always)]
    fn acos(self) -> Self {
        let t = self.token();
        let one = Self::lit(t, 1.0);
        let half = Self::lit(t, 0.5);
        let a = self.abs().min(one);
        let small = a.lt(half);
        let z_large = (one - a) * half;
        let z = Self::select(small, a * a, z_large);
        let root = Self::select(small, a, z_large.sqrt());
        let mut p = Self::lit(t, Self::ASIN[Self::ASIN.len() - 1]);
        let mut k = Self::ASIN.len() - 1;
        while k > 0 {
            k -= 1;
            p = p.mul_add(z, Self::lit(t, Self::ASIN[k]));
        }
        let asin = p * root;
        // |x| < ½: π/2 − asin|x|; else 2 asin √((1 − |x|)/2). Then reflect for negative x.
        let positive = Self::select(small, Self::lit(t, std::f64::consts::FRAC_PI_2) - asin, asin + asin);
        let reflected = Self::lit(t, std::f64::consts::PI) - positive;
        Self::select(self.lt(Self::zero(t)), reflected, positive)
    }
}

/// The AVX-512 token where `S` is that instruction set; decided at compile time.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn as_v4<S: Simd>(token: S) -> Option<pulp::x86::V4> {
    if std::any::TypeId::of::<S>() == std::any::TypeId::of::<pulp::x86::V4>() {
        // SAFETY: the types are the same.
        Some(unsafe { std::mem::transmute_copy(&token) })
    } else {
        None
    }
}

/// `Σₖ (−1)ᵏ zᵏ / (2k + from)!`, k up to `terms`: sine over its argument (`from` 1) or cosine (`from` 0) of √z.
#[inline(always)]
fn alternating_series<V: Lanes>(t: V::Token, z: V, from: usize, terms: usize) -> V {
    let mut k = terms;
    let mut p = V::lit(t, alternating(k) * inverse_factorial(2 * k + from));
    while k > 0 {
        k -= 1;
        p = p.mul_add(z, V::lit(t, alternating(k) * inverse_factorial(2 * k + from)));
    }
    p
}

/// How many terms of each series a precision needs.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    exp: usize,
    exp_min: f64,
    exp_max: f64,
    newton: usize,
    sin: usize,
    cos: usize,
}

#[inline(always)]
const fn inverse_factorial(n: usize) -> f64 {
    let mut f = 1.0;
    let mut k = 2;
    while k <= n {
        f *= k as f64;
        k += 1;
    }
    1.0 / f
}

#[inline(always)]
const fn alternating(k: usize) -> f64 {
    if k.is_multiple_of(2) { 1.0 } else { -1.0 }
}

/// `f32` lanes of the instruction set `S`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct F32<S: Simd>(S, S::f32s);

/// `f64` lanes of the instruction set `S`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct F64<S: Simd>(S, S::f64s);

macro_rules! operators {
    ($v:ident, $neg:ident, $($trait:ident $method:ident $op:ident),*) => {
        $(impl<S: Simd> $trait for $v<S> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, o: Self) -> Self {
                $v(self.0, self.0.$op(self.1, o.1))
            }
        })*
        impl<S: Simd> Neg for $v<S> {
            type Output = Self;
            #[inline(always)]
            fn neg(self) -> Self {
                $v(self.0, self.0.$neg(self.1))
            }
        }
        impl<S: Simd> AddAssign for $v<S> {
            #[inline(always)]
            fn add_assign(&mut self, o: Self) {
                *self = *self + o;
            }
        }
        impl<S: Simd> SubAssign for $v<S> {
            #[inline(always)]
            fn sub_assign(&mut self, o: Self) {
                *self = *self - o;
            }
        }
    };
}
operators!(F32, neg_f32s, Add add add_f32s, Sub sub sub_f32s, Mul mul mul_f32s, Div div div_f32s);
operators!(F64, neg_f64s, Add add add_f64s, Sub sub sub_f64s, Mul mul mul_f64s, Div div div_f64s);

macro_rules! lanes_common {
    ($v:ident, $scalar:ty, $vec:ident, $mask:ident, $lanes:ident,
     $splat:ident, $mul_add:ident, $sqrt:ident, $abs:ident, $max:ident, $min:ident, $lt:ident, $select:ident, $and:ident) => {
        type Scalar = $scalar;
        type Token = S;
        type Mask = S::$mask;
        const LANES: usize = S::$lanes;

        #[inline(always)]
        fn token(self) -> S {
            self.0
        }
        #[inline(always)]
        fn splat(t: S, x: $scalar) -> Self {
            $v(t, t.$splat(x))
        }
        #[inline(always)]
        fn load(t: S, from: &[$scalar]) -> Self {
            Self::slice(t, &from[..Self::LANES])[0]
        }
        #[inline(always)]
        fn store(self, to: &mut [$scalar]) {
            Self::slice_mut(self.0, &mut to[..Self::LANES])[0] = self;
        }
        #[inline(always)]
        fn slice(_: S, from: &[$scalar]) -> &[Self] {
            const { assert!(size_of::<Self>() == size_of::<$scalar>() * Self::LANES) };
            // SAFETY: `Self` is a zero-sized token, proven by the argument, and a plain vector of LANES scalars, whose
            // alignment pulp keeps at the scalar's.
            const { assert!(align_of::<Self>() == align_of::<$scalar>()) };
            unsafe { std::slice::from_raw_parts(from.as_ptr().cast(), from.len() / Self::LANES) }
        }
        #[inline(always)]
        fn slice_mut(_: S, from: &mut [$scalar]) -> &mut [Self] {
            const { assert!(size_of::<Self>() == size_of::<$scalar>() * Self::LANES) };
            const { assert!(align_of::<Self>() == align_of::<$scalar>()) };
            // SAFETY: as in `slice`.
            unsafe { std::slice::from_raw_parts_mut(from.as_mut_ptr().cast(), from.len() / Self::LANES) }
        }
        #[inline(always)]
        fn scalars(from: &[Self]) -> &[$scalar] {
            // SAFETY: the reverse of `slice`.
            unsafe { std::slice::from_raw_parts(from.as_ptr().cast(), from.len() * Self::LANES) }
        }
        #[inline(always)]
        fn scalars_mut(from: &mut [Self]) -> &mut [$scalar] {
            // SAFETY: the reverse of `slice_mut`.
            unsafe { std::slice::from_raw_parts_mut(from.as_mut_ptr().cast(), from.len() * Self::LANES) }
        }
        #[inline(always)]
        fn mul_add(self, b: Self, c: Self) -> Self {
            // Without the instruction a fused product is a slow library call.
            if std::any::TypeId::of::<S>() == std::any::TypeId::of::<pulp::Scalar128b>() {
                return self * b + c;
            }
            $v(self.0, self.0.$mul_add(self.1, b.1, c.1))
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            $v(self.0, self.0.$sqrt(self.1))
        }
        #[inline(always)]
        fn abs(self) -> Self {
            $v(self.0, self.0.$abs(self.1))
        }
        #[inline(always)]
        fn max(self, o: Self) -> Self {
            $v(self.0, self.0.$max(self.1, o.1))
        }
        #[inline(always)]
        fn min(self, o: Self) -> Self {
            $v(self.0, self.0.$min(self.1, o.1))
        }
        #[inline(always)]
        fn lt(self, o: Self) -> Self::Mask {
            self.0.$lt(self.1, o.1)
        }
        #[inline(always)]
        fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
            $v(yes.0, yes.0.$select(mask, yes.1, no.1))
        }
        #[inline(always)]
        fn and(t: S, a: Self::Mask, b: Self::Mask) -> Self::Mask {
            t.$and(a, b)
        }
    };
}

impl<S: Simd> Lanes for F32<S> {
    lanes_common!(
        F32,
        f32,
        f32s,
        m32s,
        F32_LANES,
        splat_f32s,
        mul_add_e_f32s,
        sqrt_f32s,
        abs_f32s,
        max_f32s,
        min_f32s,
        less_than_f32s,
        select_f32s,
        and_m32s
    );
    const MAGIC: f64 = 12_582_912.0;
    const TERMS: Terms = Terms { exp: 7, exp_min: -87.0, exp_max: 88.0, newton: 1, sin: 4, cos: 4 };
    const ASIN: &'static [f64] =
        &[0.999999995983738, 0.16666782005775338, 0.07494696687423973, 0.04552063563171457, 0.02399399965364759, 0.04241737375979984];
    const LN: &'static [f64] = &[
        0.33333330728190674,
        -0.25000306422569796,
        0.2000104509416068,
        -0.16641281463106394,
        0.14214495923947962,
        -0.1299818376365153,
        0.12622319849228375,
        -0.0790274377239344,
    ];

    #[inline(always)]
    fn rsqrt_estimate(self) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if let Some(v4) = as_v4(self.0) {
            let x = pulp::bytemuck::cast(self.1);
            return Some(F32(self.0, pulp::bytemuck::cast(v4.avx512f._mm512_rsqrt14_ps(x))));
        }
        None
    }

    #[inline(always)]
    fn recip_estimate(self) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if let Some(v4) = as_v4(self.0) {
            let x = pulp::bytemuck::cast(self.1);
            return Some(F32(self.0, pulp::bytemuck::cast(v4.avx512f._mm512_rcp14_ps(x))));
        }
        None
    }

    #[inline(always)]
    fn exp2_of_magic(self) -> Self {
        let t = self.0;
        let bits = t.transmute_u32s_f32s(self.1);
        let bits = t.wrapping_dyn_shl_u32s(bits, t.splat_u32s(23));
        F32(t, t.transmute_f32s_u32s(t.add_u32s(bits, t.splat_u32s(0x3f80_0000))))
    }

    #[inline(always)]
    fn split_exponent(self) -> (Self, Self) {
        const ROOT_HALF: u32 = std::f32::consts::FRAC_1_SQRT_2.to_bits();
        let t = self.0;
        let k = t.add_u32s(t.transmute_u32s_f32s(self.1), t.splat_u32s(0x3f80_0000 - ROOT_HALF));
        let e = t.wrapping_dyn_shr_u32s(k, t.splat_u32s(23));
        // 2^23 + e, exactly, by writing e into the mantissa.
        let e = F32(t, t.transmute_f32s_u32s(t.or_u32s(e, t.splat_u32s(0x4b00_0000)))) - Self::lit(t, 8_388_608.0 + 127.0);
        let m = t.add_u32s(t.and_u32s(k, t.splat_u32s(0x007f_ffff)), t.splat_u32s(ROOT_HALF));
        (F32(t, t.transmute_f32s_u32s(m)), e)
    }

    #[inline(always)]
    fn uniform(t: S, bits: &[u32; MAX_LANES]) -> Self {
        let mut u = [0f32; MAX_LANES];
        for l in 0..Self::LANES {
            u[l] = ((bits[l] >> 9) as i32 as f32 + 0.5) * (1.0 / 8_388_608.0);
        }
        Self::load(t, &u)
    }
}

impl<S: Simd> Lanes for F64<S> {
    lanes_common!(
        F64,
        f64,
        f64s,
        m64s,
        F64_LANES,
        splat_f64s,
        mul_add_e_f64s,
        sqrt_f64s,
        abs_f64s,
        max_f64s,
        min_f64s,
        less_than_f64s,
        select_f64s,
        and_m64s
    );
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    const TERMS: Terms = Terms { exp: 13, exp_min: -708.0, exp_max: 709.0, newton: 2, sin: 8, cos: 8 };
    const ASIN: &'static [f64] = &[
        1.0,
        0.16666666666664942,
        0.07500000000385201,
        0.044642856805998936,
        0.03038195969768514,
        0.022371749733164054,
        0.01735977964134998,
        0.013884842826402082,
        0.012170138592391726,
        0.0065293020047365695,
        0.019513468251252167,
        -0.016187392271599134,
        0.03187962140081284,
    ];
    const LN: &'static [f64] = &[
        0.33333333333333176,
        -0.2499999999999954,
        0.20000000000210874,
        -0.16666666667111316,
        0.14285714239843317,
        -0.12499999892217775,
        0.1111111487790673,
        -0.10000010390984712,
        0.09090760495391416,
        -0.08332845479787004,
        0.07695322356967071,
        -0.07155040391259702,
        0.06637758835906711,
        -0.060867462424881856,
        0.059358470292036815,
        -0.06620199721841333,
        0.06277673141257632,
        -0.02926977065702344,
    ];

    #[inline(always)]
    fn rsqrt_estimate(self) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if let Some(v4) = as_v4(self.0) {
            let x = pulp::bytemuck::cast(self.1);
            return Some(F64(self.0, pulp::bytemuck::cast(v4.avx512f._mm512_rsqrt14_pd(x))));
        }
        None
    }

    #[inline(always)]
    fn recip_estimate(self) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if let Some(v4) = as_v4(self.0) {
            let x = pulp::bytemuck::cast(self.1);
            return Some(F64(self.0, pulp::bytemuck::cast(v4.avx512f._mm512_rcp14_pd(x))));
        }
        None
    }

    #[inline(always)]
    fn exp2_of_magic(self) -> Self {
        let t = self.0;
        let bits = t.transmute_u64s_f64s(self.1);
        let bits = t.mul_u64s(bits, t.splat_u64s(1 << 52));
        F64(t, t.transmute_f64s_u64s(t.add_u64s(bits, t.splat_u64s(0x3ff0_0000_0000_0000))))
    }

    #[inline(always)]
    fn split_exponent(self) -> (Self, Self) {
        const ROOT_HALF: u64 = std::f64::consts::FRAC_1_SQRT_2.to_bits();
        let t = self.0;
        let k = t.add_u64s(t.transmute_u64s_f64s(self.1), t.splat_u64s(0x3ff0_0000_0000_0000 - ROOT_HALF));
        // The exponent is the high word shifted by 20; as the high word of a double of 2^84 it counts 2^64 each.
        let words: S::u32s = pulp::bytemuck::cast(k);
        let shift: S::u32s = pulp::bytemuck::cast(t.splat_u64s(20 << 32));
        let e: S::u64s = pulp::bytemuck::cast(t.wrapping_dyn_shr_u32s(words, shift));
        let e = t.or_u64s(t.and_u64s(e, t.splat_u64s(0xffff_ffff_0000_0000)), t.splat_u64s(0x4530_0000_0000_0000));
        let two_84 = 19_342_813_113_834_066_795_298_816.0;
        let e = F64(t, t.transmute_f64s_u64s(e)) - Self::lit(t, two_84);
        let e = e.mul_add(Self::lit(t, 5.421_010_862_427_522e-20), Self::lit(t, -1023.0));
        let m = t.add_u64s(t.and_u64s(k, t.splat_u64s(0x000f_ffff_ffff_ffff)), t.splat_u64s(ROOT_HALF));
        (F64(t, t.transmute_f64s_u64s(m)), e)
    }

    #[inline(always)]
    fn uniform(t: S, bits: &[u32; MAX_LANES]) -> Self {
        let mut u = [0f64; MAX_LANES];
        for l in 0..Self::LANES {
            u[l] = (bits[l] as f64 + 0.5) * (1.0 / 4_294_967_296.0);
        }
        Self::load(t, &u)
    }
}

/// Instruction sets with kernels of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isa {
    /// AVX-512 (x86-64-v4).
    #[serde(rename = "x86-64-v4")]
    V4,
    /// AVX2 and FMA (x86-64-v3).
    #[serde(rename = "x86-64-v3")]
    V3,
    /// NEON (64-bit Arm).
    Neon,
    /// Plain arithmetic, any machine.
    Portable,
}

impl Isa {
    /// All names, best first, as written on the command line.
    pub const NAMES: [&'static str; 4] = ["x86-64-v4", "x86-64-v3", "neon", "portable"];

    /// The name as written on the command line and in checkpoints.
    pub fn name(self) -> &'static str {
        Isa::NAMES[match self {
            Isa::V4 => 0,
            Isa::V3 => 1,
            Isa::Neon => 2,
            Isa::Portable => 3,
        }]
    }

    /// Whether this machine has it.
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::V4 => pulp::x86::V4::try_new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Isa::V3 => pulp::x86::V3::try_new().is_some(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => pulp::aarch64::Neon::try_new().is_some(),
            Isa::Portable => true,
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// The best instruction set of this machine.
    pub fn best() -> Isa {
        [Isa::V4, Isa::V3, Isa::Neon].into_iter().find(|isa| isa.available()).unwrap_or(Isa::Portable)
    }
}

impl std::str::FromStr for Isa {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        [Isa::V4, Isa::V3, Isa::Neon, Isa::Portable]
            .into_iter()
            .find(|isa| isa.name() == text)
            .ok_or_else(|| format!("`{text}` is not an instruction set; known are {}", Isa::NAMES.join(", ")))
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

static CHOSEN: OnceLock<Isa> = OnceLock::new();

/// Fixes the instruction set of this process; possible once, before the first kernel runs.
///
/// # Errors
/// Where the machine lacks it, or another one is already in use.
pub fn choose_isa(isa: Isa) -> Result<()> {
    if !isa.available() {
        return invalid(format!("this machine has no {isa}; its best is {}", Isa::best()));
    }
    if *CHOSEN.get_or_init(|| isa) != isa {
        return invalid(format!("{isa} chosen, but kernels already run with {}", current_isa()));
    }
    Ok(())
}

/// The instruction set in use: what [`choose_isa`] fixed, else the best.
pub fn current_isa() -> Isa {
    *CHOSEN.get_or_init(Isa::best)
}

/// Number of lanes of a vector of `T` in the instruction set in use.
pub fn lanes<T: Real>() -> usize {
    struct Count<T>(std::marker::PhantomData<T>);
    impl<T: Real> WithSimd for Count<T> {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            size_of::<S::f32s>() / size_of::<T>()
        }
    }
    dispatch(Count::<T>(std::marker::PhantomData))
}

/// Runs `op` compiled for the instruction set in use.
#[inline]
pub fn dispatch<Op: WithSimd>(op: Op) -> Op::Output {
    dispatch_on(current_isa(), op)
}

/// Runs `op` compiled for `isa`, or for the portable set where the machine lacks it.
pub fn dispatch_on<Op: WithSimd>(isa: Isa, op: Op) -> Op::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::V4 => {
            if let Some(s) = pulp::x86::V4::try_new() {
                return Simd::vectorize(s, op);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::V3 => {
            if let Some(s) = pulp::x86::V3::try_new() {
                return Simd::vectorize(s, op);
            }
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => {
            if let Some(s) = pulp::aarch64::Neon::try_new() {
                return Simd::vectorize(s, op);
            }
        }
        _ => {}
    }
    Simd::vectorize(pulp::Scalar128b, op)
}

/// Scratch memory that begins at a cache line, so that vector loads never straddle two.
#[derive(Clone, Debug, Default)]
pub struct AlignedBuffer<T> {
    lines: Vec<Line>,
    len: usize,
    element: std::marker::PhantomData<T>,
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl<T: Real> AlignedBuffer<T> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        AlignedBuffer { lines: vec![Line([0; 64]); (len * size_of::<T>()).div_ceil(64)], len, element: std::marker::PhantomData }
    }

    /// Grows to at least `len` elements; what was in it is lost when it grows.
    pub fn reserve(&mut self, len: usize) {
        if self.len < len {
            *self = Self::zeros(len);
        }
    }
}

impl<T: Real> std::ops::Deref for AlignedBuffer<T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: T is f32 or f64 (`Real` is implemented for nothing else here), for which all bit patterns are valid, and
        // the lines hold at least `len` of them, zeroed at allocation.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T: Real> std::ops::DerefMut for AlignedBuffer<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Scalars that have vectors: picks the [`Lanes`] type of an instruction set.
pub trait SimdReal: Real {
    /// Vectors of this scalar.
    type Of<S: Simd>: Lanes<Scalar = Self, Token = S>;
}
impl SimdReal for f32 {
    type Of<S: Simd> = F32<S>;
}
impl SimdReal for f64 {
    type Of<S: Simd> = F64<S>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn available() -> Vec<Isa> {
        [Isa::V4, Isa::V3, Isa::Neon, Isa::Portable].into_iter().filter(|i| i.available()).collect()
    }

    /// Applies a function of lanes to every element of a list.
    struct Map<'a, T: SimdReal, F>(&'a [T], F);
    trait LaneFn {
        fn call<V: Lanes>(&self, x: V) -> [V; 2];
    }
    impl<T: SimdReal, F: LaneFn> WithSimd for Map<'_, T, F> {
        type Output = [Vec<f64>; 2];
        #[inline(always)]
        fn with_simd<S: Simd>(self, t: S) -> Self::Output {
            let mut out = [vec![], vec![]];
            for chunk in self.0.chunks(T::Of::<S>::LANES) {
                let mut padded = [chunk[0]; MAX_LANES];
                padded[..chunk.len()].copy_from_slice(chunk);
                let y = self.1.call(T::Of::<S>::load(t, &padded));
                for (o, y) in out.iter_mut().zip(y) {
                    let mut back = [T::default(); MAX_LANES];
                    y.store(&mut back);
                    o.extend(back[..chunk.len()].iter().map(|v| v.to_f64()));
                }
            }
            out
        }
    }

    fn check<F: LaneFn + Copy>(f: F, from: f64, to: f64, exact: impl Fn(f64) -> [f64; 2], ulps: f64) {
        fn one<T: SimdReal, F: LaneFn + Copy>(f: F, isa: Isa, xs: &[f64], exact: &impl Fn(f64) -> [f64; 2], tolerance: f64) {
            let typed: Vec<T> = xs.iter().map(|&x| T::from_f64(x)).collect();
            let got = dispatch_on(isa, Map(&typed, f));
            for (i, x) in typed.iter().enumerate() {
                for (got, want) in [got[0][i], got[1][i]].into_iter().zip(exact(x.to_f64())) {
                    let error = (got - want).abs() / want.abs().max(1.0);
                    let relative = (got - want).abs() / want.abs().max(1e-300);
                    assert!(error.min(relative) <= tolerance, "{isa} {:?} at {}: {got} instead of {want}", T::DTYPE, x.to_f64());
                }
            }
        }
        let xs: Vec<f64> = (0..=4001).map(|i| from + (to - from) * i as f64 / 4001.0).collect();
        for isa in available() {
            one::<f32, F>(f, isa, &xs, &exact, ulps * f64::from(f32::EPSILON));
            one::<f64, F>(f, isa, &xs, &exact, ulps * f64::EPSILON);
        }
    }

    #[test]
    fn elementary_functions_are_accurate_on_every_instruction_set() {
        #[derive(Clone, Copy)]
        struct Exp;
        impl LaneFn for Exp {
            fn call<V: Lanes>(&self, x: V) -> [V; 2] {
                [x.exp(); 2]
            }
        }
        #[derive(Clone, Copy)]
        struct Ln;
        impl LaneFn for Ln {
            fn call<V: Lanes>(&self, x: V) -> [V; 2] {
                [x.ln(); 2]
            }
        }
        #[derive(Clone, Copy)]
        struct SinCos;
        impl LaneFn for SinCos {
            fn call<V: Lanes>(&self, x: V) -> [V; 2] {
                let (s, c) = x.sin_cos_turns();
                [s, c]
            }
        }
        #[derive(Clone, Copy)]
        struct Acos;
        impl LaneFn for Acos {
            fn call<V: Lanes>(&self, x: V) -> [V; 2] {
                [x.acos(); 2]
            }
        }
        #[derive(Clone, Copy)]
        struct Roots;
        impl LaneFn for Roots {
            fn call<V: Lanes>(&self, x: V) -> [V; 2] {
                [x.rsqrt(), x.recip()]
            }
        }
        check(Roots, 1e-6, 1e3, |x| [1.0 / x.sqrt(), 1.0 / x], 2.0);
        check(Exp, -80.0, 80.0, |x| [x.exp(); 2], 4.0);
        check(Ln, 1e-6, 50.0, |x| [x.ln(); 2], 3.0);
        check(SinCos, 0.0, 1.0, |x| [(std::f64::consts::TAU * x).sin(), (std::f64::consts::TAU * x).cos()], 4.0);
        check(Acos, -1.0, 1.0, |x| [x.acos(); 2], 3.0);
    }
}
