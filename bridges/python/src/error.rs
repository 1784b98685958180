//! Our errors as Python's.

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::{PyErr, create_exception};

create_exception!(scorefield, Error, PyRuntimeError, "An evaluation or a run went wrong; the message says where and what to do.");

/// `ValueError` where an argument is wrong, `OSError` where a file is, `scorefield.Error` otherwise.
pub(crate) fn raise(error: scorefield::Error) -> PyErr {
    use scorefield::Error as E;
    use scorefield_integrators::Error as I;
    use scorefield_models::Error as M;
    let text = error.to_string();
    match error {
        E::Usage(_) | E::Config { .. } => PyValueError::new_err(text),
        E::Io(_) | E::File { .. } | E::Model(M::Io { .. } | M::File { .. } | M::Tensor { .. }) => PyOSError::new_err(text),
        E::Model(_) => PyValueError::new_err(text),
        E::Engine(I::Unsupported { .. } | I::Invalid(_) | I::Quantity { .. }) => PyValueError::new_err(text),
        _ => Error::new_err(text),
    }
}
