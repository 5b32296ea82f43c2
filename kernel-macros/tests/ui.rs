//! What a user sees: errors on their tokens, all of one call together. Every other error is a unit test of the expansion.

#[test]
fn errors_point_at_tokens() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
