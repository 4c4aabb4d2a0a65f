//! Benchmarks of the routing library: every backend and every peer does the same work, beside a copy of the same bytes.
//!
//! [`suite`] runs the cases ([`cases`]) on each backend ([`target`]) and prints ([`table`]), saves ([`report`]) and
//! draws ([`html`]) what it measured. The part that enqueues operations ([`work`]) is generic over the backend.
#![forbid(unsafe_code)]

pub mod args;
#[cfg(feature = "candle")]
pub mod candle;
pub mod cases;
pub mod cpu;
pub mod figures;
pub mod html;
pub mod machine;
pub mod progress;
pub mod report;
pub mod routing;
pub mod stats;
pub mod suite;
pub mod table;
pub mod target;
pub mod work;

/// Any error, with its message.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// A result with any error.
pub type Result<T> = std::result::Result<T, Error>;
