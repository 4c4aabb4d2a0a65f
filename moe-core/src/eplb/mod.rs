//! Expert-parallel load balancing: which GPU holds which experts, and how often.
//!
//! Popular experts get more than one copy ("replica"), and the copies are spread over the GPUs so
//! that every GPU has about the same work. The pieces:
//!
//! * [`rebalance`] computes a [`Placement`] from the load of each expert. The algorithm is the one
//!   DeepSeek published with the DeepSeek-V3 report (<https://arxiv.org/abs/2412.19437>, section
//!   3.4; <https://github.com/deepseek-ai/EPLB>), with the additions listed at [`Options`].
//! * [`LoadRecorder`] sums the load of plans on their device over windows of steps and reads it back while the
//!   device works on; [`LoadWindow`] does the like on the host; [`LoadTotals`] adds it over ranks.
//! * [`MigrationPlan`] lists which weights have to be copied where; [`limit_moves`] bounds them.
//! * [`Balancer`] does the work on a thread of its own and offers placements to be taken up
//!   between two steps; [`PlacementReader`] is what the hot path holds.
//! * [`physical_id`] and [`map_ids`] choose the replica that serves a route.
//! * [`simulate`] replays a [`Trace`] of expert choices and tells what balancing would have gained.
//!
//! Names: L layers, E logical experts, R replicas (also: physical experts, slots), S = R / GPUs
//! slots per GPU, X the largest number of copies of one expert. Slot p lies on GPU p / S.
//! Everything here runs on the host and is deterministic: equal inputs give equal placements,
//! whatever the number of threads.

mod bounded;
mod cell;
mod error;
mod migrate;
mod pack;
mod placement;
mod rebalance;
mod recorder;
mod replicate;
mod reuse;
mod route;
mod shape;
mod sim;
mod svg;
mod trace;
mod window;
mod worker;

pub use bounded::limit_moves;
pub use cell::{PlacementCell, PlacementReader};
pub use error::EplbError;
pub use migrate::{MigrationPlan, Move};
pub use placement::Placement;
pub use rebalance::{Options, rebalance};
pub use recorder::LoadRecorder;
pub use route::{INVALID_ID, LogicalId, MASKED_ID, map_ids, physical_id};
pub use shape::Shape;
pub use sim::{SimConfig, SimReport, SimRow, simulate};
pub use trace::{Drift, Trace};
pub use window::{LoadTotals, LoadWindow};
pub use worker::{Balancer, BalancerConfig, Health, Mode, Offer, Proposal, Solver};
