//! Bulk tensor copies: boxes of every swizzle inside, across and outside of the tensor, against an independent model.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use ptx_emulator::{Machine, ReportKind, Swizzle, TensorMap};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Bytes of the pool that the kernel gives back.
const POOL: usize = 16384;

/// Copies one box to 1024 bytes into the pool, then gives the pool back word by word; a barrier lies at its start.
fn kernel(rank: usize) -> ptx_emulator::Module {
    let (mut loads, mut list) = (String::new(), Vec::new());
    for i in 0..rank {
        loads += &format!("ld.param.u64 %rd4, [c{i}]; cvt.u32.u64 %r{}, %rd4;\n", 10 + i);
        list.push(format!("%r{}", 10 + i));
    }
    let body = format!(
        ".reg .pred %p<4>; .reg .b32 %r<20>; .reg .b64 %rd<8>;
         mov.b64 %rd1, map; cvta.param.u64 %rd2, %rd1; prefetch.tensormap [%rd2];
         {loads}
         ld.param.u64 %rd3, [bytes]; cvt.u32.u64 %r3, %rd3;
         mov.u32 %r1, pool; mov.u32 %r2, %tid.x; mov.u32 %r4, 0; mov.u32 %r5, 0x55555555;
         shl.b32 %r6, %r2, 2; add.u32 %r7, %r1, %r6;
         FILL: add.u32 %r8, %r7, %r4; st.shared.u32 [%r8+1024], %r5; add.u32 %r4, %r4, 512;
         setp.lt.u32 %p1, %r4, {POOL}; @%p1 bra FILL;
         fence.proxy.async.shared::cta;
         setp.lt.u32 %p2, %r2, 32; @!%p2 bra READY;
         elect.sync _|%p2, -1;
         @%p2 mbarrier.init.shared::cta.b64 [%r1], 1;
         @%p2 fence.mbarrier_init.release.cluster;
         READY: bar.sync 0;
         createpolicy.fractional.L2::evict_last.b64 %rd5, 1.0;
         @%p2 mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r1], %r3;
         @%p2 cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint
             [%r1+1024], [%rd2, {{{}}}], [%r1], %rd5;
         WAIT: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p3, [%r1], 0;
         @!%p3 bra WAIT;
         ld.param.u64 %rd3, [out]; cvt.u64.u32 %rd4, %r6; add.u64 %rd3, %rd3, %rd4; mov.u32 %r4, 0;
         BACK: add.u32 %r8, %r7, %r4; ld.shared.u32 %r9, [%r8+1024];
         cvt.u64.u32 %rd4, %r4; add.u64 %rd5, %rd3, %rd4; st.global.u32 [%rd5], %r9;
         add.u32 %r4, %r4, 512; setp.lt.u32 %p1, %r4, {POOL}; @%p1 bra BACK;
         ret;",
        list.join(", ")
    );
    let coordinates: Vec<String> = (0..rank).map(|i| format!("c{i}")).collect();
    let names: Vec<&str> = ["bytes", "out"].into_iter().chain(coordinates.iter().map(String::as_str)).collect();
    hopper(&["map"], &names, &body)
}

/// Where a byte of the box goes: the 16-byte pieces of each 128 bytes change places by the number of those 128 bytes.
fn permuted(swizzle: Swizzle, byte: usize) -> usize {
    let (line, piece, rest) = (byte / 128, byte % 128 / 16, byte % 16);
    let piece = match swizzle {
        Swizzle::None => piece,
        Swizzle::Bytes32 => piece ^ (line & 1),
        Swizzle::Bytes64 => piece ^ (line & 3),
        Swizzle::Bytes128 => piece ^ (line & 7),
    };
    line * 128 + piece * 16 + rest
}

