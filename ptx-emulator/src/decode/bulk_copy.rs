//! `cp.async.bulk.tensor`, and prefetches.

use super::memory::{address, cache_hints};
use super::{Decoded, Decoder, Form};
use crate::op::{Address, BulkCopy, BulkPrefetch, Op, Register, Slot, Space};
use crate::parse::Operand;
use crate::types::Type;

/// After `cp.async.bulk`.
pub(super) fn decode<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    const RANKS: [&str; 5] = ["1d", "2d", "3d", "4d", "5d"];
    if form.take("prefetch") {
        return prefetch_bytes(decoder, form);
    }
    let hint = form.take("L2::cache_hint");
    cache_hints(form);
    form.take("tile");
    let rank = form.take_any(&RANKS);
    // Without a cluster, its shared memory is that of the block.
    let inward = form.take_any(&["shared::cluster", "shared::cta"]).is_some()
        && form.take("global")
        && form.take("mbarrier::complete_tx::bytes");
    let (Some(rank), true) = (rank, form.take("tensor") && inward) else {
        return decoder.fail(
            "of the bulk copies `cp.async.bulk.tensor.{1d…5d}.shared::cluster.global.mbarrier::complete_tx::bytes` is \
             supported",
        );
    };
    form.done(decoder)?;
    let (target, tensor, mbarrier) = match form.operands {
        [target, tensor, mbarrier] if !hint => (target, tensor, mbarrier),
        [target, tensor, mbarrier, policy] if hint => {
            decoder.source(policy, Type::B64)?;
            (target, tensor, mbarrier)
        }
        _ => return decoder.fail("a bulk copy takes a target, `[map, {coordinates}]` and an mbarrier"),
    };
    let Operand::Tensor(map, coordinates) = tensor else {
        return decoder.fail("the source of a bulk tensor copy is `[map, {coordinates}]`");
    };
    if coordinates.len() != rank + 1 {
        return decoder.fail(format!("a copy in {} dimensions takes that many coordinates", rank + 1));
    }
    let target = address(decoder, target, Space::Shared)?;
    let map = Address { base: Register::Long(decoder.source(map, Type::B64)?), offset: 0 };
    let coordinates = coordinates.iter().map(|c| decoder.source(c, Type::S32)).collect::<Decoded<Vec<Slot>>>()?;
    let mbarrier = address(decoder, mbarrier, Space::Shared)?;
    decoder.emit(Op::BulkCopy(Box::new(BulkCopy { target, map, coordinates, mbarrier })))
}

/// After `cp.async.bulk.prefetch`.
fn prefetch_bytes<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    if !(form.take("L2") & form.take("global")) {
        return decoder.fail("of the bulk prefetches `cp.async.bulk.prefetch.L2.global` is supported");
    }
    let [source, bytes] = form.operands(decoder)?;
    let source = address(decoder, source, Space::Global)?;
    let bytes = decoder.source(bytes, Type::U32)?;
    decoder.emit(Op::BulkPrefetch(Box::new(BulkPrefetch { source, bytes })))
}

/// After `prefetch.tensormap`.
pub(super) fn prefetch<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    form.take("param");
    let [map] = form.operands(decoder)?;
    let map = address(decoder, map, Space::Generic)?;
    decoder.emit(Op::PrefetchTensorMap { map })
}
