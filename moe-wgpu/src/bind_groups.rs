//! Bind groups that are kept between calls: making one costs the host more than a dispatch.

use crate::kernels::Pipeline;
use crate::window::Bound;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};

/// The layout, and of each buffer what is bound.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    pipeline: u64,
    buffers: Vec<(wgpu::Buffer, u64, u64)>,
}

/// A device's bind groups of buffers of this library's own. A bind group keeps its buffers alive, so a buffer takes its
/// groups along when it is dropped; of a caller's buffer it is not known when that is, so its groups are not kept.
#[derive(Default)]
pub(crate) struct BindGroups(Mutex<HashMap<Key, wgpu::BindGroup>>);

impl fmt::Debug for BindGroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BindGroups")
    }
}

impl BindGroups {
    /// Past this many all are dropped: a program that never uses the same buffers again shall not pay for keeping them.
    const MOST: usize = 1024;

    fn groups(&self) -> MutexGuard<'_, HashMap<Key, wgpu::BindGroup>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The group of these buffers, which are all that the pipeline binds.
    pub(crate) fn get(
        &self,
        pipeline: &Pipeline,
        buffers: &[Bound<'_>],
        create: impl FnOnce() -> wgpu::BindGroup,
    ) -> wgpu::BindGroup {
        if buffers.iter().any(|bound| !bound.owned) {
            return create();
        }
        let buffers = buffers.iter().map(|bound| (bound.buffer.clone(), bound.offset, bound.size)).collect();
        let key = Key { pipeline: pipeline.number, buffers };
        let mut groups = self.groups();
        if let Some(group) = groups.get(&key) {
            return group.clone();
        }
        if groups.len() >= Self::MOST {
            groups.clear();
        }
        let group = create();
        groups.insert(key, group.clone());
        group
    }

    /// Drops the groups of a buffer.
    pub(crate) fn forget(&self, buffer: &wgpu::Buffer) {
        self.groups().retain(|key, _| key.buffers.iter().all(|(other, ..)| other != buffer));
    }

    pub(crate) fn clear(&self) {
        self.groups().clear();
    }
}
