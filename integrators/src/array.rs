//! Typed arrays: the element type is a run-time choice, generics live only inside kernels.

use crate::error::{Result, invalid};
use serde::{Deserialize, Serialize};

/// Floating-point type of positions, velocities and forces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// Single precision (default for simulation).
    #[default]
    F32,
    /// Double precision (default for single-point evaluation and relaxation).
    F64,
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
        })
    }
}

impl std::str::FromStr for DType {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "f32" => Ok(DType::F32),
            "f64" => Ok(DType::F64),
            _ => Err(format!("`{text}` is not a dtype; write f32 or f64")),
        }
    }
}

/// Numbers that are copied to devices as they are: `f32`, `f64` and `i32`.
pub trait Element: Copy + Default + Send + Sync + 'static {
    /// The bytes of `values`.
    fn bytes(values: &[Self]) -> &[u8];
    /// The bytes of `values`, to be overwritten.
    fn bytes_mut(values: &mut [Self]) -> &mut [u8];
}

macro_rules! element {
    ($($t:ty),*) => {$(
        impl Element for $t {
            fn bytes(values: &[Self]) -> &[u8] {
                pulp::bytemuck::cast_slice(values)
            }
            fn bytes_mut(values: &mut [Self]) -> &mut [u8] {
                pulp::bytemuck::cast_slice_mut(values)
            }
        }
    )*};
}
element!(f32, f64, i32);

/// Scalars of kernels: `f32` and `f64`.
pub trait Real:
    Element
    + PartialOrd
    + std::fmt::Debug
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::iter::Sum
{
    /// The tag of this type.
    const DTYPE: DType;
    /// Rounds to this type.
    fn from_f64(x: f64) -> Self;
    /// Widens to double precision (exact).
    fn to_f64(self) -> f64;
    /// The slice inside `array`, or `None` where it holds the other type.
    fn slice(array: &Array) -> Option<&[Self]>;
    /// The mutable slice inside `array`, or `None` where it holds the other type.
    fn slice_mut(array: &mut Array) -> Option<&mut [Self]>;
    /// The slice inside `view`, or `None` where it holds the other type.
    fn of_view(view: View<'_>) -> Option<&[Self]>;
}

macro_rules! real {
    ($t:ty, $variant:ident) => {
        impl Real for $t {
            const DTYPE: DType = DType::$variant;
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            fn slice(array: &Array) -> Option<&[Self]> {
                match array {
                    Array::$variant(v) => Some(v),
                    _ => None,
                }
            }
            fn slice_mut(array: &mut Array) -> Option<&mut [Self]> {
                match array {
                    Array::$variant(v) => Some(v),
                    _ => None,
                }
            }
            fn of_view(view: View<'_>) -> Option<&[Self]> {
                match view {
                    View::$variant(v) => Some(v),
                    _ => None,
                }
            }
        }
    };
}
real!(f32, F32);
real!(f64, F64);

/// An owned flat array of either precision.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Single precision.
    F32(Vec<f32>),
    /// Double precision.
    F64(Vec<f64>),
}

/// A borrowed [`Array`] or part of one.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Double precision.
    F64(&'a [f64]),
}

impl Array {
    /// `len` zeros.
    pub fn zeros(dtype: DType, len: usize) -> Self {
        match dtype {
            DType::F32 => Array::F32(vec![0.0; len]),
            DType::F64 => Array::F64(vec![0.0; len]),
        }
    }

    /// Rounds `values` to `dtype`.
    pub fn from_f64(dtype: DType, values: &[f64]) -> Self {
        match dtype {
            DType::F32 => Array::F32(values.iter().map(|&x| x as f32).collect()),
            DType::F64 => Array::F64(values.to_vec()),
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Array::F32(_) => DType::F32,
            Array::F64(_) => DType::F64,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::F32(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    /// True for an array without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole array, borrowed.
    pub fn view(&self) -> View<'_> {
        match self {
            Array::F32(v) => View::F32(v),
            Array::F64(v) => View::F64(v),
        }
    }

    /// Elements `range`, borrowed.
    pub fn part(&self, range: std::ops::Range<usize>) -> View<'_> {
        match self {
            Array::F32(v) => View::F32(&v[range]),
            Array::F64(v) => View::F64(&v[range]),
        }
    }

    /// Element `i`, widened.
    #[inline]
    pub fn get(&self, i: usize) -> f64 {
        match self {
            Array::F32(v) => v[i] as f64,
            Array::F64(v) => v[i],
        }
    }

    /// Sets element `i`, rounding to this array's type.
    #[inline]
    pub fn set(&mut self, i: usize, x: f64) {
        match self {
            Array::F32(v) => v[i] = x as f32,
            Array::F64(v) => v[i] = x,
        }
    }

    /// Sets every element.
    pub fn fill(&mut self, x: f64) {
        match self {
            Array::F32(v) => v.fill(x as f32),
            Array::F64(v) => v.fill(x),
        }
    }

    /// A widened copy.
    pub fn to_f64(&self) -> Vec<f64> {
        self.view().to_f64()
    }

    /// Typed elements. Errors where the array holds the other type (a bug of the caller).
    pub fn typed<T: Real>(&self) -> Result<&[T]> {
        match T::slice(self) {
            Some(s) => Ok(s),
            None => invalid(format!("array of {} used as {}", self.dtype(), T::DTYPE)),
        }
    }

    /// Typed mutable elements. Errors where the array holds the other type (a bug of the caller).
    pub fn typed_mut<T: Real>(&mut self) -> Result<&mut [T]> {
        let have = self.dtype();
        match T::slice_mut(self) {
            Some(s) => Ok(s),
            None => invalid(format!("array of {have} used as {}", T::DTYPE)),
        }
    }
}

impl<'a> View<'a> {
    /// The element type.
    pub fn dtype(self) -> DType {
        match self {
            View::F32(_) => DType::F32,
            View::F64(_) => DType::F64,
        }
    }

    /// Number of elements.
    pub fn len(self) -> usize {
        match self {
            View::F32(v) => v.len(),
            View::F64(v) => v.len(),
        }
    }

    /// True for a view without elements.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Elements `range`.
    pub fn part(self, range: std::ops::Range<usize>) -> View<'a> {
        match self {
            View::F32(v) => View::F32(&v[range]),
            View::F64(v) => View::F64(&v[range]),
        }
    }

    /// Element `i`, widened.
    #[inline]
    pub fn get(self, i: usize) -> f64 {
        match self {
            View::F32(v) => v[i] as f64,
            View::F64(v) => v[i],
        }
    }

    /// A widened copy.
    pub fn to_f64(self) -> Vec<f64> {
        match self {
            View::F32(v) => v.iter().map(|&x| x as f64).collect(),
            View::F64(v) => v.to_vec(),
        }
    }

    /// Typed elements. Errors where the view holds the other type (a bug of the caller).
    pub fn typed<T: Real>(self) -> Result<&'a [T]> {
        match T::of_view(self) {
            Some(s) => Ok(s),
            None => invalid(format!("view of {} used as {}", self.dtype(), T::DTYPE)),
        }
    }
}

/// Calls `$f::<f32>($args)` or `$f::<f64>($args)` after `$dtype`.
#[macro_export]
macro_rules! by_dtype {
    ($dtype:expr, $f:ident ( $($arg:expr),* $(,)? )) => {
        match $dtype {
            $crate::DType::F32 => $f::<f32>($($arg),*),
            $crate::DType::F64 => $f::<f64>($($arg),*),
        }
    };
}
