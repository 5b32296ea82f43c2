//! A whole warp-specialised kernel: O = (Q Kᵀ) V by a producer warp and two consumer warpgroups, with K and V in two
//! stages each. Every synchronisation stands on a line of its own that ends in its name, so that tests can leave it out.

use super::*;

/// Depth of a head, and keys of a tile.
pub const DEPTH: usize = 64;
/// Rows of Q.
pub const ROWS: usize = 128;
/// Bytes of the pool.
pub const POOL: u32 = 1024 + 3 * 16384;

/// Offsets in the pool of the mbarriers and the tiles; stages are 8 bytes and 8 KiB apart.
const Q_FULL: u32 = 0;
const K_FULL: u32 = 8;
const K_EMPTY: u32 = 24;
const V_FULL: u32 = 40;
const V_EMPTY: u32 = 56;
const Q: u32 = 1024;
const K: u32 = Q + 16384;
const V: u32 = K + 16384;

/// Waits for the phase `parity` of the mbarrier at `[%r1 + offset (+ stage)]`.
fn wait(name: &str, label: &str, address: &str, parity: &str) -> String {
    format!(
        "WAIT_{label}: mbarrier.try_wait.parity.shared.b64 %p7, [{address}], {parity}, 10000000; //{name}
         @!%p7 bra WAIT_{label}; //{name}\n"
    )
}

/// Copies a tile of 64 rows, or of 128.
fn copy(map: u32, target: &str, row: &str, mbarrier: &str) -> String {
    format!(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [{target}], [%rd{map}, {{%r0, \
         {row}}}], [{mbarrier}];\n"
    )
}

/// S = Q Kᵀ.
fn scores() -> String {
    let d: Vec<String> = (0..32).map(|i| format!("%s{i}")).collect();
    let mut text = String::from("wgmma.fence.sync.aligned; //score fence\n");
    for step in 0..4 {
        text += &format!(
            "add.u64 %rd10, %rd5, {0}; add.u64 %rd11, %rd6, {0};
             wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{1}}}, %rd10, %rd11, {2}, 1, 1, 0, 0;\n",
            2 * step,
            d.join(", "),
            u32::from(step > 0)
        );
    }
    text + "wgmma.commit_group.sync.aligned; //score commit\n"
}

/// O += P V.
fn values() -> String {
    let d: Vec<String> = (0..32).map(|i| format!("%o{i}")).collect();
    let mut text = String::from("wgmma.fence.sync.aligned; //value fence\n");
    for step in 0..4 {
        let a: Vec<String> = (0..4).map(|i| format!("%a{}", 4 * step + i)).collect();
        text += &format!(
            "add.u64 %rd10, %rd7, {};
             wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{}}}, {{{}}}, %rd10, %p6, 1, 1, 1;
             setp.eq.u32 %p6, 0, 0;\n",
            128 * step,
            d.join(", "),
            a.join(", ")
        );
    }
    text + "wgmma.commit_group.sync.aligned; //value commit\n"
}

/// P, S in 16 bits.
fn probabilities() -> String {
    (0..16).map(|i| format!("cvt.rn.bf16x2.f32 %a{i}, %s{}, %s{};\n", 2 * i + 1, 2 * i)).collect()
}

/// Stage and parity of tile `%r3 - back`, and the addresses that follow: `%r10` stage × 8, `%r11` parity, `%r12` the
/// opposite.
pub fn stage(back: u32) -> String {
    format!(
        "sub.u32 %r10, %r3, {back}; bfe.u32 %r11, %r10, 1, 1; xor.b32 %r12, %r11, 1; and.b32 %r10, %r10, 1;
         shl.b32 %r13, %r10, 13; shl.b32 %r10, %r10, 3; add.u32 %r10, %r1, %r10;\n"
    )
}

/// Descriptor `%rd` of a tile at `%r1 + %r13 + offset`.
fn descriptor(target: u32, base: &str, offset: u32) -> String {
    format!(
        "add.u32 %r14, {base}, {offset}; shr.u32 %r14, %r14, 4; cvt.u64.u32 %rd{target}, %r14;
         or.b64 %rd{target}, %rd{target}, 0x4000004000010000;\n"
    )
}

