//! The suite that a backend runs to show that it keeps the contracts of this crate.
