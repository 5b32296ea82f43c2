//! Runs PTX text on the CPU and reports every misuse of memory and synchronisation.
//!
//! A [`Module`] is parsed PTX; a [`Machine`] is a device with memory of its own; [`Machine::launch`] runs a kernel of
//! the one on the other and returns when it has ended:
//!
//! ```
//! use ptx_emulator::{Launch, Machine, Module};
//!
//! let module = Module::parse(
//!     ".version 7.0 .target sm_80 .address_size 64
//!      .visible .entry double(.param .u64 data) {
//!          .reg .b32 %r<3>; .reg .b64 %rd<4>;
//!          ld.param.u64 %rd1, [data];
//!          mov.u32 %r1, %tid.x;
//!          mul.wide.u32 %rd2, %r1, 4;
//!          add.s64 %rd3, %rd1, %rd2;
//!          ld.global.u32 %r2, [%rd3];
//!          shl.b32 %r2, %r2, 1;
//!          st.global.u32 [%rd3], %r2;
//!          ret;
//!      }",
//! )?;
//! let machine = Machine::new();
//! let data = machine.allocate(32 * 4);
//! machine.fill(data, 1, 32 * 4)?;
//! let parameters = data.to_le_bytes();
//! let launch = Launch { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0, parameters: &parameters, early: None };
//! machine.launch(&module, "double", &launch)?;
//! let mut out = [0; 4];
//! machine.read(data, &mut out)?;
//! assert_eq!(u32::from_le_bytes(out), 0x02020202);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it executes
//!
//! The instructions of `sm_80` that compilers and kernel generators emit, a warp at a time, with the exact results of
//! the PTX ISA for integers and for correctly rounded floating point; approximate instructions (`ex2.approx`,
//! `rcp.approx` …) are at least as accurate as the hardware but not bit-equal to it, and `mma.sync` and `wgmma` sum in
//! another order. Of `sm_90a` what attention kernels are made of: mbarriers, bulk tensor copies to shared memory (a
//! [`TensorMap`] is the parameter), `wgmma` with f32 sums of 16-bit products, `setmaxnreg`, `stmatrix`, `elect`; no
//! clusters, and no bulk copies to global memory. Anything else is a [`ParseError`].
//!
//! Asynchronous work is done as late as the rules allow: a `wgmma` reads and sums when the first warp waits for its
//! group, and a bulk copy lands when no warp can go on without it. The first `mbarrier.try_wait` that comes too early
//! says so; its thread then sleeps until the phase has ended.
//!
//! # What it checks
//!
//! Always, in every launch; [`ReportKind`] lists it. Barriers, mbarriers and waits order what warps, tensor cores and
//! copies do to shared memory; accesses that they do not order are reported whatever the schedule was. What a warp
//! writes reaches tensor cores and copies only after its own `fence.proxy.async`: one by the reader does not count.
//!
//! Launches run one after the other. Of one that hardware may start early ([`Launch::early`]) every thread must execute
//! `griddepcontrol.wait` before it reads what the launch does not call constant, before it writes, and before it ends.
//!
//! What it does not check: races between blocks on global memory, a write after another lane's read inside a warp, proxy
//! fences of global memory, and ordering by flags in shared memory (only barriers order warps). Lanes of one warp make
//! progress in turns only when they wait, for each other or for an mbarrier; a spin lock between lanes of one warp does
//! not end, and is reported by the instruction budget.

mod clock;
mod dataflow;
mod decode;
mod descriptor;
mod exec;
mod level;
mod lex;
mod machine;
mod mbarrier;
mod memory;
mod module;
mod op;
mod parse;
mod report;
mod scheduler;
mod shared;
mod swizzle;
mod tensor_map;
mod types;
mod warp;
mod warpgroup;

pub use machine::{Launch, Machine};
pub use module::Module;
pub use report::{AccessError, LaunchError, ParseError, Report, ReportKind};
pub use swizzle::Swizzle;
pub use tensor_map::{TensorMap, TensorMapError};