/// The kernel for `tiles` tiles of 64 keys.
pub fn source(tiles: usize) -> String {
    let release = |name: &str, offset: u32| format!("@%p5 mbarrier.arrive.shared.b64 _, [%r10+{offset}]; //{name}\n");
    let mut text = format!(
        ".reg .pred %p<8>; .reg .b32 %r<40>; .reg .b32 %a<16>; .reg .f32 %s<32>; .reg .f32 %o<32>; .reg .b64 %rd<16>;
         mov.b64 %rd1, q_map; cvta.param.u64 %rd1, %rd1; mov.b64 %rd2, k_map; cvta.param.u64 %rd2, %rd2;
         mov.b64 %rd3, v_map; cvta.param.u64 %rd3, %rd3;
         mov.u32 %r0, 0; mov.u32 %r1, pool; mov.u32 %r2, %tid.x; shr.u32 %r4, %r2, 5; shr.u32 %r5, %r2, 7;
         setp.ne.u32 %p1, %r2, 0;
         @%p1 bra INITIALISED;
         prefetch.tensormap [%rd1];
         mbarrier.init.shared.b64 [%r1+{Q_FULL}], 1;
         mbarrier.init.shared.b64 [%r1+{K_FULL}], 1; mbarrier.init.shared.b64 [%r1+{}], 1;
         mbarrier.init.shared.b64 [%r1+{K_EMPTY}], 8; mbarrier.init.shared.b64 [%r1+{}], 8;
         mbarrier.init.shared.b64 [%r1+{V_FULL}], 1; mbarrier.init.shared.b64 [%r1+{}], 1;
         mbarrier.init.shared.b64 [%r1+{V_EMPTY}], 8; mbarrier.init.shared.b64 [%r1+{}], 8;
         fence.mbarrier_init.release.cluster; //mbarrier fence
         INITIALISED:
         bar.sync 0; //block barrier
         mov.u32 %r3, 0;
         setp.ne.u32 %p1, %r5, 0; @%p1 bra CONSUMER;
         setmaxnreg.dec.sync.aligned.u32 24;
         setp.ne.u32 %p1, %r4, 0; @%p1 exit;
         elect.sync _|%p1, 0xffffffff; @!%p1 exit;
         mbarrier.arrive.expect_tx.shared.b64 _, [%r1+{Q_FULL}], 16384; //q expect\n",
        K_FULL + 8,
        K_EMPTY + 8,
        V_FULL + 8,
        V_EMPTY + 8
    );
    text += &copy(1, &format!("%r1+{Q}"), "%r0", &format!("%r1+{Q_FULL}"));
    text += "PRODUCE:\n";
    text += &stage(0);
    text += "add.u32 %r14, %r1, %r13; shl.b32 %r15, %r3, 6;\n";
    for (name, map, empty, full, tile) in [("k", 2, K_EMPTY, K_FULL, K), ("v", 3, V_EMPTY, V_FULL, V)] {
        let label = format!("{}_EMPTY", name.to_uppercase());
        text += &wait(&format!("{name} empty"), &label, &format!("%r10+{empty}"), "%r12");
        text += &format!("mbarrier.arrive.expect_tx.shared.b64 _, [%r10+{full}], 8192; //{name} expect\n");
        text += &copy(map, &format!("%r14+{tile}"), "%r15", &format!("%r10+{full}"));
    }
    text += &format!(
        "add.u32 %r3, %r3, 1; setp.lt.u32 %p1, %r3, {tiles}; @%p1 bra PRODUCE;
         ret;
         CONSUMER:
         setmaxnreg.inc.sync.aligned.u32 240;
         and.b32 %r6, %r2, 31; setp.eq.u32 %p5, %r6, 0; setp.ne.u32 %p6, 0, 0;
         // Warpgroup 1 has the first turn.
         setp.eq.u32 %p4, %r5, 1; @%p4 bar.arrive 2, 256; //first turn
         add.u32 %r16, %r5, 1; sub.u32 %r17, 4, %r5;
         sub.u32 %r18, %r5, 1; shl.b32 %r18, %r18, 13; add.u32 %r18, %r1, %r18;\n"
    );
    text += &descriptor(5, "%r18", Q);
    text += &wait("q full", "Q_FULL", &format!("%r1+{Q_FULL}"), "0");
    // The first tile.
    text += &stage(0);
    text += &wait("k full", "K_FIRST", &format!("%r10+{K_FULL}"), "%r11");
    text += "add.u32 %r19, %r1, %r13;\n";
    text += &descriptor(6, "%r19", K);
    text += "bar.sync %r16, 256; //turn\n";
    text += &scores();
    text += "bar.arrive %r17, 256; //next turn\nwgmma.wait_group.sync.aligned 0; //first wait\n";
    text += &release("k release", K_EMPTY);
    text += &probabilities();
    text += &format!("mov.u32 %r3, 1; LOOP: setp.ge.u32 %p1, %r3, {tiles}; @%p1 bra LAST;\n");
    text += &stage(0);
    text += &wait("k full", "K_FULL", &format!("%r10+{K_FULL}"), "%r11");
    text += "add.u32 %r19, %r1, %r13;\n";
    text += &descriptor(6, "%r19", K);
    text += "bar.sync %r16, 256; //turn\n";
    text += &scores();
    text += &stage(1);
    text += &wait("v full", "V_FULL", &format!("%r10+{V_FULL}"), "%r11");
    text += "add.u32 %r19, %r1, %r13;\n";
    text += &descriptor(7, "%r19", V);
    text += &values();
    text += "bar.arrive %r17, 256; //next turn\nwgmma.wait_group.sync.aligned 1; //score wait\n";
    text += &stage(0);
    text += &release("k release", K_EMPTY);
    text += "mul.rn.f32 %s0, %s0, 0f3F800000;\nwgmma.wait_group.sync.aligned 0; //value wait\n";
    text += &stage(1);
    text += &release("v release", V_EMPTY);
    text += "mul.rn.f32 %o0, %o0, 0f3F800000;\n";
    text += &probabilities();
    text += "add.u32 %r3, %r3, 1; bra LOOP;\nLAST:\n";
    text += &stage(1);
    text += &wait("v full", "V_LAST", &format!("%r10+{V_FULL}"), "%r11");
    text += "add.u32 %r19, %r1, %r13;\n";
    text += &descriptor(7, "%r19", V);
    text += &values();
    text += "wgmma.wait_group.sync.aligned 0; //last wait\n";
    text += &release("v release", V_EMPTY);
    // O in 16 bits over the rows of Q that only this warp has read, then 16 bytes a thread to global memory.
    text += "and.b32 %r20, %r4, 3; shl.b32 %r20, %r20, 4; and.b32 %r21, %r6, 15; add.u32 %r20, %r20, %r21;
         shl.b32 %r22, %r20, 7; add.u32 %r22, %r18, %r22; and.b32 %r23, %r20, 7; shr.u32 %r24, %r6, 4;\n";
    for step in 0..4 {
        for i in 0..4 {
            let o = 8 * step + 2 * i;
            text += &format!("cvt.rn.bf16x2.f32 %r{}, %o{}, %o{};\n", 30 + i, o + 1, o);
        }
        text += &format!(
            "add.u32 %r25, %r24, {}; xor.b32 %r25, %r25, %r23; shl.b32 %r25, %r25, 4; add.u32 %r25, %r22, %r25;
             stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r25+{Q}], {{%r30, %r31, %r32, %r33}};\n",
            2 * step
        );
    }
    text += "add.u32 %r28, %r5, 4;
         bar.sync %r28, 128; //epilogue barrier
         and.b32 %r20, %r2, 127; and.b32 %r21, %r20, 7; shr.u32 %r22, %r20, 3; ld.param.u64 %rd8, [out];
         mov.u32 %r26, 0;
         STORE: and.b32 %r23, %r22, 7; xor.b32 %r23, %r23, %r21; shl.b32 %r23, %r23, 4; shl.b32 %r24, %r22, 7;
         add.u32 %r23, %r23, %r24; add.u32 %r23, %r23, %r18;\n";
    text += &format!(
        "ld.shared.v4.u32 {{%r30, %r31, %r32, %r33}}, [%r23+{Q}];
         sub.u32 %r25, %r5, 1; shl.b32 %r25, %r25, 6; add.u32 %r25, %r25, %r22; shl.b32 %r25, %r25, 7;
         shl.b32 %r27, %r21, 4; add.u32 %r25, %r25, %r27; cvt.u64.u32 %rd9, %r25; add.u64 %rd9, %rd8, %rd9;
         st.global.v4.u32 [%rd9], {{%r30, %r31, %r32, %r33}};
         add.u32 %r22, %r22, 16; setp.lt.u32 %p1, %r22, 64; @%p1 bra STORE;
         ret;"
    );
    text
}