/// Runs one copy and compares every byte of the pool.
fn check(map: &TensorMap, tensor: &[u8], coordinates: &[i32], machine: &Machine) {
    let rank = map.rank as usize;
    let size = map.element_bytes as usize;
    let boxed: usize = map.box_dims[..rank].iter().map(|&n| n as usize).product::<usize>() * size;
    let mut expected = vec![0x55u8; POOL];
    for byte in 0..boxed {
        let (mut rest, mut inside, mut at) = (byte / size, true, 0);
        for (i, &coordinate) in coordinates.iter().enumerate() {
            let index = i64::from(coordinate) + (rest % map.box_dims[i] as usize) as i64;
            rest /= map.box_dims[i] as usize;
            inside &= index >= 0 && index < map.dims[i] as i64;
            at += index * if i == 0 { size as i64 } else { map.strides_bytes[i - 1] as i64 };
        }
        expected[permuted(map.swizzle, byte)] = if inside { tensor[at as usize + byte % size] } else { 0 };
    }
    let out = machine.allocate(POOL);
    let mut parameters = vec![boxed as u64, out];
    parameters.extend(coordinates.iter().map(|&c| c as i64 as u64));
    hopper_block(machine, &kernel(rank), 128, 1024 + POOL as u32, &[*map], &parameters)
        .unwrap_or_else(|error| panic!("{map:?} at {coordinates:?}\n{error}"));
    let mut found = vec![0; POOL];
    machine.read(out, &mut found).unwrap();
    for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found, expected, "{map:?} at {coordinates:?}: byte {at}");
    }
}

#[test]
fn every_swizzle_inside_across_and_outside() {
    let mut random = StdRng::seed_from_u64(5);
    // Heads of 96 in a batch of 2 by 3 heads by 50 rows, rows of all heads side by side.
    let (depth, heads, rows, batch) = (96usize, 3usize, 50usize, 2usize);
    let tensor: Vec<u8> = (0..2 * depth * heads * rows * batch).map(|_| random.random()).collect();
    let row = (2 * depth * heads) as u64;
    for (swizzle, width) in
        [(Swizzle::None, 96), (Swizzle::Bytes32, 16), (Swizzle::Bytes64, 32), (Swizzle::Bytes128, 64)]
    {
        let machine = Machine::new();
        let map = TensorMap {
            address: upload(&machine, &tensor, |byte| vec![byte]),
            rank: 4,
            element_bytes: 2,
            dims: [depth as u64, rows as u64, heads as u64, batch as u64, 0],
            strides_bytes: [row, 2 * depth as u64, row * rows as u64, 0],
            box_dims: [width, 32, 1, 1, 0],
            swizzle,
        };
        let edges =
            [[0, 0, 0, 0], [width as i32, 18, 2, 1], [64, 40, 1, 1], [-5, -7, 0, 0], [0, 50, 0, 0], [0, 0, -1, 0]];
        for at in edges {
            check(&map, &tensor, &at, &machine);
        }
        for _ in 0..6 {
            let at = [(-100, 100), (-40, 60), (-1, 4), (-1, 3)].map(|(low, high)| random.random_range(low..high));
            check(&map, &tensor, &at, &machine);
        }
        // Two heads of 16 rows side by side.
        let packed = TensorMap { box_dims: [width, 16, 2, 1, 0], ..map };
        check(&packed, &tensor, &[0, 45, 1, 1], &machine);
        // A single row.
        let single = TensorMap { box_dims: [width, 1, 1, 1, 0], ..map };
        check(&single, &tensor, &[0, 17, 1, 0], &machine);
    }
}

#[test]
fn every_rank_and_element_size() {
    let mut random = StdRng::seed_from_u64(6);
    let tensor: Vec<u8> = (0..16384).map(|_| random.random()).collect();
    let machine = Machine::new();
    let address = upload(&machine, &tensor, |byte| vec![byte]);
    for rank in 1..=5u32 {
        for element_bytes in [1, 2, 4, 8] {
            let mut map = TensorMap { address, rank, element_bytes, swizzle: Swizzle::None, ..TensorMap::default() };
            map.dims = [u64::from(64 / element_bytes), 4, 4, 4, 4];
            map.strides_bytes = [64, 256, 1024, 4096];
            map.box_dims = [32 / element_bytes, 3, 2, 2, 2];
            let coordinates: Vec<i32> = (0..rank).map(|_| random.random_range(-1..3)).collect();
            check(&map, &tensor, &coordinates, &machine);
        }
    }
}

