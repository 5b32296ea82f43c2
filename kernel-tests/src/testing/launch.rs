//! A launch as data: the same one on any device, and with any text of its kernel.

use kernel_core::{
    Arguments, Buffer, Device, Error, Stream,
    device::{Plain, TensorMap},
};
use ptx::{Kernel, KernelSpec, ParameterKind};

/// What outputs hold before a launch: a NaN in every type, and no index.
pub const POISON: u8 = 0xFF;

type Upload = Box<dyn Fn(&Device, &Stream) -> Result<Buffer, Error> + Send + Sync>;

enum Argument {
    Word(u32),
    Long(u64),
    Float(f32),
    Null,
    Array(Upload),
    /// Over the array of this name; the address counts from its beginning, and the kernel says what a box is.
    Map(String, TensorMap),
}

/// A kernel with a grid and the contents of all its arguments.
pub struct Launch {
    /// The kernel, as generated.
    pub kernel: Kernel,
    grid: [u32; 3],
    arguments: Vec<(String, Argument)>,
}

impl Launch {
    /// A launch of the kernel of a valid spec, without arguments yet.
    pub fn new(spec: &impl KernelSpec, grid: [u32; 3]) -> Launch {
        Launch::of(ptx::generate(spec).expect("scenes have valid specs"), grid)
    }

    /// A launch of `kernel`, without arguments yet.
    pub fn of(kernel: Kernel, grid: [u32; 3]) -> Launch {
        Launch { kernel, grid, arguments: Vec::new() }
    }

    fn argument(mut self, name: impl Into<String>, argument: Argument) -> Launch {
        self.arguments.push((name.into(), argument));
        self
    }

    /// A 32-bit integer.
    pub fn u32(self, name: impl Into<String>, value: u32) -> Launch {
        self.argument(name, Argument::Word(value))
    }

    /// A 64-bit integer.
    pub fn u64(self, name: impl Into<String>, value: u64) -> Launch {
        self.argument(name, Argument::Long(value))
    }

    /// A single-precision number.
    pub fn f32(self, name: impl Into<String>, value: f32) -> Launch {
        self.argument(name, Argument::Float(value))
    }

    /// The address 0.
    pub fn null(self, name: impl Into<String>) -> Launch {
        self.argument(name, Argument::Null)
    }

    /// An array of exactly these elements.
    pub fn array<T: Plain>(self, name: impl Into<String>, values: Vec<T>) -> Launch {
        let upload = move |device: &Device, stream: &Stream| device.upload(stream, &values);
        self.argument(name, Argument::Array(Box::new(upload)))
    }

    /// A tensor map over an array that has been given, if the kernel takes one of that name. Its address counts from the
    /// beginning of the array; the shape of its boxes is the kernel's own.
    pub fn tensor_map(self, name: impl Into<String>, array: impl Into<String>, map: TensorMap) -> Launch {
        let name = name.into();
        let wanted = self.kernel.meta.parameters.iter().find_map(|parameter| match parameter.kind {
            ParameterKind::TensorMap(box_shape) if parameter.name == name => Some(box_shape),
            _ => None,
        });
        let Some(box_shape) = wanted else { return self };
        self.argument(name, Argument::Map(array.into(), TensorMap { box_shape, ..map }))
    }

    /// An array that the kernel has to write: [`POISON`] so far.
    pub fn poisoned(self, name: impl Into<String>, bytes: usize) -> Launch {
        self.array(name, vec![POISON; bytes])
    }

    /// Runs the kernel on `device`, over fresh copies of the arrays.
    ///
    /// # Errors
    /// Whatever the device reports, while loading, launching or waiting.
    pub fn run(&self, device: &Device) -> Result<Outcome, Error> {
        self.run_text(device, &self.kernel.text)
    }

    /// The same with another text of the kernel.
    pub fn run_text(&self, device: &Device, text: &str) -> Result<Outcome, Error> {
        let kernel = Kernel { text: text.to_string(), meta: self.kernel.meta.clone() };
        let loaded = device.load(&kernel)?;
        let stream = Stream::new(device)?;
        let mut arguments = Arguments::new(loaded.meta());
        let mut arrays = Vec::new();
        for (name, argument) in &self.arguments {
            arguments = match argument {
                Argument::Word(value) => arguments.u32(name, *value),
                Argument::Long(value) => arguments.u64(name, *value),
                Argument::Float(value) => arguments.f32(name, *value),
                Argument::Null => arguments.pointer(name, 0),
                Argument::Map(array, map) => {
                    let below = Outcome::find(&arrays, array).address();
                    let map = TensorMap { address: map.address + below, ..*map };
                    arguments.tensor_map(name, &device.encode_tensor_map(&map)?)
                }
                Argument::Array(upload) => {
                    let buffer = upload(device, &stream)?;
                    let address = buffer.address();
                    arrays.push((name.clone(), buffer));
                    arguments.pointer(name, address)
                }
            };
        }
        loaded.launch(&stream, self.grid, &arguments)?;
        stream.synchronize()?;
        Ok(Outcome { arrays, stream })
    }
}

/// The arrays of a launch after it.
pub struct Outcome {
    arrays: Vec<(String, Buffer)>,
    stream: Stream,
}

impl Outcome {
    /// The contents of an array.
    ///
    /// # Errors
    /// What the device reports.
    ///
    /// # Panics
    /// If the launch has no such array: a mistake of the test.
    pub fn read<T: Plain>(&self, name: &str) -> Result<Vec<T>, Error> {
        Outcome::find(&self.arrays, name).read(&self.stream)
    }

    fn find<'a>(arrays: &'a [(String, Buffer)], name: &str) -> &'a Buffer {
        let (_, buffer) = arrays.iter().find(|(own, _)| own == name).expect("the launch has an array of that name");
        buffer
    }
}
