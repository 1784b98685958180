//! All tests of the program from outside, one module per topic: one binary links once.

mod tools;
