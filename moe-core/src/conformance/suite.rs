//! Making a suite out of its groups.

// `$d` carries a dollar sign into the macro that this one makes; `$expect` is what its `expect_pass` is called in
// `conformance`.
macro_rules! suite {
    ($d:tt $suite:ident by $expect:ident for $Trait:ident: $($module:ident :: $name:ident,)*) => {
        /// The groups of the suite, in order.
        pub const GROUPS: &[&str] = &[$(stringify!($name)),*];

        type Group<B> = (&'static str, for<'a, 'b> fn(&'a mut $crate::conformance::harness::Ctx<'b, B>));

        fn find<B: $crate::$Trait>(name: &str) -> Option<Group<B>> {
            match name {
                $(stringify!($name) => Some((stringify!($name), $module::$name::<B>)),)*
                _ => None,
            }
        }

        /// Runs the whole suite on the device that a specification asks for.
        ///
        /// # Panics
        /// If the specification cannot be read.
        pub fn run<B: $crate::$Trait>(
            spec: &str,
            options: &$crate::conformance::Options,
        ) -> $crate::conformance::Report {
            let groups = GROUPS.iter().map(|name| run_group::<B>(spec, name, options)).collect();
            let device = $crate::Dev::<B>::open(&$crate::conformance::suite::parse(spec));
            let device = device.map_or_else(|_| spec.to_owned(), |dev| dev.id().to_string());
            $crate::conformance::Report { device, seed: options.seed, full: options.full, groups }
        }

        /// Runs one group of [`GROUPS`].
        ///
        /// # Panics
        /// If there is no such group or the specification cannot be read.
        pub fn run_group<B: $crate::$Trait>(
            spec: &str,
            group: &str,
            options: &$crate::conformance::Options,
        ) -> $crate::conformance::GroupReport {
            let (name, body) =
                find::<B>(group).unwrap_or_else(|| panic!("no conformance group is called {group}"));
            $crate::conformance::harness::run_group(name, &$crate::conformance::suite::parse(spec), options, body)
        }

        /// Runs one group, prints what it did, and panics if it failed.
        ///
        /// # Panics
        /// If a case failed.
        pub fn expect_pass<B: $crate::$Trait>(spec: &str, group: &str, options: &$crate::conformance::Options) {
            let report = run_group::<B>(spec, group, options);
            println!("{report} (seed {})", options.seed);
            assert!(report.failed == 0, "{report}\nrepeat with MOE_SEED={}", options.seed);
        }

        /// Expands to one test for each group of the [suite](crate::conformance): the backend's type, the device as one
        /// writes it, and if wanted an expression that gives [`Options`](crate::conformance::Options).
        #[macro_export]
        macro_rules! $suite {
            ($d B:ty, $d spec:expr) => {
                $crate::$suite!($d B, $d spec, $crate::conformance::Options::from_env());
            };
            ($d B:ty, $d spec:expr, $d options:expr) => {
                $(
                    #[test]
                    fn $name() {
                        $crate::conformance::$expect::<$d B>($d spec, stringify!($name), &$d options);
                    }
                )*
            };
        }
    };
}

pub(super) use suite;

pub(super) fn parse(spec: &str) -> crate::DeviceSpec {
    spec.parse().unwrap_or_else(|e| panic!("{e}"))
}
