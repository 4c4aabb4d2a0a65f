//! One value for programs that hold several backends.

use crate::{Dev, PermuteBackend};

/// Work on an opened device of any backend. Inside, everything is typed by `B`.
pub trait DeviceVisitor {
    /// What the work comes to.
    type Output;
    /// Does it on this device.
    fn visit<B: PermuteBackend>(self, device: &Dev<B>) -> Self::Output;
}

/// Work on a backend that need not be usable here, such as counting its devices.
pub trait BackendVisitor {
    /// What the work comes to.
    type Output;
    /// Does it for this backend.
    fn visit<B: PermuteBackend>(self) -> Self::Output;
}

/// Makes an enum of the opened devices of several backends: the one value that a program holds which was compiled with
/// more than one.
///
/// Each variant names a backend, and perhaps the `cfg` that compiles it in. The enum is closed and has no `dyn` in it:
/// [`visit`](crate::DeviceVisitor) hands the typed [`Dev<B>`] to a generic method, so that inside, buffers of two
/// backends still cannot be mixed. A backend whose `cfg` is off is still known by name, so that asking for it is
/// answered with what would compile it in.
///
/// The enum has `open`, `id`, `info`, `capabilities`, `visit`, `visit_backend`, `candidates` and `select` (see
/// [`oracle`](crate::oracle)), `COMPILED_IN`, and a `From<Dev<B>>` for each backend. Variants are candidates in the
/// order in which they are written, and equals are decided in favour of the earlier one.
///
/// ```
/// use moe_core::{Dev, DeviceVisitor, PermuteBackend};
///
/// moe_core::any_device! {
///     /// The backends of this program.
///     pub enum AnyDevice {
///         /// With a feature that is off here.
///         #[cfg(feature = "gpu")]
///         Gpu(some_crate::Gpu),
///         Cpu(moe_cpu::Cpu),
///     }
/// }
///
/// /// Sends numbers to any device and back, typed inside.
/// struct RoundTrip(Vec<f32>);
/// impl DeviceVisitor for RoundTrip {
///     type Output = moe_core::Result<Vec<f32>>;
///     fn visit<B: PermuteBackend>(self, device: &Dev<B>) -> Self::Output {
///         let mut queue = device.queue()?;
///         let buffer = queue.upload(&self.0)?;
///         queue.download(buffer.view())
///     }
/// }
///
/// let device = AnyDevice::open(&"cpu".parse()?)?;
/// assert_eq!(device.visit(RoundTrip(vec![1.0, 2.0]))?, [1.0, 2.0]);
/// assert_eq!(AnyDevice::COMPILED_IN, ["cpu"]);
/// let error = AnyDevice::open(&"gpu".parse()?).unwrap_err().to_string();
/// assert!(error.contains("feature = \"gpu\""), "{error}");
/// # Ok::<(), moe_core::Error>(())
/// ```
///
/// Two devices of the enum do not make their buffers one type:
///
/// ```compile_fail,E0308
/// # use moe_core::{Dev, DeviceVisitor, PermuteBackend};
/// # use moe_cpu::Cpu;
/// struct Mix<'a>(&'a Dev<Cpu>);
/// impl DeviceVisitor for Mix<'_> {
///     type Output = moe_core::Result<()>;
///     fn visit<B: PermuteBackend>(self, device: &Dev<B>) -> Self::Output {
///         let on_cpu = self.0.queue()?.upload(&[1.0f32])?;
///         device.adopt(on_cpu)?; // a Buf<Cpu, f32>, wanted is a Buf<B, f32>
///         Ok(())
///     }
/// }
/// ```
#[macro_export]
macro_rules! any_device {
    (
        $(#[$meta:meta])*
        $vis:vis enum $Name:ident {
            $(
                $(#[doc = $doc:expr])*
                $(#[cfg($($cfg:tt)+)])?
                $Variant:ident($Backend:ty)
            ),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        $vis enum $Name {
            $(
                $(#[doc = $doc])*
                #[doc = concat!("A device of `", stringify!($Backend), "`.")]
                $(#[cfg($($cfg)+)])?
                $Variant($crate::Dev<$Backend>),
            )+
        }

        $(
            $(#[cfg($($cfg)+)])?
            impl ::core::convert::From<$crate::Dev<$Backend>> for $Name {
                fn from(device: $crate::Dev<$Backend>) -> Self {
                    Self::$Variant(device)
                }
            }
        )+

        #[allow(dead_code, reason = "a program need not use all of it")]
        impl $Name {
            /// The names of the backends that are compiled in.
            $vis const COMPILED_IN: &'static [&'static str] = &[
                $( $(#[cfg($($cfg)+)])? <$Backend as $crate::Backend>::NAME, )+
            ];

            /// The backends that are not compiled in, by the names of their variants in lower case, and the `cfg` that
            /// compiles them in.
            $vis fn not_compiled_in() -> ::std::vec::Vec<(::std::string::String, &'static str)> {
                #[allow(unused_mut, reason = "used where a cfg is off")]
                let mut names = ::std::vec::Vec::new();
                $( $(
                    #[cfg(not($($cfg)+))]
                    {
                        names.push((stringify!($Variant).to_lowercase(), stringify!($($cfg)+)));
                    }
                )? )+
                names
            }

            /// Opens the device that a specification asks for.
            ///
            /// # Errors
            /// `Error::InvalidArgument` if no backend of that name is compiled in, else
            /// those of `Dev::open`.
            $vis fn open(spec: &$crate::DeviceSpec) -> $crate::Result<Self> {
                $(
                    $(#[cfg($($cfg)+)])?
                    {
                        if spec.backend() == <$Backend as $crate::Backend>::NAME {
                            return $crate::Dev::<$Backend>::open(spec).map(Self::$Variant);
                        }
                    }
                )+
                ::core::result::Result::Err($crate::any::unknown_backend(
                    spec.backend(),
                    Self::COMPILED_IN,
                    &Self::not_compiled_in(),
                ))
            }

            /// The canonical identity.
            $vis fn id(&self) -> $crate::AnyDeviceId {
                match self {
                    $( $(#[cfg($($cfg)+)])? Self::$Variant(device) => device.id().erase(), )+
                }
            }

            /// What the device says of itself.
            $vis fn info(&self) -> $crate::DeviceInfo {
                match self {
                    $( $(#[cfg($($cfg)+)])? Self::$Variant(device) => device.info(), )+
                }
            }

            /// What the device can do.
            $vis fn capabilities(&self) -> $crate::oracle::Capabilities {
                match self {
                    $( $(#[cfg($($cfg)+)])? Self::$Variant(device) => {
                        $crate::Device::capabilities(device.raw())
                    } )+
                }
            }

            /// Hands the typed device to a visitor.
            $vis fn visit<V: $crate::DeviceVisitor>(&self, visitor: V) -> V::Output {
                match self {
                    $( $(#[cfg($($cfg)+)])? Self::$Variant(device) => visitor.visit(device), )+
                }
            }

            /// Runs a visitor for the backend of this name, whether it can be used here or not.
            ///
            /// # Errors
            /// `Error::InvalidArgument` if no backend of that name is compiled in.
            $vis fn visit_backend<V: $crate::BackendVisitor>(name: &str, visitor: V) -> $crate::Result<V::Output> {
                $(
                    $(#[cfg($($cfg)+)])?
                    {
                        if name == <$Backend as $crate::Backend>::NAME {
                            return ::core::result::Result::Ok(visitor.visit::<$Backend>());
                        }
                    }
                )+
                ::core::result::Result::Err($crate::any::unknown_backend(
                    name,
                    Self::COMPILED_IN,
                    &Self::not_compiled_in(),
                ))
            }

            /// All devices of all backends, opened, for a wish; and the backends without one, with the reason.
            $vis fn candidates(wish: &$crate::oracle::Wish) -> ::std::vec::Vec<$crate::oracle::Candidate<Self>> {
                let mut all = ::std::vec::Vec::new();
                $(
                    $(#[cfg($($cfg)+)])?
                    {
                        all.extend($crate::oracle::Candidate::of_backend::<$Backend>(wish, Self::$Variant));
                    }
                )+
                for (name, cfg) in Self::not_compiled_in() {
                    let reason = ::std::format!("not compiled in: it needs {cfg}");
                    all.push($crate::oracle::Candidate::unusable(&name, ::core::option::Option::None, reason));
                }
                all
            }

            /// Chooses a device for a wish, at set-up, and says why.
            ///
            /// # Errors
            /// Those of `oracle::select`.
            $vis fn select(
                wish: &$crate::oracle::Wish,
            ) -> ::core::result::Result<$crate::oracle::Selection<Self>, $crate::oracle::OracleError> {
                $crate::oracle::select(wish, Self::candidates(wish))
            }
        }
    };
}

/// The error of a name that no backend of an enum has.
#[doc(hidden)]
pub fn unknown_backend(name: &str, compiled_in: &[&str], absent: &[(String, &str)]) -> crate::Error {
    let mut expected = format!("a backend that is compiled in: {}", compiled_in.join(", "));
    if let Some((_, cfg)) = absent.iter().find(|(absent, _)| absent == name) {
        expected.push_str(&format!("; {name} needs {cfg}"));
    }
    crate::Error::InvalidArgument { op: "open", arg: "backend", expected, got: format!("{name:?}") }
}
