//! Each promise about identity and tags, as a program that must not compile, with the compiler's message. The
//! messages are those of Rust 1.95; `TRYBUILD=overwrite cargo test -p moe-core --test compile_fail` makes new ones.

#[test]
fn misuse_does_not_compile_and_right_use_does() {
    let tests = trybuild::TestCases::new();
    tests.pass("tests/ui/pass/*.rs");
    tests.compile_fail("tests/ui/fail/*.rs");
}
