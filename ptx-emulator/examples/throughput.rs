//! How fast the emulator is on this machine: `cargo run --release -p ptx-emulator --example throughput`.
//!
//! Each kernel is a loop of one kind of instruction, run by one block on one core and by many on all of them.

use std::fmt::Write;
use std::time::Instant;

use ptx_emulator::{Launch, Machine, Module};

/// A loop of `trips` times `body` by blocks of four warps.
fn kernel(setup: &str, body: &str, trips: u32) -> Result<Module, Box<dyn std::error::Error>> {
    let text = format!(
        ".version 8.0
         .target sm_90a
         .address_size 64
         .visible .entry loop(.param .u64 out) {{
             .reg .pred %p<4>; .reg .b32 %r<64>; .reg .f32 %f<128>; .reg .b64 %rd<8>;
             .shared .align 1024 .b8 tile[16384];
             mov.u32 %r0, 0; mov.u32 %r1, %tid.x;
             ld.param.u64 %rd1, [out];
             {setup}
         AGAIN:
             {body}
             add.u32 %r0, %r0, 1;
             setp.lt.u32 %p0, %r0, {trips};
             @%p0 bra AGAIN;
             ret;
         }}"
    );
    Ok(Module::parse(&text)?)
}

/// Seconds that this thread has been on a core, where the system tells: a busy machine then measures as an idle one.
fn on_core() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split(' ').next()?.parse::<f64>().ok()? * 1e-9)
}

/// Seconds of a launch: of one block the time on its core, of more the time on the clock.
fn seconds(machine: &Machine, module: &Module, blocks: u32) -> Result<f64, Box<dyn std::error::Error>> {
    let out = machine.allocate(1 << 20);
    machine.fill(out, 1, 1 << 20)?;
    let parameters = out.to_le_bytes();
    let launch =
        Launch { grid: [blocks, 1, 1], block: [128, 1, 1], shared_bytes: 0, parameters: &parameters, early: None };
    let (start, before) = (Instant::now(), on_core());
    machine.launch(module, "loop", &launch)?;
    Ok(match (before, on_core()) {
        (Some(before), Some(after)) if blocks == 1 => after - before,
        _ => start.elapsed().as_secs_f64(),
    })
}

/// Body, work it does in one warp, and the unit of that work.
type Case = (&'static str, String, String, f64, &'static str);

