//! The device layer, driven by kernels of a few instructions.

use super::*;
use crate::Error;
use ptx::{
    ParameterKind,
    isa::{B32, B64, Builder, Launch},
};

/// `data[i] += addend` for i below `count`; one block of 128 threads covers 128 elements.
fn add() -> Kernel {
    let mut k = Builder::new(Arch::Sm80, "add", Launch { threads: 128, blocks_per_multiprocessor: 1 });
    let data = k.parameter::<B64>("data", ParameterKind::Pointer);
    let count = k.parameter::<B32>("count", ParameterKind::U32);
    let addend = k.parameter::<B32>("addend", ParameterKind::U32);
    let (block, thread) = (k.block_x(), k.thread());
    let i = k.mad(block, 128u32, thread);
    let inside = k.lt_u(i, count);
    k.if_then(inside, |k| {
        let at = k.mad_wide(i, 4u32, data);
        let old = k.load::<B32, _>(at, 0);
        let new = k.add(old, addend);
        k.store(at, 0, new);
    });
    k.ret();
    k.finish()
}

fn launch_add(kernel: &LoadedKernel, stream: &Stream, data: &Buffer, addend: u32) -> Result<(), Error> {
    let count = data.bytes() as u32 / 4;
    let arguments =
        Arguments::new(kernel.meta()).pointer("data", data.address()).u32("count", count).u32("addend", addend);
    kernel.launch(stream, [count.div_ceil(128), 1, 1], &arguments)
}

/// `to[i] = 3 · from[i + 128] + addend[i]`, indices modulo `count`, a multiple of 128: each block reads what another one of the
/// launch in front has written.
fn shift() -> Kernel {
    let mut k = Builder::new(Arch::Sm90a, "shift", Launch { threads: 128, blocks_per_multiprocessor: 1 });
    let [from, to] = ["from", "to"].map(|name| k.parameter::<B64>(name, ParameterKind::Pointer));
    let addend = k.parameter::<B64>("addend", ParameterKind::Constant);
    let count = k.parameter::<B32>("count", ParameterKind::U32);
    k.let_next_start();
    let (block, thread) = (k.block_x(), k.thread());
    let i = k.mad(block, 128u32, thread);
    let own = k.mad_wide(i, 4u32, addend);
    let addend = k.load_readonly::<B32>(own, 0);
    k.wait_for_launches();
    let other = k.add(i, 128u32);
    let other = k.rem_u(other, count);
    let at = k.mad_wide(other, 4u32, from);
    let value = k.load::<B32, _>(at, 0);
    let value = k.mad(value, 3u32, addend);
    let at = k.mad_wide(i, 4u32, to);
    k.store(at, 0, value);
    k.ret();
    k.finish()
}

/// The GPU. Without one this says so, and fails under `REQUIRE_GPU=1`.
fn gpu() -> Option<Device> {
    Device::cuda(0)
        .inspect_err(|error| {
            assert_ne!(std::env::var("REQUIRE_GPU").as_deref(), Ok("1"), "REQUIRE_GPU=1, but: {error}");
            eprintln!("NOT RUN: {error}");
        })
        .ok()
}

/// Runs each body on the embedded backend and on the GPU.
macro_rules! on_every_device {
    ($($body:ident)*) => {
        #[cfg(feature = "emulator")]
        mod emulator {
            use super::Device;
            $(#[test]
            fn $body() {
                super::$body(&Device::emulator());
            })*
        }
        mod gpu {
            $(#[test]
            fn $body() {
                if let Some(device) = super::gpu() {
                    super::$body(&device);
                }
            })*
        }
    };
}

on_every_device! {
    buffers_hold_what_was_written
    accesses_past_the_end_are_refused
    kernels_run_and_empty_grids_do_not
    embedded_text_is_the_same_kernel
    text_that_does_not_compile_is_reported
    threads_launch_at_once_on_their_own_streams
    graphs_replay_what_was_captured
    buffers_are_copied_on_the_device
    captures_refuse_to_wait_and_end_after_an_error
    programmatic_kernels_see_what_those_in_front_wrote
}