#[test]
fn maps_are_validated() {
    let right = TensorMap {
        address: 1 << 36,
        rank: 2,
        element_bytes: 2,
        dims: [64, 10, 0, 0, 0],
        strides_bytes: [128, 0, 0, 0],
        box_dims: [64, 8, 0, 0, 0],
        swizzle: Swizzle::Bytes128,
    };
    right.encode().unwrap();
    let refused = |map: TensorMap, needle: &str| {
        let error = map.encode().unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
    };
    refused(TensorMap { rank: 0, ..right }, "rank 0");
    refused(TensorMap { rank: 6, ..right }, "rank 6");
    refused(TensorMap { element_bytes: 3, ..right }, "elements of 3 bytes");
    refused(TensorMap { address: (1 << 36) + 8, ..right }, "multiple of 16");
    refused(TensorMap { address: 0, ..right }, "multiple of 16");
    refused(TensorMap { dims: [64, 0, 0, 0, 0], ..right }, "dimension 1 has 0");
    refused(TensorMap { dims: [64, (1 << 32) + 1, 0, 0, 0], ..right }, "dimension 1");
    refused(TensorMap { strides_bytes: [136, 0, 0, 0], ..right }, "stride of 136");
    refused(TensorMap { strides_bytes: [1 << 40, 0, 0, 0], ..right }, "below 2⁴⁰");
    refused(TensorMap { box_dims: [64, 257, 0, 0, 0], ..right }, "257 elements in dimension 1");
    refused(TensorMap { box_dims: [60, 8, 0, 0, 0], ..right }, "120 bytes; it must be a multiple of 16");
    refused(TensorMap { box_dims: [128, 8, 0, 0, 0], ..right }, "256 bytes; with Bytes128 at most 128");
    refused(TensorMap { swizzle: Swizzle::Bytes64, ..right }, "at most 64");
}

#[test]
fn foreign_maps_are_reported() {
    let machine = Machine::new();
    let launch = |bytes: [u8; 128]| {
        let mut parameters = bytes.to_vec();
        parameters.resize(128 + 3 * 8, 0);
        let launch = ptx_emulator::Launch {
            grid: [1; 3],
            block: [128, 1, 1],
            shared_bytes: 1024 + POOL as u32,
            parameters: &parameters,
            early: None,
        };
        machine.launch(&kernel(1), "test", &launch)
    };
    assert_eq!(kind(launch([0; 128])), ReportKind::TensorMap);
    assert_eq!(kind(launch([7; 128])), ReportKind::TensorMap);
}

#[test]
fn prefetches_stay_inside_and_count_in_sixteens() {
    let machine = Machine::new();
    let data = upload_u32(&machine, &[1; 64]);
    let launch = |offset: i64, bytes: u32| {
        let module = hopper(
            &[],
            &["data"],
            &format!(
                ".reg .b64 %rd<2>; ld.param.u64 %rd1, [data]; cp.async.bulk.prefetch.L2.global [%rd1+{offset}], {bytes}; ret;"
            ),
        );
        hopper_block(&machine, &module, 32, 0, &[], &[data])
    };
    launch(16, 240).unwrap();
    assert_eq!(kind(launch(16, 256)), ReportKind::OutOfBounds);
    assert_eq!(kind(launch(8, 16)), ReportKind::Misaligned);
    assert_eq!(kind(launch(0, 24)), ReportKind::Misaligned);
    assert_eq!(kind(launch(0, 0)), ReportKind::Misaligned);
}
