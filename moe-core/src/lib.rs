//! Mixture-of-Experts token routing.
//!
//! In a Mixture-of-Experts layer each token goes to its `top_k` experts. Before the experts' matrix products, rows of
//! the same expert must lie together (*permute*); afterwards each token's results come home, weighted and summed
//! (*unpermute*). This crate holds what every backend shares:
//!
//! * identity: [`DeviceSpec`] is what a person asks for, [`DeviceId`] is what it resolved to, and the two are
//!   different types, so that they cannot be compared ([`identity`]);
//! * the traits a backend implements: [`Backend`], [`Device`], [`Buffer`], [`CommandQueue`], [`PermuteBackend`]
//!   ([`backend`]);
//! * the [`RoutePlan`] and the three primitives made from it: [`RoutePlan::gather`], [`RoutePlan::combine`] and
//!   [`RoutePlan::combine_grad`];
//! * what lies between the experts' products: rows that are quantised as they are gathered or activated ([`quant`],
//!   [`RoutePlan::gather_quant`], [`RoutePlan::swiglu`]), and the products themselves, which a backend or the caller
//!   brings ([`GroupedMatmul`]);
//! * a whole layer from a model's files (module `layer`, feature `layer`);
//! * the conformance suite that every backend passes (feature `conformance`).
//!
//! A route plan says at which row each route lands. Routes of a batch are numbered `x = t * top_k + k` (token `t`, its
//! `k`-th expert). As a sparse 0/1 matrix P it gives all operations as products:
//!
//! | primitive | is | serves as |
//! |---|---|---|
//! | gather | `Y = P X`, or `diag(w) P X` | permute; router weight on the input; permute of scales and of probabilities; chunk sort; backward of an unweighted unpermute |
//! | combine | `X = Pᵀ diag(w) Y (+ X0)`, summed in f32 | unpermute; unpermute onto a residual; reverse chunk sort; backward of permute |
//! | combine_grad | `dY = diag(w) P dX`, `dw = rowdot(Y, P dX)` | backward of unpermute, for the rows and for the weights |
//!
//! # The bug that cannot be written
//! A scratch pad was configured with the device "cuda", its tensors lived on "cuda:0", and a check that compared the
//! two failed on correct input. Here a [`Workspace`] is made from an opened device, and what a person wrote cannot be
//! compared with what it resolved to; see [`identity`].
#![deny(unsafe_code)]

pub mod any;
pub mod backend;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod dtype;
pub mod eplb;
pub mod guide;
pub mod identity;
#[cfg(feature = "layer")]
pub mod layer;
pub mod math;
pub mod oracle;
pub mod quant;
pub mod raw;
pub mod tag;

mod buffer;
mod check;
mod device;
mod error;
mod ops;
mod plan;
mod queue;
mod readback;
mod workspace;

pub use any::{BackendVisitor, DeviceVisitor};
pub use backend::{
    Backend, Buffer, CommandQueue, Device, DeviceInfo, GroupedMatmul, MatmulBackend, PermuteBackend, QuantBackend,
    Region, RouterBackend, Span,
};
pub use buffer::{Buf, Rows, RowsMut, View, ViewMut};
pub use device::Dev;
pub use dtype::{CombineInput, DType, Element, F4x2, Float, MaskElement, MatmulInput, RouteId};
pub use error::{Error, Result};
pub use identity::{AnyDeviceId, DeviceId, DeviceSpec};
pub use ops::{BlockTable, Blocks, Combine, CombineGrad, Gather, GatherGradWeights, MaskGrad, SplitSizes};
pub use ops::{GatherQuant, GroupedProducts, QuantRows, Swiglu, SwigluQuant};
pub use ops::{Route, Router, RouterGrad, RouterLosses, Scoring};
pub use plan::{Capacity, Layout, PlanSpec, RoutePlan, Routing, Status};
pub use queue::Queue;
pub use readback::{PendingReadback, Readback};
pub use tag::{Brand, StaticTag, Tag, Untagged};
pub use workspace::{Limits, Workspace};

pub use float8;
pub use half;
