//! Helpers of the test suites.

#![allow(dead_code, reason = "each suite is compiled with this module and uses a part of it")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic, reason = "tests")]

pub mod pipeline;

use ptx_emulator::{Launch, LaunchError, Machine, Module, ParseError, ReportKind, TensorMap};

/// A form of an instruction of one source and its model.
pub type Unary<T, R> = (&'static str, fn(T) -> R);
/// A form of an instruction of two sources and its model.
pub type Binary<T, R> = (&'static str, fn(T, T) -> R);

/// The header every module needs.
pub const HEADER: &str = ".version 7.0\n.target sm_80\n.address_size 64\n";

/// The header of modules for the instructions of `sm_90a`.
pub const HOPPER: &str = ".version 8.0\n.target sm_90a\n.address_size 64\n";

/// A module with one entry `test` that takes tensor maps of these names, then 64-bit parameters, and has dynamic shared
/// memory `pool`.
pub fn hopper(maps: &[&str], parameters: &[&str], body: &str) -> Module {
    let maps = maps.iter().map(|name| format!(".param .align 64 .b8 {name}[128]"));
    let parameters = parameters.iter().map(|name| format!(".param .u64 {name}"));
    let list: Vec<String> = maps.chain(parameters).collect();
    let pool = ".extern .shared .align 1024 .b8 pool[];";
    let text = format!("{HOPPER}{pool}\n.visible .entry test({})\n{{\n{body}\n}}\n", list.join(", "));
    Module::parse(&text).unwrap_or_else(|error| panic!("{error}"))
}

/// Launches one block of entry `test` with tensor maps.
pub fn hopper_block(
    machine: &Machine,
    module: &Module,
    threads: u32,
    shared_bytes: u32,
    maps: &[TensorMap],
    parameters: &[u64],
) -> Result<(), LaunchError> {
    let maps = maps.iter().flat_map(|map| map.encode().unwrap_or_else(|error| panic!("{error}")));
    let parameters: Vec<u8> = maps.chain(parameters.iter().flat_map(|p| p.to_le_bytes())).collect();
    let launch = Launch { grid: [1; 3], block: [threads, 1, 1], shared_bytes, parameters: &parameters, early: None };
    machine.launch(module, "test", &launch)
}

/// The nearest 16-bit value, of a number that is not tiny.
pub fn narrow(format: &str, value: f32) -> u16 {
    let bits = value.to_bits();
    if format == "bf16" {
        return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    }
    let magnitude = bits & 0x7fff_ffff;
    if magnitude < 0x3880_0000 {
        return 0;
    }
    let rounded = (magnitude - (112 << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    (rounded | bits >> 16 & 0x8000) as u16
}

/// The value of 16 bits, of a number that is not tiny.
pub fn widen(format: &str, bits: u16) -> f32 {
    let bits = u32::from(bits);
    match format {
        "bf16" => f32::from_bits(bits << 16),
        _ if bits & 0x7fff == 0 => 0.0,
        _ => f32::from_bits((bits & 0x8000) << 16 | (((bits & 0x7fff) << 13) + (112 << 23))),
    }
}

/// A module with one entry `test` that takes the given 64-bit parameters.
pub fn module(parameters: &[&str], body: &str) -> Module {
    Module::parse(&text(parameters, body)).unwrap_or_else(|error| panic!("{error}"))
}

/// The text of such a module.
pub fn text(parameters: &[&str], body: &str) -> String {
    let parameters: Vec<String> = parameters.iter().map(|name| format!(".param .u64 {name}")).collect();
    format!("{HEADER}.visible .entry test({})\n{{\n{body}\n}}\n", parameters.join(", "))
}

/// Launches entry `test` with one block.
pub fn block(machine: &Machine, module: &Module, threads: u32, parameters: &[u64]) -> Result<(), LaunchError> {
    launch(machine, module, [1, 1, 1], [threads, 1, 1], 0, parameters)
}

/// Launches entry `test`.
pub fn launch(
    machine: &Machine,
    module: &Module,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    parameters: &[u64],
) -> Result<(), LaunchError> {
    let parameters: Vec<u8> = parameters.iter().flat_map(|p| p.to_le_bytes()).collect();
    machine.launch(module, "test", &Launch { grid, block, shared_bytes, parameters: &parameters, early: None })
}

/// What the sanitizer says, or a panic with what happened instead.
pub fn kind(result: Result<(), LaunchError>) -> ReportKind {
    match result {
        Ok(()) => panic!("the launch passed"),
        Err(error) => match error.report() {
            Some(report) => {
                assert!(!report.sentence.is_empty() && report.line > 0 && !report.text.is_empty(), "{report}");
                report.kind
            }
            None => panic!("{error}"),
        },
    }
}

/// Device memory with these words in it.
pub fn upload<T: Copy>(machine: &Machine, values: &[T], bytes: impl Fn(T) -> Vec<u8>) -> u64 {
    let bytes: Vec<u8> = values.iter().flat_map(|&value| bytes(value)).collect();
    let address = machine.allocate(bytes.len());
    machine.write(address, &bytes).unwrap();
    address
}

pub fn upload_u32(machine: &Machine, values: &[u32]) -> u64 {
    upload(machine, values, |value| value.to_le_bytes().to_vec())
}

pub fn upload_u64(machine: &Machine, values: &[u64]) -> u64 {
    upload(machine, values, |value| value.to_le_bytes().to_vec())
}

pub fn upload_u16(machine: &Machine, values: &[u16]) -> u64 {
    upload(machine, values, |value| value.to_le_bytes().to_vec())
}

pub fn download_u32(machine: &Machine, address: u64, count: usize) -> Vec<u32> {
    let mut bytes = vec![0; 4 * count];
    machine.read(address, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

pub fn download_u64(machine: &Machine, address: u64, count: usize) -> Vec<u64> {
    let mut bytes = vec![0; 8 * count];
    machine.read(address, &mut bytes).unwrap();
    bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect()
}
