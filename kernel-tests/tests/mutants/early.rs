//! Mutants of kernels that start early.

use super::mutation::*;
use kernel_tests::testing::scenes::{self, Scene};
use ptx::{Arch, kernels::attention::Pattern::Dense};

/// Kernels that start early.
pub(super) fn mutants(seed: u64) -> Vec<(Scene, Vec<Mutation>)> {
    let wait = |what, change| mutation(what, "griddepcontrol.wait", 0, change);
    let of = |scene: Scene, more: Vec<Mutation>| {
        let dropped = wait("no wait for the launches in front", Drop);
        let late = wait("the wait behind the first read of what they wrote", Past("ld.global."));
        (scene, [dropped, late].into_iter().chain(more).collect())
    };
    let arch = Arch::Sm90a;
    const FIRST_X: &str = "// x of the first steps";
    vec![
        of(
            scenes::linear(false, arch, seed),
            vec![
                in_section(FIRST_X, "x of the second step not brought", "st.shared.v4", 3, Drop),
                in_section(FIRST_X, "x behind the last inner element", "setp.lt.u32", 2, Rewrite(always)),
                in_section(STEPS, "no barrier before a stage is read", "bar.sync", 0, Drop),
                in_section(STEPS, "a wait for one group too few", "cp.async.wait_group", 0, Swap(" 2;", " 3;")),
                in_section(STEPS, "the last stage filled twice", "setp.gt.u32", 0, Swap(".gt", ".ge")),
            ],
        ),
        of(scenes::linear(true, arch, seed), vec![]),
        of(
            scenes::rms_norm(arch, seed),
            vec![
                in_section("// sum of squares", "x through a cache", "ld.global.v4", 0, Swap("global", "global.nc")),
                mutation("weights of the next chunk", "ld.global.v4", 0, Swap("]", "+16]")),
            ],
        ),
        of(scenes::rope(arch, seed), vec![mutation("the next frequency", "ld.global.b64", 0, Swap("]", "+8]"))]),
        of(scenes::swiglu(arch, seed), vec![]),
        of(scenes::gather(arch, seed), vec![]),
        of(scenes::scatter(arch, seed), vec![]),
        of(scenes::embed(arch, seed), vec![]),
        of(scenes::head_rows(arch, seed), vec![]),
        of(scenes::selection(arch, seed), vec![]),
        of(scenes::attention_parts(Dense, arch, seed), vec![]),
    ]
}
