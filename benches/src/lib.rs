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
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod extras;
pub mod figures;
pub mod html;
pub mod machine;
pub mod markdown;
pub mod progress;
pub mod record;
pub mod report;
pub mod routing;
pub mod stats;
pub mod suite;
pub mod table;
pub mod target;
pub mod tune;
#[cfg(feature = "wgpu")]
pub mod wgpu;
pub mod work;

/// Any error, with its message.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// A result with any error.
pub type Result<T> = std::result::Result<T, Error>;

/// The examples of the workspace's README are tests of this package, which is not published and may look outside.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
