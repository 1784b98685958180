//! One interaction at a time, over lanes: the same function serves lanes of replicas and lanes of terms, which is why both
//! layouts give the same bits.

use scorefield_integrators::Real;
use scorefield_integrators::simd::{Lanes, MAX_LANES};

/// A vector in space.
pub(super) type Vec3<V> = [V; 3];

#[inline(always)]
pub(super) fn sub<V: Lanes>(a: Vec3<V>, b: Vec3<V>) -> Vec3<V> {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

#[inline(always)]
pub(super) fn dot<V: Lanes>(a: Vec3<V>, b: Vec3<V>) -> V {
    a[2].mul_add(b[2], a[1].mul_add(b[1], a[0] * b[0]))
}

#[inline(always)]
fn scaled<V: Lanes>(a: Vec3<V>, s: V) -> Vec3<V> {
    [a[0] * s, a[1] * s, a[2] * s]
}

#[inline(always)]
fn cross<V: Lanes>(a: Vec3<V>, b: Vec3<V>) -> Vec3<V> {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

/// `½ k (r − r₀)²`: force on the first atom (minus that on the second) and energy.
#[inline(always)]
pub(super) fn bond<V: Lanes>(t: V::Token, x: [Vec3<V>; 2], length: V, k: V) -> ([Vec3<V>; 2], V) {
    let d = sub(x[0], x[1]);
    let r2 = dot(d, d);
    let r_inverse = r2.rsqrt();
    let stretch = r2.mul_add(r_inverse, -length);
    let tension = k * stretch;
    let f = scaled(d, -(tension * r_inverse));
    ([f, [-f[0], -f[1], -f[2]]], V::lit(t, 0.5) * tension * stretch)
}

/// `½ k (θ − θ₀)²`: forces on the three atoms and energy.
#[inline(always)]
pub(super) fn angle<V: Lanes>(t: V::Token, x: [Vec3<V>; 3], angle: V, k: V) -> ([Vec3<V>; 3], V) {
    let (a, b) = (sub(x[0], x[1]), sub(x[2], x[1]));
    let (ra, rb) = (dot(a, a).rsqrt(), dot(b, b).rsqrt());
    let (a, b) = (scaled(a, ra), scaled(b, rb));
    let one = V::lit(t, 1.0);
    let c = dot(a, b).min(one).max(-one);
    let bend = c.acos() - angle;
    let torque = k * bend;
    // At a straight angle the direction is undefined and sin θ vanishes: the floor keeps the force finite there.
    let sin_inverse = c.mul_add(-c, one).max(V::lit(t, 1e-12)).rsqrt();
    let g = torque * sin_inverse;
    let (ga, gb) = (g * ra, g * rb);
    let mut f = [[V::zero(t); 3]; 3];
    for k in 0..3 {
        f[0][k] = ga * a[k].mul_add(-c, b[k]);
        f[2][k] = gb * b[k].mul_add(-c, a[k]);
        f[1][k] = -(f[0][k] + f[2][k]);
    }
    (f, V::lit(t, 0.5) * torque * bend)
}

/// Highest periodicity of a torsion.
pub(super) const MAX_PERIODICITY: usize = 6;

/// Coefficients of one torsion's energy as a function of `c = cos φ` and `s = sin φ`: `P(c) + s R(c)`.
///
/// `cos nφ` is the Chebyshev polynomial `Tₙ(c)`, `sin nφ` is `s Uₙ₋₁(c)`: no angle is ever computed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct TorsionSeries {
    /// Coefficients of P, lowest power first.
    pub(super) p: [f64; MAX_PERIODICITY + 1],
    /// Coefficients of R, lowest power first.
    pub(super) r: [f64; MAX_PERIODICITY],
}

impl TorsionSeries {
    /// Adds `Σₙ cₙ cosⁿ(φ − π)`.
    pub(super) fn add_powers(&mut self, c: &[f64; 6]) {
        let mut sign = 1.0;
        for (p, c) in self.p.iter_mut().zip(c) {
            *p += sign * c;
            sign = -sign;
        }
    }

    /// Adds `k (1 + cos(n φ − φ₀))`.
    pub(super) fn add(&mut self, k: f64, n: usize, phase: f64) {
        // A phase of π is written with a dozen digits; its sine is meant to be zero.
        let (mut sin, cos) = phase.sin_cos();
        if sin.abs() < 1e-9 {
            sin = 0.0;
        }
        self.p[0] += k;
        let mut first = [[0.0; MAX_PERIODICITY + 1]; MAX_PERIODICITY + 1];
        let mut second = first;
        first[0][0] = 1.0;
        first[1][1] = 1.0;
        second[0][0] = 1.0;
        second[1][1] = 2.0;
        for m in 2..=MAX_PERIODICITY {
            for power in 0..=MAX_PERIODICITY {
                let shifted =
                    |t: &[[f64; MAX_PERIODICITY + 1]; MAX_PERIODICITY + 1]| if power > 0 { 2.0 * t[m - 1][power - 1] } else { 0.0 };
                first[m][power] = shifted(&first) - first[m - 2][power];
                second[m][power] = shifted(&second) - second[m - 2][power];
            }
        }
        for power in 0..=MAX_PERIODICITY {
            self.p[power] += k * cos * first[n][power];
        }
        for power in 0..MAX_PERIODICITY {
            self.r[power] += k * sin * second[n - 1][power];
        }
    }
}

/// A polynomial and its derivative, coefficients lowest first.
#[inline(always)]
fn horner<V: Lanes>(t: V::Token, coefficients: &[V], c: V) -> (V, V) {
    let mut k = coefficients.len() - 1;
    let mut value = coefficients[k];
    let mut slope = V::zero(t);
    while k > 0 {
        k -= 1;
        slope = slope.mul_add(c, value);
        value = value.mul_add(c, coefficients[k]);
    }
    (value, slope)
}

/// A torsion angle and what its derivatives are made of.
///
/// With `b₁ = x₂ − x₁`, `b₂ = x₃ − x₂`, `b₃ = x₄ − x₃`, `m = b₁ × b₂`, `n = b₂ × b₃`:
/// `cos φ = m·n/(|m||n|)`, `sin φ = |b₂| b₁·n/(|m||n|)`, `∂φ/∂x₁ = −|b₂|/m² m`, `∂φ/∂x₄ = |b₂|/n² n`.
struct Dihedral<V> {
    /// Cosine and sine.
    c: V,
    s: V,
    b1: Vec3<V>,
    b2: Vec3<V>,
    b3: Vec3<V>,
    m: Vec3<V>,
    n: Vec3<V>,
    m_inverse: V,
    n_inverse: V,
    b2_inverse: V,
    b2_length: V,
}

#[inline(always)]
fn dihedral<V: Lanes>(t: V::Token, x: [Vec3<V>; 4]) -> Dihedral<V> {
    let (b1, b2, b3) = (sub(x[1], x[0]), sub(x[2], x[1]), sub(x[3], x[2]));
    let (m, n) = (cross(b1, b2), cross(b2, b3));
    let tiny = V::lit(t, 1e-24);
    let (m2, n2, b22) = (dot(m, m).max(tiny), dot(n, n).max(tiny), dot(b2, b2).max(tiny));
    let (m_inverse, n_inverse, b2_inverse) = (m2.rsqrt(), n2.rsqrt(), b22.rsqrt());
    let mn_inverse = m_inverse * n_inverse;
    let b2_length = b22 * b2_inverse;
    let c = dot(m, n) * mn_inverse;
    let s = b2_length * dot(b1, n) * mn_inverse;
    Dihedral { c, s, b1, b2, b3, m, n, m_inverse, n_inverse, b2_inverse, b2_length }
}

/// Forces of a torsion on its four atoms, `torque` being dE/dφ.
#[inline(always)]
fn turn<V: Lanes>(d: &Dihedral<V>, torque: V) -> [Vec3<V>; 4] {
    let f1 = scaled(d.m, torque * d.b2_length * d.m_inverse * d.m_inverse);
    let f4 = scaled(d.n, -(torque * d.b2_length * d.n_inverse * d.n_inverse));
    let b2_inverse_2 = d.b2_inverse * d.b2_inverse;
    let (u, w) = (dot(d.b1, d.b2) * b2_inverse_2, dot(d.b3, d.b2) * b2_inverse_2);
    let mut f = [f1, f1, f1, f4];
    for k in 0..3 {
        let inner = u * f1[k] - w * f4[k];
        f[1][k] = -(f1[k] + inner);
        f[2][k] = inner - f4[k];
    }
    f
}

/// `P(cos φ) + sin φ R(cos φ)`: forces on the four atoms and energy. `p` and `r` yield coefficients, lowest first; an empty
/// `r` means zero.
#[inline(always)]
pub(super) fn torsion<V: Lanes>(t: V::Token, x: [Vec3<V>; 4], p: &[V], r: &[V]) -> ([Vec3<V>; 4], V) {
    let d = dihedral(t, x);
    let (c, s) = (d.c, d.s);
    let (mut energy, slope) = horner(t, p, c);
    let mut torque = -(s * slope);
    if !r.is_empty() {
        let (value, slope) = horner(t, r, c);
        energy = s.mul_add(value, energy);
        torque += c * value - s * s * slope;
    }
    (turn(&d, torque), energy)
}

/// The angle of a torsion in turns from 0 to 1, from whichever of sine and cosine is smaller: near its own extrema each says
/// little about the angle.
#[inline(always)]
fn turns<V: Lanes>(t: V::Token, d: &Dihedral<V>) -> V {
    let (zero, one) = (V::zero(t), V::lit(t, 1.0));
    let by_sine = d.s.abs().lt(d.c.abs());
    let acos = V::select(by_sine, d.s, d.c).acos() * V::lit(t, 0.5 / std::f64::consts::PI);
    // asin s or ½ − asin s; acos c or 1 − acos c.
    let asin = V::lit(t, 0.25) - acos;
    let from_sine = V::select(d.c.lt(zero), V::lit(t, 0.5) - asin, asin);
    let from_cosine = V::select(d.s.lt(zero), one - acos, acos);
    let turns = V::select(by_sine, from_sine, from_cosine);
    V::select(turns.lt(zero), turns + one, turns)
}

/// Coefficients of one patch of a correction map, see [`super::map`].
pub(super) type Patch<T> = [T; 16];

/// Energy of two torsions interpolated in a map: forces on their atoms and energy. The map has `size²` patches from `first` on.
#[inline(always)]
pub(super) fn map<V: Lanes>(t: V::Token, x: [Vec3<V>; 8], first: V, size: V, patches: &[Patch<V::Scalar>]) -> ([Vec3<V>; 8], V) {
    let a = dihedral(t, [x[0], x[1], x[2], x[3]]);
    let b = dihedral(t, [x[4], x[5], x[6], x[7]]);
    let (u, v) = (turns(t, &a) * size, turns(t, &b) * size);
    let (zero, one, half) = (V::zero(t), V::lit(t, 1.0), V::lit(t, 0.5));
    let last = size - one;
    let (i, j) = ((u - half).round().max(zero).min(last), (v - half).round().max(zero).min(last));
    let (u, v) = (u - i, v - j);
    let mut place = [V::Scalar::default(); MAX_LANES];
    (first + j.mul_add(size, i)).store(&mut place);
    let mut coefficients = [[V::Scalar::default(); MAX_LANES]; 16];
    for l in 0..V::LANES {
        let patch = &patches[(place[l].to_f64() as usize).min(patches.len() - 1)];
        for k in 0..16 {
            coefficients[k][l] = patch[k];
        }
    }
    // Polynomials in v of the powers of u, then one in u.
    let (mut energy, mut by_u, mut by_v) = (zero, zero, zero);
    for power in [3, 2, 1, 0] {
        let c = &coefficients[4 * power..4 * power + 4];
        let row = [V::load(t, &c[0]), V::load(t, &c[1]), V::load(t, &c[2]), V::load(t, &c[3])];
        let (value, slope) = horner(t, &row, v);
        by_u = by_u.mul_add(u, energy);
        energy = energy.mul_add(u, value);
        by_v = by_v.mul_add(u, slope);
    }
    let scale = size * V::lit(t, 0.5 / std::f64::consts::PI);
    let (fa, fb) = (turn(&a, by_u * scale), turn(&b, by_v * scale));
    ([fa[0], fa[1], fa[2], fa[3], fb[0], fb[1], fb[2], fb[3]], energy)
}

/// Lennard-Jones and Coulomb between two atoms at squared distance `r2`: `−dE/dr / r` and energy, for
/// `E = c₁₂ r⁻¹² − c₆ r⁻⁶ + qq r⁻¹`.
#[inline(always)]
pub(super) fn lennard_jones_coulomb<V: Lanes>(t: V::Token, r_inverse: V, qq: V, c6: V, c12: V) -> (V, V) {
    let r2_inverse = r_inverse * r_inverse;
    let r6 = r2_inverse * r2_inverse * r2_inverse;
    let (repulsion, attraction, coulomb) = (c12 * r6 * r6, c6 * r6, qq * r_inverse);
    let slope = V::lit(t, 12.0).mul_add(repulsion, V::lit(t, -6.0).mul_add(attraction, coulomb));
    (slope * r2_inverse, repulsion - attraction + coulomb)
}

/// [`lennard_jones_coulomb`] of one pair: forces on both atoms and energy.
#[inline(always)]
pub(super) fn pair<V: Lanes>(t: V::Token, x: [Vec3<V>; 2], qq: V, c6: V, c12: V) -> ([Vec3<V>; 2], V) {
    let d = sub(x[0], x[1]);
    let (s, e) = lennard_jones_coulomb(t, dot(d, d).rsqrt(), qq, c6, c12);
    let f = scaled(d, s);
    ([f, [-f[0], -f[1], -f[2]]], e)
}

/// Born integrals of two atoms over each other's spheres, Hawkins, Cramer and Truhlar's pairwise descreening, and their
/// derivatives divided by r: `([I_ab, I_ba], [I_ab'/r, I_ba'/r])`. `own` are radii less the offset, `scaled` scaled radii.
///
/// With `U = r + s`, `L = max(own, |r − s|)`:
/// `I = ½ [1/L − 1/U + ¼ (r − s²/r)(1/U² − 1/L²) + ½ ln(L/U)/r]`, plus `1/own − 1/L` where the atom lies inside the other.
/// The derivatives through U and L cancel.
#[inline(always)]
pub(super) fn born_integrals<V: Lanes>(t: V::Token, r: V, r_inverse: V, own: [V; 2], scaled: [V; 2]) -> ([V; 2], [V; 2]) {
    let (ua, ub) = (r + scaled[1], r + scaled[0]);
    let (la, lb) = (own[0].max((r - scaled[1]).abs()), own[1].max((r - scaled[0]).abs()));
    let (lua, lub) = (la * ua, lb * ub);
    // One division for all four reciprocals.
    let inverse = (lua * lub).recip();
    let a = born_integral(t, r, r_inverse, own[0], scaled[1], la, ua, inverse * lub);
    let b = born_integral(t, r, r_inverse, own[1], scaled[0], lb, ub, inverse * lua);
    ([a.0, b.0], [a.1, b.1])
}

#[inline(always)]
fn born_integral<V: Lanes>(t: V::Token, r: V, r_inverse: V, own: V, scaled: V, l: V, u: V, lu_inverse: V) -> (V, V) {
    let (half, quarter) = (V::lit(t, 0.5), V::lit(t, 0.25));
    let (l_inverse, u_inverse) = (u * lu_inverse, l * lu_inverse);
    let difference = u_inverse.mul_add(u_inverse, -(l_inverse * l_inverse));
    let half_log = (l * u_inverse).ln() * r_inverse * half;
    let s2_r = scaled * scaled * r_inverse;
    let sum = (l_inverse - u_inverse) + (quarter * (r - s2_r)).mul_add(difference, half_log);
    // Where the atom is engulfed L = s − r, so 1/own − 1/L is added; rare, but smooth energies need it.
    let engulfed = V::select(own.lt(scaled - r), V::lit(t, 1.0) / own - l_inverse, V::zero(t));
    let integral = half.mul_add(sum, engulfed);
    let slope = half * (quarter * s2_r.mul_add(r_inverse, V::lit(t, 1.0))).mul_add(difference, -(half_log * r_inverse));
    let reaches = own.lt(u);
    let zero = V::zero(t);
    (V::select(reaches, integral, zero), V::select(reaches, slope * r_inverse, zero))
}

/// Parameters of the Onufriev–Bashford–Case rescaling `tanh(α ψ − β ψ² + γ ψ³)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rescaling {
    pub alpha: f64,
    pub beta: f64,
    pub gamma: f64,
}

