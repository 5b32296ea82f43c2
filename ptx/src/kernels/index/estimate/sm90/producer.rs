//! The producer: one warp, which fetches 16 keys of every part a turn, a box a slab. Each lane looks after a part.

use super::{
    super::window::{Keys, STEP},
    Shared, Window,
};
use crate::{
    isa::{Builder, R32, R64},
    tile::{copy::RowSource, ring::Turn},
};

/// Arrivals that fill a stage: the one that awaits its bytes.
pub(super) const FILLS: u32 = 1;

pub(super) fn produce(k: &mut Builder, window: &Window, keys: &Keys, map: R64, shared: &Shared, before: u32) {
    let (ring, turn, layout) = (shared.ring(k), Turn::first(k), shared.tiles.keys);
    let stages = k.shared_address(shared.keys);
    let elected = k.elect();
    k.if_then(elected, |k| k.prefetch_tensor_map(map));
    let first = k.mad(window.lane, window.part_keys, window.block_first);
    let first = k.sub(first, before);
    let boxes = Boxes::new(k, window, keys);
    let turns = super::turns(k, window, before);
    k.for_loop(0u32, turns, 1, |k, now| {
        let own = k.mad(now, STEP, first);
        let own = boxes.find(k, window, own);
        ring.wait_free(k, turn);
        let full = ring.full(k, turn);
        let stage = k.mad(turn.stage, layout.bytes(), stages);
        let elected = k.elect();
        k.if_then(elected, |k| ring.fill_expecting(k, turn, layout.bytes()));
        k.for_loop(0u32, window.parts, 1, |k, part| {
            let [row, entry] = own.map(|coordinate| k.shuffle_from(coordinate, part));
            let target = k.mad(part, STEP * layout.row_bytes, stage);
            k.if_then(elected, |k| {
                for slab in 0..layout.slabs {
                    let place = [k.mov(slab * layout.slab_columns()), row, keys.head, entry];
                    k.copy_box((target, i64::from(slab * layout.slab_bytes())), map, place, full);
                }
            });
        });
        ring.advance(k, turn);
    });
}

/// Where boxes of keys lie in their map.
enum Boxes {
    /// From the sequence's first row on, in an entry of the batch.
    Strided { first: R32, entry: R32 },
    /// In pages.
    Paged(RowSource),
}

impl Boxes {
    fn new(k: &mut Builder, window: &Window, keys: &Keys) -> Boxes {
        if keys.table.is_some() {
            return Boxes::Paged(keys.rows(k, window));
        }
        let packed = k.ne(keys.starts, 0u64);
        Boxes::Strided { first: keys.first, entry: k.select(packed, 0u32, window.batch) }
    }

    /// Row and entry of the box that begins at key `key`, signed. One of keys that there are not may hold anything.
    fn find(&self, k: &mut Builder, window: &Window, key: R32) -> [R32; 2] {
        match *self {
            Boxes::Strided { first, entry } => [k.add(first, key), entry],
            Boxes::Paged(RowSource::Paged(keys)) => {
                // The table has entries of keys that there are, and key 0 is one.
                let inside = k.lt_u(key, window.kv_len);
                let key = k.select(inside, key, 0u32);
                let (page, exists, place) = keys.find(k, key);
                // A page that does not exist lies outside the map, and a box there is zeros.
                keys.report_unless(k, exists);
                [place, page]
            }
            Boxes::Paged(_) => unreachable!("keys with a table lie in pages"),
        }
    }
}
