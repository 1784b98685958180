//! Errors and panics become a number and a message of the calling thread.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// A number and a message.
pub(crate) struct Failure {
    code: i32,
    message: String,
}

const INVALID: i32 = 1;
const FAILED: i32 = 2;
const PANIC: i32 = 3;

/// A failure of the caller's.
pub(crate) fn invalid(message: impl Into<String>) -> Failure {
    Failure { code: INVALID, message: message.into() }
}

impl Failure {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Failure { code: FAILED, message: message.into() }
    }

    pub(crate) fn panicked(message: impl Into<String>) -> Self {
        Failure { code: PANIC, message: message.into() }
    }
}

impl From<scorefield::Error> for Failure {
    fn from(error: scorefield::Error) -> Self {
        use scorefield::Error as E;
        let code = match error {
            E::Usage(_) | E::Config { .. } | E::Model(_) | E::Io(_) | E::File { .. } => INVALID,
            _ => FAILED,
        };
        Failure { code, message: error.to_string() }
    }
}

/// Runs `work`; whatever goes wrong becomes a number, and a message for this thread.
pub(crate) fn guard(work: impl FnOnce() -> Result<(), Failure>) -> i32 {
    let failure = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => return 0,
        Ok(Err(failure)) => failure,
        Err(payload) => Failure::panicked(format!("scorefield panicked, which is a bug of it: {}", text(&*payload))),
    };
    let message = CString::new(failure.message.replace('\0', " ")).unwrap_or_default();
    // A thread that is ending has no place for messages any more.
    let _ = LAST.try_with(|last| last.replace(message));
    failure.code
}

fn text(payload: &(dyn Any + Send)) -> &str {
    let owned = payload.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

/// The message of this thread's latest failure.
pub(crate) fn last() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn message() -> String {
        // SAFETY: the pointer is valid until this thread's next failure.
        unsafe { CStr::from_ptr(last()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn panics_stop_here_and_messages_stay_in_their_thread() {
        assert_eq!(guard(|| Ok(())), 0);
        assert_eq!(message(), "");
        assert_eq!(guard(|| Err(invalid("a\0b"))), INVALID);
        assert_eq!(message(), "a b");
        assert_eq!(guard(|| panic!("it was {}", 7)), PANIC);
        assert!(message().ends_with("it was 7"));
        assert_eq!(guard(|| std::panic::panic_any(3)), PANIC);
        assert!(message().ends_with("without a message"));
        std::thread::spawn(|| assert_eq!(message(), "")).join().unwrap();
    }
}
