//! Helpers of the test suites.

#![allow(dead_code, reason = "each suite is compiled with this module and uses a part of it")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic, reason = "tests")]

use ptx_emulator::{Launch, LaunchError, Machine, Module, ReportKind};

/// A form of an instruction of one source and its model.
pub type Unary<T, R> = (&'static str, fn(T) -> R);
/// A form of an instruction of two sources and its model.
pub type Binary<T, R> = (&'static str, fn(T, T) -> R);

/// The header every module needs.
pub const HEADER: &str = ".version 7.0\n.target sm_80\n.address_size 64\n";

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
    machine.launch(module, "test", &Launch { grid, block, shared_bytes, parameters: &parameters })
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
