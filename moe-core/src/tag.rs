//! Device tags: which of several devices of one backend, in the type.
//!
//! Every buffer, view, queue, workspace and plan carries a tag type. [`Untagged`] is the default: mixing devices is
//! found on each call, before anything is enqueued. With a tag it is a compile error:
//!
//! * [`Dev::branded`](crate::Dev::branded) opens a scope whose [`Brand`] unifies with no other;
//! * [`device_tag!`](crate::device_tag) makes a `'static` tag, claimed for one device at run time, for struct fields.
//!
//! Tags add compile errors and never remove a run-time check, so nothing unsound hangs on them.

use crate::{AnyDeviceId, Backend, DeviceId, Error, Result};
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// A device tag.
pub trait Tag: Copy + Debug {}

/// The default tag: devices are compared at run time only.
#[derive(Clone, Copy, Debug)]
pub struct Untagged;

/// The tag of a scope. Invariant in `'id`, so the brands of two scopes never unify.
#[derive(Clone, Copy, Debug)]
pub struct Brand<'id>(PhantomData<fn(&'id ()) -> &'id ()>);

/// A tag that lives as long as the program and belongs to the device that claims it first. Made by
/// [`device_tag!`](crate::device_tag).
pub trait StaticTag: Copy + Debug + 'static {
    /// Where the claim is kept.
    #[doc(hidden)]
    fn claim() -> &'static Claim;
}

impl Tag for Untagged {}
impl Tag for Brand<'_> {}
impl<S: StaticTag> Tag for S {}

/// Which device has a static tag.
#[doc(hidden)]
#[derive(Debug)]
pub struct Claim(OnceLock<AnyDeviceId>);

impl Claim {
    #[doc(hidden)]
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    pub(crate) fn make<B: Backend>(&self, tag: &'static str, id: DeviceId<B>) -> Result<()> {
        let holder = *self.0.get_or_init(|| id.erase());
        if holder == id.erase() { Ok(()) } else { Err(Error::TagClaimed { tag, expected: holder, got: id.erase() }) }
    }
}

impl Default for Claim {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes a `'static` device tag: `device_tag!(Gpu0)` or `device_tag!(pub Gpu0)`.
///
/// A device takes it with [`Dev::claim`](crate::Dev::claim); no other device can afterwards. Buffers and plans of two
/// tags do not mix: that is a type error.
///
/// ```
/// moe_core::device_tag!(
///     /// The device the first half of the layers lives on.
///     pub Gpu0
/// );
/// ```
#[macro_export]
macro_rules! device_tag {
    ($(#[$meta:meta])* $vis:vis $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        $vis struct $name(());
        impl $crate::StaticTag for $name {
            fn claim() -> &'static $crate::tag::Claim {
                static CLAIM: $crate::tag::Claim = $crate::tag::Claim::new();
                &CLAIM
            }
        }
    };
}