/// The text without the lines of this name, or with something else in their place.
pub fn replace(source: &str, name: &str, by: &str) -> String {
    let mark = format!("//{name}");
    assert!(source.lines().any(|line| line.ends_with(&mark)), "{name}");
    source.lines().map(|line| if line.ends_with(&mark) { by } else { line }).collect::<Vec<_>>().join("\n")
}

/// The module of a text that [`source`] gave, or of what became of it.
pub fn module(source: &str) -> Result<Module, ParseError> {
    let list = ".param .align 64 .b8 q_map[128], .param .align 64 .b8 k_map[128], .param .align 64 .b8 v_map[128], \
                .param .u64 out";
    let pool = ".extern .shared .align 1024 .b8 pool[];";
    let limits = ".reqntid 384, 1, 1\n.minnctapersm 1";
    Module::parse(&format!("{HOPPER}{pool}\n.visible .entry test({list})\n{limits}\n{{\n{source}\n}}\n"))
}

/// Runs the kernel on small integers, for which it is exact. Gives the first element that is wrong.
pub fn launch_on(module: &Module, tiles: usize, seed: u64, budget: u64) -> Result<Option<String>, LaunchError> {
    let machine = Machine::with_seed(seed).with_instruction_budget(budget);
    let value = |i: usize, salt: usize| ((i * 7919 + i / 64 * 31 + salt) % 3) as f32 - 1.0;
    let matrix = |rows: usize, salt: usize| (0..rows * DEPTH).map(|i| value(i, salt)).collect::<Vec<f32>>();
    let (q, k, v) = (matrix(ROWS, 1), matrix(64 * tiles, 2), matrix(64 * tiles, 5));
    let map = |values: &[f32], rows: u32| TensorMap {
        address: upload(&machine, values, |value| narrow("bf16", value).to_le_bytes().to_vec()),
        rank: 2,
        element_bytes: 2,
        dims: [DEPTH as u64, (values.len() / DEPTH) as u64, 0, 0, 0],
        strides_bytes: [2 * DEPTH as u64, 0, 0, 0],
        box_dims: [DEPTH as u32, rows, 0, 0, 0],
        swizzle: ptx_emulator::Swizzle::Bytes128,
    };
    let out = machine.allocate(2 * ROWS * DEPTH);
    let maps = [map(&q, 128), map(&k, 64), map(&v, 64)];
    hopper_block(&machine, module, 384, POOL, &maps, &[out])?;
    let mut bytes = vec![0; 2 * ROWS * DEPTH];
    machine.read_unchecked(out, &mut bytes).unwrap();
    for row in 0..ROWS {
        let dot = |key: usize| (0..DEPTH).map(|d| q[row * DEPTH + d] * k[key * DEPTH + d]).sum::<f32>();
        let scores: Vec<f32> = (0..64 * tiles).map(dot).collect();
        for d in 0..DEPTH {
            let exact: f32 = scores.iter().enumerate().map(|(key, score)| score * v[key * DEPTH + d]).sum();
            let at = 2 * (row * DEPTH + d);
            let found = widen("bf16", u16::from_le_bytes([bytes[at], bytes[at + 1]]));
            if found != widen("bf16", narrow("bf16", exact)) {
                return Ok(Some(format!("seed {seed}: element {row}, {d} is {found}, not {exact}")));
            }
        }
    }
    Ok(None)
}

/// Runs a kernel that is right, or is reported.
pub fn run(source: &str, tiles: usize, seed: u64) -> Result<(), LaunchError> {
    let module = module(source).unwrap_or_else(|error| panic!("{error}"));
    let wrong = launch_on(&module, tiles, seed, 1 << 24)?;
    assert_eq!(wrong, None);
    Ok(())
}