/// Born radius `B = 1/(1/ρ̃ − tanh(…)/ρ)`, `ψ = I ρ̃`, and `dB/dI`. `own` is ρ̃, `radius` is ρ.
#[inline(always)]
pub(super) fn born_radius<V: Lanes>(t: V::Token, integral: V, own: V, radius: V, k: &Rescaling) -> (V, V) {
    let one = V::lit(t, 1.0);
    let psi = integral * own;
    let (alpha, beta, gamma) = (V::lit(t, k.alpha), V::lit(t, k.beta), V::lit(t, k.gamma));
    let argument = psi * psi.mul_add(psi.mul_add(gamma, -beta), alpha);
    let slope = psi.mul_add((V::lit(t, 3.0) * gamma).mul_add(psi, V::lit(t, -2.0) * beta), alpha);
    let tanh = one - V::lit(t, 2.0) / ((argument + argument).exp() + one);
    let b = one / (one / own - tanh / radius);
    let sech2 = tanh.mul_add(-tanh, one);
    (b, b * b * own * sech2 * slope / radius)
}

/// Still's pair term `g/f`, `f² = r² + B_i B_j e^{−r²/(4 B_i B_j)}`: `−dE/dr / r`, `dE/dB_i`, `dE/dB_j` and energy.
#[inline(always)]
pub(super) fn born_pair<V: Lanes>(t: V::Token, r2: V, bi: V, bj: V, g: V) -> (V, [V; 2], V) {
    let one = V::lit(t, 1.0);
    let quarter = V::lit(t, 0.25);
    let product = bi * bj;
    let exponent = quarter * r2 * product.recip();
    let e = (-exponent).exp();
    let f_inverse = product.mul_add(e, r2).rsqrt();
    let energy = g * f_inverse;
    // dE/d(f²), doubled.
    let slope = -(energy * f_inverse * f_inverse);
    let through_born = V::lit(t, 0.5) * slope * e * (one + exponent);
    (-(slope * e.mul_add(-quarter, one)), [through_born * bj, through_born * bi], energy)
}
