//! The error of this room: what was attempted, on which object, and the errno as its source.

use std::borrow::Cow;
use std::io;

/// A failed attempt. `Display` is one sentence without the errno, which is the chained source;
/// [`Error::report`] joins the two.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt}")]
pub struct Error {
    attempt: Cow<'static, str>,
    #[source]
    source: io::Error,
}

/// What every fallible function of this room returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An attempt (in the infinitive: "mount the empty root") and why it failed.
    pub fn new(attempt: impl Into<Cow<'static, str>>, source: impl Into<io::Error>) -> Self {
        Self { attempt: attempt.into(), source: source.into() }
    }

    /// An attempt that failed for a reason that is not an errno.
    pub fn because(attempt: impl Into<Cow<'static, str>>, why: impl Into<String>) -> Self {
        Self::new(attempt, io::Error::other(why.into()))
    }

    /// The attempt, without "cannot".
    pub fn attempt(&self) -> &str {
        &self.attempt
    }

    /// The errno, where the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// The kind of the source.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Attempt and source in one sentence, for a last line on stderr.
    pub fn report(&self) -> String {
        format!("{self}: {}", self.source)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}

/// Names the attempt of a bare errno or [`io::Error`].
pub trait Attempt<T> {
    /// Names a fixed attempt.
    fn attempt(self, what: &'static str) -> Result<T>;
    /// Names an attempt with its object; the closure runs only on failure.
    fn attempt_with(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Attempt<T> for std::result::Result<T, E> {
    fn attempt(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::new(what, source))
    }

    fn attempt_with(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::new(what(), source))
    }
}

/// The result of a raw system call (-1 and errno) as an [`io::Result`].
pub(crate) fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn the_source_is_chained_and_not_repeated() {
        let error = Error::new("mount the empty root", io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(error.to_string(), "cannot mount the empty root");
        assert!(error.source().unwrap().to_string().contains("not permitted"));
        assert_eq!(error.errno(), Some(libc::EPERM));
        assert!(error.report().starts_with("cannot mount the empty root: Operation not permitted"));
    }
}