fn cases() -> Result<Vec<Case>, std::fmt::Error> {
    let (mut floats, mut integers, mut exponentials, mut matrices) =
        (String::new(), String::new(), String::new(), String::new());
    let (mut zero, mut addresses) = (String::new(), String::new());
    for i in 0..16 {
        writeln!(zero, "cvt.rn.f32.u32 %f{i}, %r1; add.u32 %r{}, %r1, {i};", 16 + i)?;
        writeln!(floats, "fma.rn.f32 %f{i}, %f{i}, 0f3F000000, 0f3F800000;")?;
        writeln!(integers, "mad.lo.u32 %r{0}, %r{0}, 5, 7; xor.b32 %r{0}, %r{0}, %r1;", 16 + i)?;
        writeln!(exponentials, "ex2.approx.ftz.f32 %f{i}, %f{i};")?;
    }
    write!(
        addresses,
        "{zero} shl.b32 %r2, %r1, 4; mov.u32 %r3, tile; add.u32 %r2, %r2, %r3; mov.u32 %r4, 0x3c003c00;
         st.shared.v4.u32 [%r2], {{%r4, %r4, %r4, %r4}}; bar.sync 0;
         shl.b32 %r5, %r1, 2; cvt.u64.u32 %rd2, %r5; add.u64 %rd1, %rd1, %rd2;"
    )?;
    for i in 0..8 {
        let d = format!("%f{}, %f{}, %f{}, %f{}", 4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3);
        if i % 2 == 0 {
            writeln!(matrices, "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r40, %r41, %r42, %r43}}, [%r2];")?;
        }
        let b = if i % 2 == 0 { "%r40, %r41" } else { "%r42, %r43" };
        writeln!(
            matrices,
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{{d}}}, {{%r4, %r4, %r4, %r4}}, {{{b}}}, {{{d}}};"
        )?;
    }
    // A tile of 128 rows by 64, as both factors.
    let mut tiles =
        "mov.u32 %r2, tile; shl.b32 %r3, %r1, 4; add.u32 %r3, %r3, %r2; mov.u32 %r4, 0x3c003c00;".to_string();
    (0..8).try_for_each(|i| writeln!(tiles, "st.shared.v4.u32 [%r3+{}], {{%r4, %r4, %r4, %r4}};", 2048 * i))?;
    tiles += "fence.proxy.async; bar.sync 0; shr.u32 %r2, %r2, 4; cvt.u64.u32 %rd2, %r2;
              or.b64 %rd2, %rd2, 0x4000004000010000; mov.u64 %rd3, %rd2;";
    let d = (0..64).map(|i| format!("%f{i}")).collect::<Vec<_>>().join(", ");
    let multiply = |a: &str, bits: &str| {
        let one = format!(
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {{{d}}}, {a}, %rd3, %p0, 1, 1, {bits};
             xor.b64 %rd3, %rd3, 2;\n"
        );
        format!(
            "wgmma.fence.sync.aligned; {} wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;",
            one.repeat(4)
        )
    };
    let (shared, registers) = (multiply("%rd2", "0, 0"), multiply("{%r4, %r4, %r4, %r4}", "1"));
    tiles += "setp.ne.u32 %p0, 0, 0;";
    let product = 4.0 * 2.0 * 16.0 * 128.0 * 16.0;
    let mut more = addresses.clone();
    (16..32).try_for_each(|i| write!(more, "mov.f32 %f{i}, 0f00000000;"))?;
    let loads = "ld.shared.u32 %r20, [%r2]; ld.shared.u32 %r21, [%r2+4];".repeat(4);
    let globals = "ld.global.u32 %r20, [%rd1]; ld.global.u32 %r21, [%rd1+4096];".repeat(4);
    let stores = "st.global.u32 [%rd1], %r20; st.global.u32 [%rd1+4096], %r20;".repeat(4);
    Ok(vec![
        ("fma.rn.f32", zero.clone(), floats, 16.0 * 32.0, "G lane operations/s"),
        ("mad.lo + xor", zero.clone(), integers, 32.0 * 32.0, "G lane operations/s"),
        ("ex2.approx", zero, exponentials, 16.0 * 32.0, "G lane operations/s"),
        ("mma + ldmatrix", more, matrices, 8.0 * 4096.0, "GFLOP/s"),
        ("wgmma, a shared", tiles.clone(), shared, product, "GFLOP/s"),
        ("wgmma, a in registers", tiles, registers, product, "GFLOP/s"),
        ("ld.shared", addresses.clone(), loads, 8.0 * 32.0, "G lane operations/s"),
        ("ld.global", addresses.clone(), globals, 8.0 * 32.0, "G lane operations/s"),
        ("st.global", addresses, stores, 8.0 * 32.0, "G lane operations/s"),
    ])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cores = std::thread::available_parallelism()?.get() as u32;
    for (name, machine) in [("vector", Machine::new()), ("baseline", Machine::new().with_baseline_instructions())] {
        println!("{name} instructions");
        for (case, setup, body, work, unit) in cases()? {
            let trips = 5_000;
            let module = kernel(&setup, &body, trips)?;
            let total = work * 4.0 * f64::from(trips) * 1e-9;
            let one = total / seconds(&machine, &module, 1)?;
            let all = total * f64::from(2 * cores) / seconds(&machine, &module, 2 * cores)?;
            println!("  {case:22} {one:8.2} {unit} on one core, {all:8.2} on {cores}");
        }
    }
    Ok(())
}
