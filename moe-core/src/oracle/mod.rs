//! Which backend, which device, and which kernels inside it: decided once, at set-up, and explained.
//!
//! * A [`Wish`] says what is wanted: operations, row type, sizes, layout, training or not, and perhaps a backend or
//!   device by name, preferred or required.
//! * A [`Candidate`] is a device that was opened, with its [`Capabilities`], or a backend that cannot be used and why.
//! * [`select`] takes one and gives a [`Report`]: every candidate in order, taken or rejected, with the reason in
//!   words. A required device that cannot be used is an error that says why and what would work; a preferred one that
//!   cannot be used is said in the report.
//! * A [`TuningTable`] holds measured values of a backend's [`Knob`]s; a device takes it with
//!   [`Device::tune`](crate::Device::tune) and says with [`Device::paths`](crate::Device::paths) which kernels a wish
//!   would run.
//! * [`any_device!`](crate::any_device) makes the one value that a program with several backends holds.
//!
//! How candidates that can do the work are ranked: by the time that a step of the typical size would take, estimated
//! as a start for each operation and the bytes that it moves at the device's memory bandwidth. Ties go to the earlier
//! candidate. No operation asks the oracle; it costs nothing per call.
//!
//! ```
//! use moe_core::oracle::{Sizes, Wish};
//! use moe_core::DType;
//!
//! moe_core::any_device! {
//!     /// The backends of this program, fastest first.
//!     pub enum AnyDevice {
//!         Cpu(moe_cpu::Cpu),
//!     }
//! }
//!
//! let wish = Wish::new(Sizes::new(4096, 8, 128, 2048), DType::BF16).prefer("cpu".parse()?);
//! let selection = AnyDevice::select(&wish)?;
//! assert_eq!(selection.device.id().to_string(), "cpu:0");
//! println!("{}", selection.report);
//!
//! let wish = wish.require("cuda".parse()?);
//! let error = AnyDevice::select(&wish).unwrap_err().to_string();
//! assert!(error.contains("cuda") && error.contains("would work: cpu:0"), "{error}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod candidate;
mod capabilities;
mod knob;
mod op;
mod report;
mod select;
mod table;
mod wish;

pub use candidate::{Candidate, Opened};
pub use capabilities::{Capabilities, DeviceClass, Gap};
pub use knob::{Knob, KnobKind, Tuned};
pub use op::Op;
pub use report::{Entry, Path, Report, Verdict};
pub use select::{OracleError, Selection, select};
pub use table::{TuningEntry, TuningTable};
pub use wish::{Ask, LayoutKind, Quantisation, Sizes, Wish};
