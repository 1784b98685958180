//! `first:last:stride`: which frames of a file.

use super::error::{IoError, Result};
use std::fmt;
use std::str::FromStr;

/// Frames `first:last:stride` as in Python slices: from 0, `last` exclusive, any part may be left out, negative numbers
/// count from the end. A single number is that one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRange {
    first: i64,
    last: Option<i64>,
    stride: usize,
}

impl Default for FrameRange {
    fn default() -> Self {
        FrameRange { first: 0, last: None, stride: 1 }
    }
}

impl FrameRange {
    /// One frame, counted from 0.
    pub fn one(frame: usize) -> Self {
        let first = i64::try_from(frame).unwrap_or(i64::MAX - 1);
        FrameRange { first, last: Some(first + 1), stride: 1 }
    }

    /// True where the number of frames must be known to say which are meant.
    pub fn needs_count(&self) -> bool {
        self.first < 0 || self.last.is_some_and(|l| l < 0)
    }

    /// First frame, end (exclusive, `None` for the end of the file) and stride. `count` is needed only where
    /// [`needs_count`](Self::needs_count) says so; without it negative numbers mean 0.
    pub fn resolve(&self, count: Option<usize>) -> (usize, Option<usize>, usize) {
        let place = |i: i64| match (i >= 0, count) {
            (true, _) => usize::try_from(i).unwrap_or(usize::MAX),
            (false, Some(n)) => n.saturating_sub(usize::try_from(i.unsigned_abs()).unwrap_or(usize::MAX)),
            (false, None) => 0,
        };
        (place(self.first), self.last.map(place), self.stride)
    }
}

impl FromStr for FrameRange {
    type Err = IoError;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |position: usize, what: &str| Err(IoError::Text { what: what.to_owned(), text: text.to_owned(), position });
        let mut parts = [None; 3];
        let mut given = 0;
        let mut position = 0;
        for part in text.split(':') {
            if given == 3 {
                return fail(position, "a frame range has at most three parts: first:last:stride");
            }
            let trimmed = part.trim();
            if !trimmed.is_empty() {
                let Ok(value) = trimmed.parse::<i64>() else {
                    return fail(
                        position,
                        "a frame range is made of whole numbers: first:last:stride, for example `0:100:10`, `::5` or `-1`",
                    );
                };
                parts[given] = Some(value);
            }
            given += 1;
            position += part.chars().count() + 1;
        }
        if given == 1 {
            let Some(first) = parts[0] else {
                return fail(0, "the frame range is empty; write `:` for all frames, or first:last:stride");
            };
            return Ok(FrameRange { first, last: if first == -1 { None } else { first.checked_add(1) }, stride: 1 });
        }
        let stride = match parts[2].map(usize::try_from) {
            None => 1,
            Some(Ok(s)) if s > 0 => s,
            Some(_) => {
                let position = text.chars().count() - text.rsplit(':').next().map_or(0, |p| p.chars().count());
                return fail(position, "the stride is a positive whole number; frames are read in the file's order");
            }
        };
        Ok(FrameRange { first: parts[0].unwrap_or(0), last: parts[1], stride })
    }
}

impl fmt::Display for FrameRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.first)?;
        if let Some(last) = self.last {
            write!(f, "{last}")?;
        }
        write!(f, ":{}", self.stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(text: &str, count: usize) -> Vec<usize> {
        let (first, last, stride) = text.parse::<FrameRange>().unwrap().resolve(Some(count));
        (first..last.unwrap_or(count).min(count)).step_by(stride).collect()
    }

    #[test]
    fn means_what_python_means() {
        assert_eq!(frames(":", 4), [0, 1, 2, 3]);
        assert_eq!(frames("1:3", 4), [1, 2]);
        assert_eq!(frames("::2", 5), [0, 2, 4]);
        assert_eq!(frames("-2:", 5), [3, 4]);
        assert_eq!(frames(":-1:3", 8), [0, 3, 6]);
        assert_eq!(frames("2", 5), [2]);
        assert_eq!(frames("-1", 5), [4]);
        assert_eq!(frames("-9:2", 5), [0, 1]);
        assert_eq!(frames("3:1", 5), [0usize; 0]);
        assert_eq!(frames(" 1 : 3 ", 5), [1, 2]);
    }

    #[test]
    fn errors_point_at_the_place() {
        for (text, at) in [("", 0), ("a", 0), ("0:b", 2), ("0:1:0", 4), ("0:1:-1", 4), ("0:1:1:1", 6), ("9999999999999999999", 0)] {
            match text.parse::<FrameRange>() {
                Err(IoError::Text { position, .. }) => assert_eq!(position, at, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
