//! [`Arguments`]: kernel parameters by name, packed as the kernel reads them.

use super::EncodedTensorMap;
use crate::Error;
use ptx::{KernelMeta, ParameterKind};

/// Bytes of parameters a kernel of ours may have.
const CAPACITY: usize = 1024;
/// Parameters a kernel of ours may have.
pub(super) const MAX_PARAMETERS: usize = u128::BITS as usize;

/// The arguments of one launch. Every parameter is set exactly once, by name; the first mistake is kept and returned by
/// the launch. Nothing here touches the heap unless there is a mistake.
pub struct Arguments<'m> {
    meta: &'m KernelMeta,
    packed: [u8; CAPACITY],
    /// Bit i: parameter i is set.
    set: u128,
    /// Where the next parameter is expected: callers set them nearly in order.
    next: usize,
    /// Parameter and message of the first mistake.
    mistake: Option<(String, String)>,
}

impl<'m> Arguments<'m> {
    /// No parameter set yet.
    pub fn new(meta: &'m KernelMeta) -> Arguments<'m> {
        let mut arguments = Arguments { meta, packed: [0; CAPACITY], set: 0, next: 0, mistake: None };
        if meta.parameter_bytes() as usize > CAPACITY || meta.parameters.len() > MAX_PARAMETERS {
            let message = format!("kernels take at most {CAPACITY} bytes in {MAX_PARAMETERS} parameters");
            arguments.fail("*", message);
        }
        arguments
    }

    /// Sets a device address; 0 where the kernel allows none.
    pub fn pointer(self, name: &str, address: u64) -> Self {
        let fits = |kind| matches!(kind, ParameterKind::Pointer | ParameterKind::Constant | ParameterKind::Side(_));
        self.put(name, "a device address", fits, &address.to_ne_bytes())
    }

    /// Sets a 32-bit integer.
    pub fn u32(self, name: &str, value: u32) -> Self {
        self.put(name, "a 32-bit integer", |kind| kind == ParameterKind::U32, &value.to_ne_bytes())
    }

    /// Sets a 64-bit integer.
    pub fn u64(self, name: &str, value: u64) -> Self {
        self.put(name, "a 64-bit integer", |kind| kind == ParameterKind::U64, &value.to_ne_bytes())
    }

    /// Sets a single-precision number.
    pub fn f32(self, name: &str, value: f32) -> Self {
        self.put(name, "a single-precision number", |kind| kind == ParameterKind::F32, &value.to_ne_bytes())
    }

    /// Sets a tensor map, encoded for the device of the launch: see [`Device::encode_tensor_map`](super::Device).
    pub fn tensor_map(self, name: &str, map: &EncodedTensorMap) -> Self {
        self.put(name, "a tensor map", |kind| matches!(kind, ParameterKind::TensorMap(_)), map)
    }

    fn put(mut self, name: &str, given: &str, fits: impl Fn(ParameterKind) -> bool, value: &[u8]) -> Self {
        let parameters = &self.meta.parameters;
        let found =
            (0..parameters.len()).map(|i| (self.next + i) % parameters.len()).find(|&i| parameters[i].name == name);
        let Some(i) = found else {
            let known: Vec<&str> = parameters.iter().map(|p| &*p.name).collect();
            self.fail(name, format!("the kernel has no such parameter; it has {}", known.join(", ")));
            return self;
        };
        let parameter = &parameters[i];
        if !fits(parameter.kind) {
            self.fail(name, format!("given {given}, needs {:?}", parameter.kind));
        } else if self.set >> i & 1 == 1 {
            self.fail(name, "set twice; set it once".into());
        } else if self.mistake.is_none() {
            let offset = parameter.offset as usize;
            self.packed[offset..offset + value.len()].copy_from_slice(value);
            self.set |= 1 << i;
            self.next = i + 1;
        }
        self
    }

    fn fail(&mut self, parameter: &str, message: String) {
        self.mistake.get_or_insert_with(|| (parameter.to_string(), message));
    }

    /// The packed parameters for a launch of the kernel that `meta` describes.
    pub(super) fn packed(&self, meta: &KernelMeta) -> Result<&[u8], Error> {
        let error = |parameter: &str, message: &str| Error::Argument {
            entry: meta.entry.to_string(),
            parameter: parameter.to_string(),
            message: message.to_string(),
        };
        if !std::ptr::eq(self.meta, meta) && self.meta != meta {
            let message = format!("the arguments were packed for {}; pack them for this kernel", self.meta.entry);
            return Err(error("*", &message));
        }
        if let Some((parameter, message)) = &self.mistake {
            return Err(error(parameter, message));
        }
        if let Some(missing) = meta.parameters.iter().enumerate().find(|(i, _)| self.set >> i & 1 == 0) {
            return Err(error(&missing.1.name, "not set; set every parameter"));
        }
        Ok(&self.packed[..meta.parameter_bytes() as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptx::{
        Arch,
        isa::{B32, B64, Builder, F32, Launch},
    };

    fn meta() -> KernelMeta {
        let mut k = Builder::new(Arch::Sm80, "k", Launch { threads: 32, blocks_per_multiprocessor: 1 });
        k.parameter::<B32>("count", ParameterKind::U32);
        k.parameter::<B64>("data", ParameterKind::Pointer);
        k.parameter::<F32>("scale", ParameterKind::F32);
        k.parameter::<B64>("stride", ParameterKind::U64);
        k.finish().meta
    }

    fn text(arguments: &Arguments<'_>, meta: &KernelMeta) -> String {
        arguments.packed(meta).unwrap_err().to_string()
    }

    #[test]
    fn packs_with_natural_alignment_in_any_order() {
        let meta = meta();
        let arguments = Arguments::new(&meta).u64("stride", 3).u32("count", 1).pointer("data", 2).f32("scale", 1.0);
        let mut expected = vec![1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 63, 0, 0, 0, 0];
        expected.extend(3u64.to_ne_bytes());
        assert_eq!(arguments.packed(&meta).unwrap(), expected);
    }

    #[test]
    fn every_parameter_is_set_exactly_once() {
        let meta = meta();
        let all = || Arguments::new(&meta).u64("stride", 3).u32("count", 1).pointer("data", 2).f32("scale", 1.0);
        assert_eq!(
            text(&Arguments::new(&meta).u32("count", 1), &meta),
            "kernel k, parameter `data`: not set; set every parameter"
        );
        assert_eq!(text(&all().u32("count", 1), &meta), "kernel k, parameter `count`: set twice; set it once");
    }

    #[test]
    fn names_and_kinds_are_checked() {
        let meta = meta();
        assert_eq!(
            text(&Arguments::new(&meta).u32("size", 1), &meta),
            "kernel k, parameter `size`: the kernel has no such parameter; it has count, data, scale, stride"
        );
        assert_eq!(
            text(&Arguments::new(&meta).u32("data", 1), &meta),
            "kernel k, parameter `data`: given a 32-bit integer, needs Pointer"
        );
    }

    #[test]
    fn arguments_of_another_kernel_are_refused() {
        let (meta, mut other) = (meta(), meta());
        other.entry = "other".into();
        assert!(text(&Arguments::new(&other), &meta).contains("packed for other"));
    }
}
