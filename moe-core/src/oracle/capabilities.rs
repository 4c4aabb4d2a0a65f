//! What a device can do.

use super::op::Op;
use super::wish::{LayoutKind, Quantisation};
use crate::DType;
use std::fmt;
use std::time::Duration;

/// What kind of device it is; only assumptions hang on it, see [`Capabilities::bandwidth`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceClass {
    /// Not known.
    #[default]
    Unknown,
    /// A processor.
    Cpu,
    /// A processor that plays a GPU.
    SoftwareGpu,
    /// A GPU that shares the processor's memory.
    IntegratedGpu,
    /// A GPU with memory of its own.
    DiscreteGpu,
}

impl DeviceClass {
    /// The name used in reports.
    pub const fn name(self) -> &'static str {
        match self {
            DeviceClass::Unknown => "device of unknown kind",
            DeviceClass::Cpu => "processor",
            DeviceClass::SoftwareGpu => "software GPU",
            DeviceClass::IntegratedGpu => "integrated GPU",
            DeviceClass::DiscreteGpu => "discrete GPU",
        }
    }

    /// Bytes per second and the start of an operation, where a device gives no estimate of its own. Only their order
    /// of magnitude matters: they rank one class against another.
    const fn assumed(self) -> (f64, Duration) {
        match self {
            DeviceClass::Unknown => (50e9, Duration::from_micros(20)),
            DeviceClass::Cpu => (20e9, Duration::from_micros(8)),
            DeviceClass::SoftwareGpu => (4e9, Duration::from_micros(200)),
            DeviceClass::IntegratedGpu => (60e9, Duration::from_micros(20)),
            DeviceClass::DiscreteGpu => (500e9, Duration::from_micros(4)),
        }
    }
}

/// Something that a device does not do. What is `None` is meant for all: a gap with only a dtype is for all operations
/// and layouts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The operation.
    pub op: Option<Op>,
    /// The type of the rows.
    pub dtype: Option<DType>,
    /// The layout of the plan.
    pub layout: Option<LayoutKind>,
    /// Why, in words.
    pub why: String,
}

/// What a device can do: everything in the library, except the gaps and past the limits. Quantising rows on the way is
/// what a device has to say that it does.
///
/// ```
/// use moe_core::oracle::{Capabilities, DeviceClass, Op};
/// use moe_core::DType;
/// let capabilities = Capabilities::of(DeviceClass::IntegratedGpu)
///     .without(Some(Op::CombineGrad), Some(DType::F16), None, "the adapter has no 16-bit floats");
/// assert!(capabilities.lacks(Op::Combine, DType::F16, moe_core::oracle::LayoutKind::Packed).is_none());
/// assert!(capabilities.lacks(Op::CombineGrad, DType::F16, moe_core::oracle::LayoutKind::Packed).is_some());
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Capabilities {
    /// What it does not do.
    pub gaps: Vec<Gap>,
    /// What it quantises rows to while it moves them.
    pub quantisations: Vec<Quantisation>,
    /// The most rows (R) of a plan; `None`: as many as i32 counts.
    pub max_rows: Option<u64>,
    /// The most bytes of one buffer that an operation can use; `None`: as many as there is memory.
    pub max_buffer_bytes: Option<u64>,
    /// What kind of device it is.
    pub class: DeviceClass,
    /// Bytes per second that a copy reads and writes, as measured or from the data sheet; `None`: assumed by the class.
    pub bandwidth: Option<f64>,
    /// What the start of one operation costs; `None`: assumed by the class.
    pub launch: Option<Duration>,
    /// Facts that explain the above, for people: "no subgroups: plain kernels".
    pub notes: Vec<String>,
}

impl Capabilities {
    /// Everything, on a device of a class.
    pub fn of(class: DeviceClass) -> Self {
        Self { class, ..Self::default() }
    }

    /// Adds a gap. `None` means all operations, types or layouts.
    pub fn without(
        mut self,
        op: Option<Op>,
        dtype: Option<DType>,
        layout: Option<LayoutKind>,
        why: impl Into<String>,
    ) -> Self {
        self.gaps.push(Gap { op, dtype, layout, why: why.into() });
        self
    }

    /// Quantises rows to these while it moves them.
    pub fn quantises(self, quantisations: &[Quantisation]) -> Self {
        Self { quantisations: quantisations.to_vec(), ..self }
    }

    /// The most rows of a plan.
    pub fn max_rows(self, rows: u64) -> Self {
        Self { max_rows: Some(rows), ..self }
    }

    /// The most bytes of one buffer.
    pub fn max_buffer_bytes(self, bytes: u64) -> Self {
        Self { max_buffer_bytes: Some(bytes), ..self }
    }

    /// Bytes per second that a copy reads and writes.
    pub fn bandwidth(self, bytes_per_second: f64) -> Self {
        Self { bandwidth: Some(bytes_per_second), ..self }
    }

    /// What the start of one operation costs.
    pub fn launch(self, time: Duration) -> Self {
        Self { launch: Some(time), ..self }
    }

    /// Adds a fact for people.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// The first gap that an operation falls into.
    pub fn lacks(&self, op: Op, dtype: DType, layout: LayoutKind) -> Option<&Gap> {
        self.gaps.iter().find(|gap| {
            gap.op.is_none_or(|x| x == op)
                && gap.dtype.is_none_or(|x| x == dtype)
                && gap.layout.is_none_or(|x| x == layout)
        })
    }

    /// Bytes per second and the start of an operation: the device's own estimates, or what is assumed of its class.
    pub fn speed(&self) -> (f64, Duration) {
        let (bandwidth, launch) = self.class.assumed();
        let own = self.bandwidth.filter(|b| b.is_finite() && *b > 0.0);
        (own.unwrap_or(bandwidth), self.launch.unwrap_or(launch))
    }
}

/// One line.
impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bandwidth, launch) = self.speed();
        let basis = if self.bandwidth.is_some() { "" } else { " assumed" };
        write!(f, "{}, {:.0} GB/s{basis}, {launch:.0?} to start an operation", self.class.name(), bandwidth / 1e9)?;
        if let Some(rows) = self.max_rows {
            write!(f, ", at most {rows} rows")?;
        }
        if let Some(bytes) = self.max_buffer_bytes {
            write!(f, ", at most {} in one buffer", super::report::size(bytes))?;
        }
        if !self.quantisations.is_empty() {
            let names: Vec<&str> = self.quantisations.iter().map(|q| q.name()).collect();
            write!(f, "; quantises to {}", names.join(", "))?;
        }
        for gap in &self.gaps {
            let op = gap.op.map_or("nothing", Op::name);
            let dtype = gap.dtype.map_or("", DType::name);
            let layout = gap.layout.map_or("", LayoutKind::name);
            let words: Vec<&str> = [op, dtype, layout].into_iter().filter(|w| !w.is_empty()).collect();
            let not = if gap.op.is_none() { "" } else { "no " };
            write!(f, "; {not}{}: {}", words.join(" "), gap.why)?;
        }
        for note in &self.notes {
            write!(f, "; {note}")?;
        }
        Ok(())
    }
}
