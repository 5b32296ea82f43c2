//! A dense prefill that shows each layer's queries, keys and values on the way.

use crate::{Result, session::Session, task};
use kernel_core::{Error, Stream};
use kernel_tests::{
    model::{AttentionCall, DenseAttention, PromptAttention},
    records::Sample,
};
use std::cell::RefCell;

/// What is shown: the layer's number, and its attention, whose dense output has been computed or is under way.
pub(crate) type See<'a> = &'a mut dyn FnMut(usize, &AttentionCall<'_>) -> std::result::Result<(), Error>;

struct Inspected<'a> {
    dense: &'a DenseAttention,
    see: RefCell<See<'a>>,
}

impl PromptAttention for Inspected<'_> {
    fn attend(&self, stream: &Stream, layer: usize, call: &AttentionCall<'_>) -> std::result::Result<(), Error> {
        self.dense.attend(stream, layer, call)?;
        (self.see.borrow_mut())(layer, call)
    }
}

/// Prefills the sample's prompt densely; `see` is called for each layer.
pub(crate) fn prefill(session: &Session, sample: &Sample, see: See<'_>) -> Result<()> {
    let inspected = Inspected { dense: session.transformer.dense(), see: RefCell::new(see) };
    task::prefill(session, sample, &inspected).map(drop)
}
