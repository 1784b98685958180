//! Forces without the part that moves or turns the whole molecule.

use nalgebra::{Matrix3, Vector3};
use scorefield_integrators::{Batch, Capabilities, DType, ForceProvider, Input, Output, Real, Result as ContractResult, Want, by_dtype};

/// The forces nearest to `F` (least squares, all atoms alike) whose sum, and optionally whose torque, vanishes:
/// `Fᵢ − F̄ − ω × (rᵢ − r̄)` with `ω` such that no torque is left. For models whose forces are no gradient; those of an
/// energy that does not change under rigid motions stay as they are.
///
/// The energy, where there is one, is passed on. Projecting the forces of an energy that does change under rigid motions
/// makes them the gradient of nothing, so the result does not count as conservative.
pub struct Projected {
    capabilities: Capabilities,
    torque: bool,
    inner: Box<dyn ForceProvider>,
    axes: Vec<[bool; 3]>,
}

impl Projected {
    /// `inner` without net force, and where `torque` without net torque.
    pub fn new(inner: Box<dyn ForceProvider>, torque: bool) -> Self {
        let of = inner.capabilities();
        let capabilities = Capabilities {
            name: format!("projected {}", of.name),
            conservative: false,
            virial: false,
            uncertainty: false,
            // A torque means nothing for atoms that are everywhere at once.
            periodic: of.periodic && !torque,
            range: None,
            ..of.clone().without_kernels()
        };
        Projected { capabilities, torque, inner, axes: Vec::new() }
    }
}

/// Projects the forces `f` on the atoms at `x` (`[N, 3]` each).
fn project<T: Real>(x: &[T], f: &mut [T], axes: [bool; 3], torque: bool) {
    let row = |v: &[T], i: usize| Vector3::new(v[3 * i].to_f64(), v[3 * i + 1].to_f64(), v[3 * i + 2].to_f64());
    let n = x.len() / 3;
    let mean = |v: &[T]| (0..n).fold(Vector3::zeros(), |m, i| m + row(v, i)) / n as f64;
    let (mut force, centre) = (mean(f), mean(x));
    for a in 0..3 {
        if !axes[a] {
            force[a] = 0.0;
        }
    }
    let mut omega = Vector3::zeros();
    if torque {
        let (mut inertia, mut moment) = (Matrix3::zeros(), Vector3::zeros());
        for i in 0..n {
            let r = row(x, i) - centre;
            inertia += Matrix3::identity() * r.norm_squared() - r * r.transpose();
            moment += r.cross(&(row(f, i) - force));
        }
        // Axes about which nothing turns (a linear molecule, a single atom) have no inertia and are left out.
        // Positions that are not numbers have no modes either; their forces are passed on as they are.
        let finite = inertia.iter().all(|x| x.is_finite());
        if let Some(modes) = finite.then(|| inertia.try_symmetric_eigen(1e-15, 1000)).flatten() {
            let least = 1e-10 * modes.eigenvalues.max();
            for k in 0..3 {
                if modes.eigenvalues[k] > least {
                    let axis = modes.eigenvectors.column(k);
                    omega += axis * (axis.dot(&moment) / modes.eigenvalues[k]);
                }
            }
        }
    }
    for i in 0..n {
        let shift = force + omega.cross(&(row(x, i) - centre));
        for a in 0..3 {
            f[3 * i + a] = T::from_f64(f[3 * i + a].to_f64() - shift[a]);
        }
    }
}

fn project_all<T: Real>(batch: &Batch, axes: &[[bool; 3]], torque: bool, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
    let (x, f) = (input.positions.typed::<T>()?, out.forces.typed_mut::<T>()?);
    for b in 0..batch.replicas() {
        project(&x[batch.range3(b)], &mut f[batch.range3(b)], axes[b], torque);
    }
    Ok(())
}

impl ForceProvider for Projected {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        self.axes = batch.systems().iter().map(|s| s.axes).collect();
        if self.torque && self.axes.iter().any(|&axes| axes != [true; 3]) {
            return scorefield_integrators::error::invalid(
                "a torque can only be removed from three-dimensional systems; use torque = false",
            );
        }
        self.inner.prepare(batch, dtype)
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.capabilities.check_want(input.want)?;
        if self.torque && input.cells.is_some() {
            return Err(scorefield_integrators::Error::Unsupported {
                provider: self.capabilities.name.clone(),
                what: "a torque in a periodic cell".into(),
                remedy: "use torque = false".into(),
            });
        }
        self.inner.evaluate(&Input { want: Want { uncertainty: false, ..input.want }, ..*input }, out)?;
        by_dtype!(input.positions.dtype(), project_all(input.batch, &self.axes, self.torque, input, out))
    }

    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(Projected {
            capabilities: self.capabilities.clone(),
            torque: self.torque,
            inner: self.inner.fork()?,
            axes: Vec::new(),
        }))
    }
}