/// The driver gets an image that is whole and no code.
#[test]
fn gpu_an_image_that_the_driver_refuses_breaks_nothing() {
    let Some(device) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut kernel = add();
    // Another test of this process may have loaded the same text.
    kernel.text += "// With an image.\n";
    let text = kernel.text.as_bytes();
    let architectures = (8..13).flat_map(|major| (0..10).map(move |minor| format!("sm_{major}{minor}")));
    for architecture in architectures {
        let code = [&b"\x7fELF"[..], &[0; 4096]].concat();
        let file = folder.path().join(ptx::image::file_name("add", text, &architecture));
        std::fs::write(file, ptx::image::sealed(text, &code)).unwrap();
    }
    device.use_images(Some(folder.path()));
    let loaded = device.load(&kernel).unwrap();
    device.use_images(None);
    assert_eq!(loaded.image(), None);
    assert!(loaded.compile_log().contains(".cubin is not used: the driver refused"), "{}", loaded.compile_log());
    let stream = Stream::new(&device).unwrap();
    let data = device.upload(&stream, &[1u32, 2]).unwrap();
    launch_add(&loaded, &stream, &data, 3).unwrap();
    assert_eq!(data.read::<u32>(&stream).unwrap(), [4, 5]);
}

#[test]
fn without_a_driver_cuda_is_a_typed_error() {
    match Device::cuda(0) {
        Ok(device) => eprintln!("NOT RUN: this machine has {}", device.name()),
        Err(error @ (Error::DriverNotFound { .. } | Error::NoDevice { .. } | Error::DeviceTooOld { .. })) => {
            let text = error.to_string();
            assert!(text.contains("embedded backend") || text.contains("8.0"), "{text}");
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_device_that_does_not_exist_is_named() {
    match Device::cuda(4711) {
        Err(Error::NoDevice { ordinal: 4711, .. } | Error::DriverNotFound { .. }) => {}
        other => panic!("{other:?}"),
    }
}

fn buffers_hold_what_was_written(device: &Device) {
    let stream = Stream::new(device).unwrap();
    let buffer = device.upload(&stream, &[1.5f32, -2.0, 3.25]).unwrap();
    assert_eq!(buffer.read::<f32>(&stream).unwrap(), [1.5, -2.0, 3.25]);
    buffer.write(&stream, &[7u32]).unwrap();
    assert_eq!(buffer.read::<u32>(&stream).unwrap(), [7, (-2.0f32).to_bits(), 3.25f32.to_bits()]);
    buffer.fill(&stream, 0xA5).unwrap();
    assert_eq!(buffer.read::<u8>(&stream).unwrap(), [0xA5; 12]);
    assert!(device.allocate(0).unwrap().read::<u32>(&stream).unwrap().is_empty());
}

fn accesses_past_the_end_are_refused(device: &Device) {
    let stream = Stream::new(device).unwrap();
    let buffer = device.upload(&stream, &[0u16; 3]).unwrap();
    let error = buffer.write(&stream, &[1u32, 2]).unwrap_err();
    assert_eq!(error.to_string(), "writing needs 8 bytes; the buffer has 6");
    let error = buffer.read::<u32>(&stream).unwrap_err();
    assert_eq!(error.to_string(), "reading 2 elements of 4 bytes needs 8 bytes; the buffer has 6");
    assert_eq!(buffer.read::<u16>(&stream).unwrap(), [0; 3]);
}

fn kernels_run_and_empty_grids_do_not(device: &Device) {
    let stream = Stream::new(device).unwrap();
    let kernel = device.load(&add()).unwrap();
    let data = device.upload(&stream, &(0..300u32).collect::<Vec<_>>()).unwrap();
    launch_add(&kernel, &stream, &data, 1000).unwrap();
    let arguments = Arguments::new(kernel.meta()).pointer("data", data.address()).u32("count", 300).u32("addend", 1);
    kernel.launch(&stream, [0, 1, 1], &arguments).unwrap();
    assert_eq!(data.read::<u32>(&stream).unwrap(), (1000..1300).collect::<Vec<_>>());
    let error = kernel.launch(&stream, [1, 65536, 1], &arguments).unwrap_err();
    assert!(matches!(error, Error::Grid { grid: [1, 65536, 1], .. }), "{error}");
}

fn embedded_text_is_the_same_kernel(device: &Device) {
    let stream = Stream::new(device).unwrap();
    let kernel = add();
    let text = std::ffi::CString::new(kernel.text.clone()).unwrap();
    let loaded = device.load_embedded(&text, &kernel.meta).unwrap();
    let data = device.upload(&stream, &[1u32, 2]).unwrap();
    launch_add(&loaded, &stream, &data, 3).unwrap();
    assert_eq!(data.read::<u32>(&stream).unwrap(), [4, 5]);
}

fn text_that_does_not_compile_is_reported(device: &Device) {
    let mut kernel = add();
    kernel.text = kernel.text.replace("ld.global.b32", "ld.global.b33");
    let Err(error) = device.load(&kernel) else { panic!("accepted on {}", device.name()) };
    let text = error.to_string();
    assert!(text.contains("add") && text.contains("b33"), "{text}");
}

fn threads_launch_at_once_on_their_own_streams(device: &Device) {
    std::thread::scope(|scope| {
        for id in 0..2u32 {
            scope.spawn(move || {
                let stream = Stream::new(device).unwrap();
                let kernel = device.load(&add()).unwrap();
                let data = device.upload(&stream, &vec![id; 1000]).unwrap();
                for _ in 0..10 {
                    launch_add(&kernel, &stream, &data, 5).unwrap();
                }
                assert_eq!(data.read::<u32>(&stream).unwrap(), vec![id + 50; 1000]);
            });
        }
    });
}

fn graphs_replay_what_was_captured(device: &Device) {
    let stream = Stream::new(device).unwrap();
    let kernel = device.load(&add()).unwrap();
    let (data, zeroed) = (device.upload(&stream, &[1u32]).unwrap(), device.upload(&stream, &[9u32]).unwrap());
    let graph = stream
        .capture(|stream| {
            assert!(stream.is_capturing()?);
            zeroed.fill(stream, 0)?;
            launch_add(&kernel, stream, &zeroed, 2)?;
            launch_add(&kernel, stream, &data, 10)
        })
        .unwrap();
    assert_eq!(data.read::<u32>(&stream).unwrap(), [1], "a capture runs nothing");
    assert_eq!(graph.operations(), 3);
    for replays in 1..=3 {
        graph.launch(&stream).unwrap();
        assert_eq!(data.read::<u32>(&stream).unwrap(), [1 + 10 * replays]);
        assert_eq!(zeroed.read::<u32>(&stream).unwrap(), [2]);
    }
}

/// Three buffers in a circle, eager and captured, early and one after the other.
fn programmatic_kernels_see_what_those_in_front_wrote(device: &Device) {
    if !device.runs().contains(&Arch::Sm90a) {
        eprintln!("NOT RUN: {} does not run text of sm_90a", device.name());
        return;
    }
    let (count, repeats) = if device.is_emulator() { (384, 4) } else { (1 << 17, 1000) };
    let stream = Stream::new(device).unwrap();
    let early = shift();
    assert!(early.meta.programmatic && early.text.contains("griddepcontrol.wait"));
    let late = Kernel { meta: KernelMeta { programmatic: false, ..early.meta.clone() }, text: early.text.clone() };
    let start: Vec<u32> = (0..count).collect();
    let addend: Vec<u32> = (0..count).map(|i| i * i).collect();
    let mut expected = start.clone();
    for _ in 0..3 * repeats {
        let next = |i: usize| expected[(i + 128) % count as usize].wrapping_mul(3).wrapping_add(addend[i]);
        expected = (0..count as usize).map(next).collect();
    }
    let addend = device.upload(&stream, &addend).unwrap();
    for kernel in [early, late] {
        let kernel = device.load(&kernel).unwrap();
        let circle = [(); 3].map(|()| device.upload(&stream, &start).unwrap());
        let once = |stream: &Stream| {
            (0..3).try_for_each(|i| {
                let arguments = Arguments::new(kernel.meta())
                    .pointer("from", circle[i].address())
                    .pointer("to", circle[(i + 1) % 3].address())
                    .pointer("addend", addend.address())
                    .u32("count", count);
                kernel.launch(stream, [count / 128, 1, 1], &arguments)
            })
        };
        (0..repeats).try_for_each(|_| once(&stream)).unwrap();
        assert_eq!(circle[0].read::<u32>(&stream).unwrap(), expected, "eager");
        circle[0].write(&stream, &start).unwrap();
        stream.synchronize().unwrap();
        let some = repeats / 4;
        let graph = stream.capture(|stream| {
            // What is no kernel has nothing that could start early behind it.
            circle[1].fill(stream, 0)?;
            (0..some).try_for_each(|_| once(stream))
        });
        let graph = graph.unwrap();
        assert_eq!(graph.operations(), 1 + 3 * some as usize);
        (0..4).try_for_each(|_| graph.launch(&stream)).unwrap();
        assert_eq!(circle[0].read::<u32>(&stream).unwrap(), expected, "captured");
    }
}

#[cfg(feature = "emulator")]
#[test]
fn what_is_not_constant_may_not_be_read_early() {
    let device = &Device::emulator();
    let stream = Stream::new(device).unwrap();
    let mut kernel = shift();
    kernel.meta.parameters.to_mut()[2].kind = ParameterKind::Pointer;
    let kernel = device.load(&kernel).unwrap();
    let data = device.upload(&stream, &[1u32; 128]).unwrap();
    let (arguments, address) = (Arguments::new(kernel.meta()).u32("count", 128), data.address());
    let arguments = arguments.pointer("from", address).pointer("to", address).pointer("addend", address);
    let error = kernel.launch(&stream, [1, 1, 1], &arguments).unwrap_err();
    assert!(error.to_string().contains("EarlyAccess"), "{error}");
}

fn buffers_are_copied_on_the_device(device: &Device) {
    let stream = Stream::new(device).unwrap();
    let (from, to) = (device.upload(&stream, &[1u32, 2]).unwrap(), device.upload(&stream, &[9u32, 9, 9]).unwrap());
    let graph = stream.capture(|stream| to.copy_from(stream, &from)).unwrap();
    assert_eq!(to.read::<u32>(&stream).unwrap(), [9, 9, 9], "a capture runs nothing");
    graph.launch(&stream).unwrap();
    assert_eq!(to.read::<u32>(&stream).unwrap(), [1, 2, 9]);
    assert!(matches!(from.copy_from(&stream, &to), Err(Error::OutOfBounds { .. })));
}

fn captures_refuse_to_wait_and_end_after_an_error(device: &Device) {
    let stream = Stream::new(device).unwrap();
    let data = device.upload(&stream, &[1u32]).unwrap();
    let Err(error) = stream.capture(|stream| data.write(stream, &[2u32])) else { panic!("captured a host copy") };
    assert!(error.to_string().starts_with("copying from the host during the capture"), "{error}");
    let Err(error) = stream.capture(|stream| stream.synchronize()) else { panic!("captured a wait") };
    assert!(matches!(error, Error::Capture { .. }), "{error}");
    assert!(!stream.is_capturing().unwrap());
    assert_eq!(data.read::<u32>(&stream).unwrap(), [1]);
}

#[cfg(feature = "emulator")]
#[test]
fn what_belongs_to_another_device_is_refused() {
    let (device, other) = (&Device::emulator(), &Device::emulator());
    assert!(device.same(&device.clone()) && !device.same(other));
    let stream = Stream::new(other).unwrap();
    let data = device.allocate(4).unwrap();
    assert!(matches!(data.fill(&stream, 0), Err(Error::ForeignDevice { what: "buffer" })));
    let kernel = device.load(&add()).unwrap();
    assert!(matches!(launch_add(&kernel, &stream, &data, 0), Err(Error::ForeignDevice { what: "kernel" })));
}

#[cfg(feature = "emulator")]
#[test]
fn a_wild_access_is_reported_with_its_kernel() {
    let device = &Device::emulator();
    let stream = Stream::new(device).unwrap();
    let kernel = device.load(&add()).unwrap();
    let data = device.upload(&stream, &[1u32, 2]).unwrap();
    let arguments = Arguments::new(kernel.meta()).pointer("data", data.address()).u32("count", 3).u32("addend", 1);
    let error = kernel.launch(&stream, [1, 1, 1], &arguments).unwrap_err();
    assert!(matches!(error, Error::Emulator { .. }) && error.to_string().contains("add"), "{error}");
}
