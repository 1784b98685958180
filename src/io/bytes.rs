//! Big-endian numbers of binary files (XDR, NetCDF), never past the end.

/// A place in a byte slice.
pub(crate) struct Bytes<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Bytes { data, at: 0 }
    }

    /// Bytes passed so far.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(n)?;
        let part = self.data.get(self.at..end)?;
        self.at = end;
        Some(part)
    }

    fn array<const K: usize>(&mut self) -> Option<[u8; K]> {
        self.take(K)?.try_into().ok()
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A float of 4 or 8 bytes.
    pub(crate) fn real(&mut self, double: bool) -> Option<f64> {
        if double { self.array().map(f64::from_be_bytes) } else { self.array().map(|b| f64::from(f32::from_be_bytes(b))) }
    }

    /// `n` floats of 4 or 8 bytes. The slice bounds what is reserved.
    pub(crate) fn reals(&mut self, n: usize, double: bool) -> Option<Vec<f64>> {
        let part = self.take(n.checked_mul(if double { 8 } else { 4 })?)?;
        let mut part = Bytes::new(part);
        (0..n).map(|_| part.real(double)).collect()
    }
}
