//! A launch as data: the same one on any device, and with any text of its kernel.

use kernel_core::{Arguments, Buffer, Device, Error, Stream, device::Plain};
use ptx::{Kernel, KernelSpec};

/// What outputs hold before a launch: a NaN in every type, and no index.
pub const POISON: u8 = 0xFF;

type Upload = Box<dyn Fn(&Device, &Stream) -> Result<Buffer, Error> + Send + Sync>;

enum Argument {
    Word(u32),
    Long(u64),
    Float(f32),
    Null,
    Array(Upload),
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
        let (_, buffer) =
            self.arrays.iter().find(|(own, _)| own == name).expect("the launch has an array of that name");
        buffer.read(&self.stream)
    }
}
