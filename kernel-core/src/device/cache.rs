//! The modules a device has loaded.

use super::kernel::Source;
use crate::Error;
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
};

/// What tells one kernel text from another.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    entry: String,
    length: usize,
    hash: u64,
}

type Cell<M> = Arc<Mutex<Option<Arc<M>>>>;

/// Modules by text. They stay until the device goes: a captured graph may hold on to them.
pub(super) struct ModuleCache<M> {
    cells: Mutex<HashMap<Key, Cell<M>>>,
}

impl<M> Default for ModuleCache<M> {
    fn default() -> Self {
        ModuleCache { cells: Mutex::default() }
    }
}

impl<M> ModuleCache<M> {
    /// The module of `source`, loaded by `load` the first time. Threads that ask for one text compile it once; threads
    /// that ask for others do not wait. A failure is not remembered.
    pub(super) fn get_or_load(
        &self,
        source: &Source<'_>,
        load: impl FnOnce() -> Result<M, Error>,
    ) -> Result<Arc<M>, Error> {
        let text = source.text.to_bytes();
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let key = Key { entry: source.meta.entry.to_string(), length: text.len(), hash: hasher.finish() };
        let cell = self.cells.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
        let mut module = cell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = &*module {
            return Ok(module.clone());
        }
        Ok(module.insert(Arc::new(load()?)).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptx::{Arch, KernelMeta};
    use std::{
        ffi::CStr,
        sync::atomic::{AtomicU32, Ordering},
    };

    fn meta() -> KernelMeta {
        KernelMeta {
            entry: "k".into(),
            arch: Arch::Sm80,
            isa: (7, 0),
            threads: 32,
            shared_bytes: 0,
            programmatic: false,
            parameters: (&[]).into(),
        }
    }

    fn source<'a>(text: &'a CStr, meta: &'a KernelMeta) -> Source<'a> {
        Source { text: text.into(), meta }
    }

    #[test]
    fn one_text_is_loaded_once_by_many_threads() {
        let (cache, loads, meta) = (ModuleCache::<u32>::default(), AtomicU32::new(0), meta());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let load = || Ok(loads.fetch_add(1, Ordering::Relaxed));
                    assert_eq!(*cache.get_or_load(&source(c"text", &meta), load).unwrap(), 0);
                });
            }
        });
        assert_eq!(*cache.get_or_load(&source(c"other", &meta), || Ok(7)).unwrap(), 7);
    }

    #[test]
    fn a_failure_is_tried_again() {
        let (cache, meta) = (ModuleCache::<u32>::default(), meta());
        let failure = || Err(Error::ForeignDevice { what: "test" });
        assert!(cache.get_or_load(&source(c"text", &meta), failure).is_err());
        assert_eq!(*cache.get_or_load(&source(c"text", &meta), || Ok(3)).unwrap(), 3);
    }
}
