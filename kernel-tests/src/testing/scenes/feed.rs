//! The ends of a pass: fed rows with their batch, and rows for the LM head.

use super::{Agreement, GAP, Scene, UNWRITTEN, equal};
use crate::{
    oracle::feed::{Fed, fed, source},
    testing::launch::Launch,
};
use ptx::{
    Arch,
    kernels::{
        feed::{EmbedSpec, FeedParameters, HeadRowsSpec},
        model::STATUS_INDEX_OUT_OF_RANGE,
        sampling::{RequestState, request_flags},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};

const PAGE: u32 = 16;
const VOCABULARY: u32 = 50;

/// Requests of every policy under way; the first does not take part.
struct Requests {
    feeds: Vec<FeedParameters>,
    states: Vec<RequestState>,
    refresh: bool,
    rows: u32,
}

impl Requests {
    fn random(random: &mut StdRng, refresh: bool) -> Requests {
        let policies = (0..24).map(|i| i % 6);
        let request = |random: &mut StdRng, policy: u32| {
            let (prompt, response) = (random.random_range(1..20), random.random_range(1..24));
            let feed = FeedParameters {
                policy,
                flags: random.random_range(0..4),
                prompt,
                length: prompt + response,
                before: random.random_range(0..25),
                after: random.random_range(0..9),
                ..FeedParameters::default()
            };
            let block_start = random.random_range(0..response);
            let state = RequestState {
                rows: 1,
                block_start,
                block_length: random.random_range(1..=response - block_start),
                previous_block_start: random.random_range(0..=block_start),
                flags: if random.random() { request_flags::BLOCK_FINISHED } else { 0 },
                ..RequestState::default()
            };
            (feed, state)
        };
        let (mut feeds, mut states): (Vec<_>, Vec<_>) = policies.map(|policy| request(random, policy)).unzip();
        states[0].rows = 0;
        let mut first_token = 3;
        for feed in &mut feeds {
            feed.first_token = first_token;
            first_token += feed.length;
        }
        Requests { feeds, states, refresh, rows: random.random_range(20..44) }
    }

    fn fed(&self, request: usize) -> Fed {
        fed(&self.feeds[request], &self.states[request], self.refresh, self.rows)
    }
}

/// Embeddings, positions, cache rows and segments; some tokens and pages are wild.
pub fn embed(arch: Arch, seed: u64) -> Scene {
    let mut random = StdRng::seed_from_u64(seed);
    let requests = Requests::random(&mut random, seed % 4 == 3);
    let (count, rows) = (requests.feeds.len(), requests.rows as usize);
    let (width, axes) = (40usize, random.random());
    let stride = width + GAP;
    let spec = EmbedSpec { width: width as u32, axes, arch };
    let length: u32 = requests.feeds.iter().map(|feed| feed.length).sum();
    let mut tokens: Vec<u32> = (0..length + 3).map(|_| random.random_range(0..VOCABULARY)).collect();
    let last = tokens.len() - 1;
    tokens[last] = VOCABULARY;
    let embedding: Vec<u16> = (0..VOCABULARY as usize * stride).map(|_| random.random()).collect();
    let (table_width, table_stride, pages) = ([2, 4][seed as usize % 2], 5usize, 40u32);
    let mut table: Vec<u32> = (0..count * table_stride).map(|_| random.random_range(0..pages)).collect();
    table[table_stride] = u32::MAX / PAGE + 1;
    let cache_rows = pages * PAGE;
    let places: Vec<u32> = (0..3 * cache_rows).map(|_| random.random_range(0..1000)).collect();
    let launch = Launch::new(&spec, spec.grid(count as u32, requests.rows))
        .array("tokens", tokens.clone())
        .u32("tokens_length", tokens.len() as u32)
        .array("embedding", embedding.clone())
        .u64("embedding_row", 2 * stride as u64)
        .u32("vocabulary", VOCABULARY)
        .poisoned("out", 2 * count * rows * stride)
        .u64("out_row", 2 * stride as u64)
        .array("states", requests.states.clone())
        .array("feeds", requests.feeds.clone())
        .u32("refresh", requests.refresh.into())
        .u32("rows", requests.rows)
        .array("page_table", table.clone())
        .u32("table_width", table_width as u32)
        .u32("table_stride", table_stride as u32)
        .u32("page_shift", PAGE.ilog2())
        .u32("cache_rows", cache_rows);
    let launch = if axes { launch.array("axes", places.clone()) } else { launch };
    let sets = if axes { 3 } else { 1 };
    let launch = launch
        .poisoned("positions", 4 * sets * count * rows)
        .poisoned("slots", 4 * count * rows)
        .poisoned("q_start", 4 * (2 * count + 1))
        .poisoned("q_length", 8 * count)
        .poisoned("kv_length", 8 * count)
        .array("status", vec![0u32]);
    let outputs = ["out", "positions", "slots", "q_start", "q_length", "kv_length", "status"];
    Scene::new(launch, &outputs.map(|name| (name, Agreement::Exact)), move |outcome| {
        let mut out = vec![UNWRITTEN; count * rows * stride];
        let (mut slots, mut positions) = (vec![u32::MAX; count * rows], vec![0u32; sets * count * rows]);
        let (mut q_start, mut q_length, mut kv_length) = (Vec::new(), Vec::new(), Vec::new());
        let mut status = 0;
        for (request, feed) in requests.feeds.iter().enumerate() {
            let range = requests.fed(request);
            let (first, of_rows) = ((request * rows) as u32, range.rows.end - range.rows.start);
            let apart = (range.split - range.rows.start).min(of_rows);
            q_start.extend([first, first + apart]);
            q_length.extend([apart, of_rows - apart]);
            kv_length.extend([range.split, range.visible]);
            let unbounded = fed(feed, &requests.states[request], requests.refresh, u32::MAX);
            if unbounded.rows != range.rows {
                status = STATUS_INDEX_OUT_OF_RANGE;
            }
            for row in 0..rows {
                let (at, position) = (request * rows + row, range.rows.start + row as u32);
                let own = &mut out[at * stride..][..width];
                own.fill(0);
                if !range.rows.contains(&position) {
                    continue;
                }
                let token = tokens[(feed.first_token + position) as usize];
                if token < VOCABULARY {
                    own.copy_from_slice(&embedding[token as usize * stride..][..width]);
                } else {
                    status = STATUS_INDEX_OUT_OF_RANGE;
                }
                let page = u64::from(table[request * table_stride + (position / PAGE) as usize]);
                let slot = page * u64::from(PAGE) + u64::from(position % PAGE);
                let cached = position / PAGE < table_width as u32 && slot < u64::from(cache_rows);
                if cached {
                    slots[at] = slot as u32;
                } else {
                    status = STATUS_INDEX_OUT_OF_RANGE;
                }
                for set in 0..sets {
                    positions[set * count * rows + at] = match axes {
                        false => position,
                        true if cached => places[set * cache_rows as usize + slot as usize],
                        true => 0,
                    };
                }
            }
        }
        q_start.push((count * rows) as u32);
        let words = |name| outcome.read::<u32>(name);
        Ok(equal("embeddings", &outcome.read::<u16>("out")?, &out)
            .and(equal("cache rows", &words("slots")?, &slots))
            .and(equal("positions", &words("positions")?, &positions))
            .and(equal("first rows", &words("q_start")?, &q_start))
            .and(equal("rows", &words("q_length")?, &q_length))
            .and(equal("keys", &words("kv_length")?, &kv_length))
            .and(equal("status", &words("status")?, &[status])))
    })
}

/// Hidden rows of listed positions; some are not fed, some requests do not exist.
pub fn head_rows(arch: Arch, seed: u64) -> Scene {
    let mut random = StdRng::seed_from_u64(seed);
    let requests = Requests::random(&mut random, seed % 4 == 3);
    let (count, rows) = (requests.feeds.len(), requests.rows as usize);
    let (width, capacity, listed) = (40usize, 40usize, 33usize);
    let stride = width + GAP;
    let spec = HeadRowsSpec { width: width as u32, arch };
    let x: Vec<u16> = (0..count * rows * stride).map(|_| random.random()).collect();
    let entry = |random: &mut StdRng| {
        let request = random.random_range(0..=count);
        let fed = requests.feeds.get(request).map(|feed| (requests.fed(request).rows, source(feed, 0)));
        match fed {
            Some((rows, first)) if !rows.is_empty() && random.random_bool(0.8) => {
                let row = random.random_range(rows);
                [request as u32, row.max(first) - first]
            }
            _ => [request as u32, random.random_range(0..24)],
        }
    };
    let list: Vec<[u32; 2]> = (0..capacity).map(|_| entry(&mut random)).collect();
    let launch = Launch::new(&spec, spec.grid(capacity as u32))
        .array("x", x.clone())
        .poisoned("out", 2 * capacity * stride)
        .u64("x_row", 2 * stride as u64)
        .u64("out_row", 2 * stride as u64)
        .array("list", list.concat())
        .array("totals", vec![listed as u32, 0, 0, 0])
        .array("states", requests.states.clone())
        .array("feeds", requests.feeds.clone())
        .u32("refresh", requests.refresh.into())
        .u32("rows", requests.rows)
        .u32("requests", count as u32)
        .array("status", vec![0u32]);
    let outputs = [("out", Agreement::Exact), ("status", Agreement::Exact)];
    Scene::new(launch, &outputs, move |outcome| {
        let mut out = vec![UNWRITTEN; capacity * stride];
        let mut status = 0;
        for (i, &[request, position]) in list.iter().enumerate() {
            let own = &mut out[i * stride..][..width];
            own.fill(0);
            if i >= listed {
                continue;
            }
            let row = requests.feeds.get(request as usize).and_then(|feed| {
                let fed = requests.fed(request as usize);
                let row = source(feed, position);
                fed.rows.contains(&row).then(|| request as usize * rows + (row - fed.rows.start) as usize)
            });
            match row {
                Some(row) => own.copy_from_slice(&x[row * stride..][..width]),
                None => status = STATUS_INDEX_OUT_OF_RANGE,
            }
        }
        Ok(equal("rows", &outcome.read::<u16>("out")?, &out).and(equal(
            "status",
            &outcome.read::<u32>("status")?,
            &[status],
        )))
    })
}
