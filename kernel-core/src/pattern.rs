//! Which pattern each head has, and the JSON in which the MInference authors publish that.
//!
//! A file is an array of layers; a layer maps query heads to `[type, v, s, score]`:
//!
//! ```json
//! [{"0": ["vertical_and_slash", 1000, 6096, 0.96], "1": ["stream_llm", 128, 3968, 0.91]}, {}]
//! ```
//!
//! | type | pattern | `v` | `s` |
//! |---|---|---|---|
//! | `vertical_and_slash` | vertical-slash | key columns | slashes |
//! | `flex_vertical_and_slash` | vertical-slash by share | `[share, most columns]` | `[share, most slashes]` |
//! | `stream_llm` | A-shape | sink | local window |
//! | `block_sparse` | block-sparse by pooled keys | ignored: 100 blocks | ignored |
//! | `flex_block_sparse` | block-sparse by share | `[share, most blocks]` | ignored |
//! | `flex` | vertical-slash or block-sparse by share, as the plan finds | `[share, threshold]` | `[most blocks]` |
//!
//! A share is above 0 and at most 1. The score is the recall or the mismatch count of the search that chose the pattern, a
//! finite number, whole or not; nothing depends on it. Heads that a file leaves out are vertical-slash with 1000 columns and
//! 6096 slashes, as in the authors' code; [`HeadPatterns::check`] holds a file against a model. Ours are `dense` (`v`, `s`
//! ignored), `tri_shape` (`v` = sink, `s` = `[local window, last rows]`), `block_sparse` with `v = [blocks]`, `flex_block_sparse`
//! and `flex`, in the manner of `flex_vertical_and_slash`.

mod triangle_mix;

use crate::Error;
use serde_json::{Map, Number, Value, json};
use std::{collections::BTreeMap, ops::Range};

/// What one head attends to. Positions are absolute, q is a query's and k a key's; everything is causal (k ≤ q).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeadPattern {
    /// Every key.
    Dense,
    /// `q − k < local` or `k < sink` (StreamingLLM).
    AShape {
        /// First keys.
        sink: u32,
        /// Nearest keys.
        local: u32,
    },
    /// An A-shape whose last rows are dense (TriangleMix).
    TriShape {
        /// First keys.
        sink: u32,
        /// Nearest keys.
        local: u32,
        /// Dense rows at the end.
        last: u32,
    },
    /// The key columns and slashes that the last 64 queries look at most (MInference §1.3).
    VerticalSlash {
        /// Key columns.
        columns: u32,
        /// Slashes: diagonals of constant `q − k`.
        slashes: u32,
    },
    /// As [`HeadPattern::VerticalSlash`], but only as many as hold a share of the attention of those queries (FlexPrefill,
    /// algorithm 2, by single columns and slashes).
    FlexVerticalSlash {
        /// Share of the attention in columns, and most of them.
        columns: (f32, u32),
        /// Share of the attention in slashes, and most of them.
        slashes: (f32, u32),
    },
    /// The key blocks whose mean key fits a row block's mean query best.
    BlockSparse {
        /// Key blocks of a row block.
        blocks: u32,
    },
    /// As [`HeadPattern::BlockSparse`], but only as many as hold a share of the softmax of those products, block 0 and the blocks of
    /// the row block's own positions among them (FlexPrefill, algorithm 3, for each row block by itself).
    FlexBlockSparse {
        /// Share of the softmax, above 0 and at most 1, and most key blocks of a row block.
        blocks: (f32, u32),
    },
    /// [`HeadPattern::FlexBlockSparse`] where pooled queries and keys see what the last 64 queries look at, else
    /// [`HeadPattern::FlexVerticalSlash`] (FlexPrefill, algorithm 1; its code takes a share of 0.9 and a threshold of 0.1). The
    /// plan chooses for each sequence of a batch.
    Flex {
        /// Share of the attention in columns and in slashes, or in blocks; above 0 and at most 1.
        share: f32,
        /// What the square root of the Jensen–Shannon divergence of the two, in nats, must stay below for blocks: finite, from 0
        /// (never) on; no divergence reaches 0.833.
        threshold: f32,
        /// Most key blocks of a row block: the room of its list. Columns and slashes have no limit but the share.
        blocks: u32,
    },
    /// The key blocks that hold a share of the attention as sums over antidiagonals see it (XAttention, §2; its code takes
    /// stride 8 and threshold 0.9), block 0 and those of the row block's own positions among them. The published JSON has
    /// no type for it.
    Antidiagonal {
        /// Rows whose products are added up: 8 or 16. The estimate costs 1 / (2 · stride) of dense attention's products.
        stride: u32,
        /// Share of the attention, above 0 and at most 1.
        threshold: f32,
        /// Most key blocks of a row block: the room of its list. Beyond it the lightest are left out.
        blocks: u32,
    },
}

/// Blocks that the authors' code gives every block-sparse head.
const BLOCKS: u32 = 100;

impl Default for HeadPattern {
    /// What the authors' code gives a head that its file leaves out.
    fn default() -> Self {
        HeadPattern::VerticalSlash { columns: 1000, slashes: 6096 }
    }
}

/// The patterns of one layer, by query head.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerPatterns {
    heads: BTreeMap<u32, (HeadPattern, Number)>,
}

/// The patterns of all layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadPatterns {
    layers: Vec<LayerPatterns>,
}

impl LayerPatterns {
    /// `heads` heads of one pattern.
    pub fn uniform(heads: u32, pattern: HeadPattern) -> LayerPatterns {
        (0..heads).map(|_| pattern).collect()
    }

    /// The pattern of a query head.
    pub fn head(&self, head: u32) -> HeadPattern {
        self.heads.get(&head).map_or_else(HeadPattern::default, |(pattern, _)| *pattern)
    }

    /// Sets the pattern of a query head, and the score of the search that found it.
    ///
    /// # Errors
    /// [`Error::Setting`] for a score that is not finite: JSON has no number for it.
    pub fn set(&mut self, head: u32, pattern: HeadPattern, score: f64) -> Result<(), Error> {
        let score = Number::from_f64(score).ok_or_else(|| Error::Setting {
            setting: "score",
            message: format!("of head {head} is {score}; it must be finite"),
        })?;
        self.heads.insert(head, (pattern, score));
        Ok(())
    }

    /// The highest head that is set, plus one.
    pub fn head_count(&self) -> u32 {
        self.heads.last_key_value().map_or(0, |(head, _)| head.saturating_add(1))
    }

    /// The heads of one rank in tensor parallelism, counted from 0; none where the range ends before it begins.
    pub fn range(&self, heads: Range<u32>) -> LayerPatterns {
        let (first, end) = (heads.start, heads.end.max(heads.start));
        let inside = |(head, entry): (&u32, &(HeadPattern, Number))| (head - first, entry.clone());
        LayerPatterns { heads: self.heads.range(first..end).map(inside).collect() }
    }
}

impl FromIterator<HeadPattern> for LayerPatterns {
    /// One pattern a head, from head 0.
    fn from_iter<I: IntoIterator<Item = HeadPattern>>(patterns: I) -> LayerPatterns {
        LayerPatterns { heads: (0..).zip(patterns.into_iter().map(|pattern| (pattern, 0.into()))).collect() }
    }
}

impl FromIterator<LayerPatterns> for HeadPatterns {
    fn from_iter<I: IntoIterator<Item = LayerPatterns>>(layers: I) -> HeadPatterns {
        HeadPatterns { layers: layers.into_iter().collect() }
    }
}

impl HeadPatterns {
    /// Reads the published JSON.
    ///
    /// # Errors
    /// [`Error::Pattern`] names the layer and the head, and says what is allowed there.
    pub fn from_json(text: &str) -> Result<HeadPatterns, Error> {
        let fail = |layer, message: String| Error::Pattern { layer, head: "all".into(), message };
        let file: Value = serde_json::from_str(text).map_err(|e| fail(0, format!("not JSON: {e}")))?;
        let Value::Array(layers) = file else {
            return Err(fail(0, "the file must be an array of layers".into()));
        };
        let layer = |(i, layer): (usize, &Value)| {
            let Value::Object(heads) = layer else {
                return Err(fail(i, "a layer must be an object from heads to [type, v, s, score]".into()));
            };
            let head = |(name, entry): (&String, &Value)| {
                let fail = |message| Error::Pattern { layer: i, head: name.clone(), message };
                let head = name.parse().ok().filter(|head: &u32| head.to_string() == *name);
                let head = head.ok_or_else(|| fail("a head must be a number from 0, as \"7\"".into()))?;
                Ok((head, parse(entry).map_err(fail)?))
            };
            Ok(LayerPatterns { heads: heads.iter().map(head).collect::<Result<_, Error>>()? })
        };
        Ok(HeadPatterns { layers: layers.iter().enumerate().map(layer).collect::<Result<_, Error>>()? })
    }

    /// Checks that the patterns can be those of a model: as many layers, and no head beyond its query heads. A head that is
    /// left out has the default.
    ///
    /// # Errors
    /// [`Error::Pattern`] names the layer and the head.
    pub fn check(&self, layers: usize, heads: u32) -> Result<(), Error> {
        let fail = |layer, head: String, message| Err(Error::Pattern { layer, head, message });
        let given = self.layers();
        if given != layers {
            return fail(given.min(layers), "all".into(), format!("{given} layers are given, the model has {layers}"));
        }
        let last = self.layers.iter().map(|layer| layer.head_count()).enumerate().find(|(_, count)| *count > heads);
        last.map_or(Ok(()), |(layer, count)| {
            fail(layer, (count - 1).to_string(), format!("no such head; the model has {heads} query heads"))
        })
    }

    /// Writes the published JSON, a layer a line.
    ///
    /// # Errors
    /// [`Error::Pattern`] names the layer and the head whose pattern the schema has no type for.
    pub fn to_json(&self) -> Result<String, Error> {
        let layer = |(i, layer): (usize, &LayerPatterns)| {
            let head = |(head, (pattern, score)): (&u32, &(HeadPattern, Number))| {
                let fail = |message| Error::Pattern { layer: i, head: head.to_string(), message };
                Ok((head.to_string(), write(pattern, score).map_err(fail)?))
            };
            let heads: Map<String, Value> = layer.heads.iter().map(head).collect::<Result<_, Error>>()?;
            Ok(Value::Object(heads).to_string())
        };
        let layers: Vec<String> = self.layers.iter().enumerate().map(layer).collect::<Result<_, Error>>()?;
        Ok(format!("[{}]\n", layers.join(",\n ")))
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The patterns of one layer.
    pub fn layer(&self, layer: usize) -> Result<LayerPatterns, Error> {
        self.layers.get(layer).cloned().ok_or_else(|| Error::Pattern {
            layer,
            head: "all".into(),
            message: format!("no such layer; the file has {}", self.layers.len()),
        })
    }
}

/// One `[type, v, s, score]`.
fn parse(entry: &Value) -> Result<(HeadPattern, Number), String> {
    let wrong = || format!("{entry} is no [type, v, s, score]");
    let [Value::String(kind), v, s, Value::Number(score)] = entry.as_array().map_or(&[][..], Vec::as_slice) else {
        return Err(wrong());
    };
    let size = |name: &str, value: &Value| {
        let size = value.as_u64().and_then(|size| u32::try_from(size).ok());
        size.ok_or_else(|| format!("{name} of {kind} is {value}; a count from 0 to {} is needed", u32::MAX))
    };
    let pair = |name: &str, value: &Value| match value.as_array().map_or(&[][..], Vec::as_slice) {
        [first, second] => Ok((first.clone(), second.clone())),
        _ => Err(format!("{name} of {kind} is {value}; an array of two is needed")),
    };
    let share = |name: &str, value: &Value| {
        let (share, most) = pair(name, value)?;
        let share = share.as_f64().map(|share| share as f32).filter(|share| *share > 0.0 && *share <= 1.0);
        let share =
            share.ok_or_else(|| format!("{name} of {kind} is {value}; a share above 0, at most 1 comes first"))?;
        Ok::<_, String>((share, most))
    };
    let share_of = |name: &str, value: &Value| {
        let (share, most) = share(name, value)?;
        Ok::<_, String>((share, size(name, &most)?))
    };
    let pattern = match kind.as_str() {
        "dense" => HeadPattern::Dense,
        "stream_llm" => HeadPattern::AShape { sink: size("v", v)?, local: size("s", s)? },
        "tri_shape" => {
            let (local, last) = pair("s", s)?;
            HeadPattern::TriShape { sink: size("v", v)?, local: size("s", &local)?, last: size("s", &last)? }
        }
        "vertical_and_slash" => HeadPattern::VerticalSlash { columns: size("v", v)?, slashes: size("s", s)? },
        "flex_vertical_and_slash" => {
            HeadPattern::FlexVerticalSlash { columns: share_of("v", v)?, slashes: share_of("s", s)? }
        }
        "flex_block_sparse" => HeadPattern::FlexBlockSparse { blocks: share_of("v", v)? },
        "flex" => {
            let (share, threshold) = share("v", v)?;
            let threshold = threshold.as_f64().map(|threshold| threshold as f32);
            let threshold = threshold.filter(|threshold| threshold.is_finite() && *threshold >= 0.0);
            let threshold =
                threshold.ok_or_else(|| format!("v of {kind} is {v}; a finite threshold of 0 or more comes second"))?;
            let blocks = match s.as_array().map(Vec::as_slice) {
                Some([blocks]) => size("s", blocks)?,
                _ => return Err(format!("s of {kind} is {s}; an array of one is needed")),
            };
            HeadPattern::Flex { share, threshold, blocks }
        }
        "block_sparse" => match v.as_array().map(Vec::as_slice) {
            Some([blocks]) => HeadPattern::BlockSparse { blocks: size("v", blocks)? },
            _ => HeadPattern::BlockSparse { blocks: BLOCKS },
        },
        _ => {
            return Err(format!(
                "unknown type {kind}; known are vertical_and_slash, flex_vertical_and_slash, stream_llm, block_sparse, \
                 flex_block_sparse, flex, tri_shape and dense"
            ));
        }
    };
    Ok((pattern, score.clone()))
}

fn write(pattern: &HeadPattern, score: &Number) -> Result<Value, String> {
    // As short as its digits: 0.9, not what f32 makes of it in double precision.
    let number = |number: f32| number.to_string().parse::<f64>().unwrap_or_else(|_| number.into());
    Ok(match *pattern {
        HeadPattern::Dense => json!(["dense", 0, 0, score]),
        HeadPattern::AShape { sink, local } => json!(["stream_llm", sink, local, score]),
        HeadPattern::TriShape { sink, local, last } => json!(["tri_shape", sink, [local, last], score]),
        HeadPattern::VerticalSlash { columns, slashes } => json!(["vertical_and_slash", columns, slashes, score]),
        HeadPattern::FlexVerticalSlash { columns, slashes } => {
            json!(["flex_vertical_and_slash", [number(columns.0), columns.1], [number(slashes.0), slashes.1], score])
        }
        HeadPattern::BlockSparse { blocks } => json!(["block_sparse", [blocks], 0, score]),
        HeadPattern::FlexBlockSparse { blocks } => {
            json!(["flex_block_sparse", [number(blocks.0), blocks.1], 0, score])
        }
        HeadPattern::Flex { share, threshold, blocks } => {
            json!(["flex", [number(share), number(threshold)], [blocks], score])
        }
        HeadPattern::Antidiagonal { .. } => {
            return Err(
                "is antidiagonal, for which the schema has no type; leave the head out and set it in code".into()
            );
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const FILE: &str = r#"[
        {"0": ["vertical_and_slash", 30, 800, 0.5], "2": ["stream_llm", 100, 800, 22000000]},
        {"1": ["flex_vertical_and_slash", [0.9, 4096], [0.95, 8192], 0.0], "0": ["block_sparse", 1000, 6096, 1]}
    ]"#;

    /// A file as the authors' are, with scores of both kinds, and types of ours.
    const OWN: &str = r#"[
        {"0": ["vertical_and_slash", 1000, 6096, 0.9623493552207947], "1": ["vertical_and_slash", 3500, 100, 26473]},
        {"0": ["stream_llm", 100, 800, 0.33349305391311646], "1": ["flex_vertical_and_slash", [0.9, 4096], [1.0, 8192], 0.0]},
        {"0": ["block_sparse", [12], 0, 0], "1": ["tri_shape", 8, [512, 128], 1.0], "10": ["dense", 0, 0, 1]},
        {"0": ["flex_block_sparse", [0.9, 40], 0, 0.5], "3": ["flex", [0.95, 0.1], [512], 0.5]},
        {}
    ]"#;

    #[test]
    fn reads_the_published_schema() {
        let patterns = HeadPatterns::from_json(FILE).unwrap();
        let (first, second) = (patterns.layer(0).unwrap(), patterns.layer(1).unwrap());
        assert_eq!(first.head(0), HeadPattern::VerticalSlash { columns: 30, slashes: 800 });
        assert_eq!(first.head(1), HeadPattern::VerticalSlash { columns: 1000, slashes: 6096 }, "left out");
        assert_eq!(first.head(2), HeadPattern::AShape { sink: 100, local: 800 });
        assert_eq!(first.head_count(), 3);
        assert_eq!(second.head(0), HeadPattern::BlockSparse { blocks: 100 });
        assert_eq!(second.head(1), HeadPattern::FlexVerticalSlash { columns: (0.9, 4096), slashes: (0.95, 8192) });
    }

    #[test]
    fn writes_what_it_reads() {
        let mut patterns = HeadPatterns::from_json(FILE).unwrap();
        patterns.layers[0].set(5, HeadPattern::TriShape { sink: 8, local: 512, last: 128 }, 0.25).unwrap();
        patterns.layers[0].set(6, HeadPattern::Dense, 1.0).unwrap();
        let text = patterns.to_json().unwrap();
        assert_eq!(HeadPatterns::from_json(&text).unwrap(), patterns);
        assert!(text.contains(r#"["stream_llm",100,800,22000000]"#), "{text}");
        let own = HeadPatterns::from_json(OWN).unwrap();
        let layer = own.layer(3).unwrap();
        assert_eq!(layer.head(0), HeadPattern::FlexBlockSparse { blocks: (0.9, 40) });
        assert_eq!(layer.head(3), HeadPattern::Flex { share: 0.95, threshold: 0.1, blocks: 512 });
        let own = own.to_json().unwrap();
        assert_eq!(serde_json::from_str::<Value>(&own).unwrap(), serde_json::from_str::<Value>(OWN).unwrap());
    }

    #[test]
    fn scores_are_finite() {
        let mut layer = LayerPatterns::default();
        for score in [f64::NAN, f64::INFINITY] {
            let error = layer.set(3, HeadPattern::Dense, score).unwrap_err().to_string();
            assert!(error.contains("score") && error.contains("of head 3 is"), "{error}");
        }
        assert_eq!(layer.head_count(), 0, "nothing was set");
        for score in ["NaN", "Infinity", "-Infinity", "1e999", "null", "\"1\"", "[1]"] {
            let text = format!(r#"[{{"0": ["stream_llm", 1, 2, {score}]}}]"#);
            let error = HeadPatterns::from_json(&text).unwrap_err().to_string();
            assert!(error.contains("not JSON") || error.contains("no [type, v, s, score]"), "{score}: {error}");
        }
    }

    #[test]
    fn a_file_is_held_against_a_model() {
        let patterns = HeadPatterns::from_json(OWN).unwrap();
        patterns.check(5, 11).unwrap();
        for (layers, heads, expected) in [
            (5, 10, "pattern file, layer 2, head 10: no such head; the model has 10 query heads"),
            (5, 1, "pattern file, layer 0, head 1: no such head; the model has 1 query heads"),
            (6, 11, "pattern file, layer 5, head all: 5 layers are given, the model has 6"),
            (4, 11, "pattern file, layer 4, head all: 5 layers are given, the model has 4"),
        ] {
            assert_eq!(patterns.check(layers, heads).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn what_the_schema_lacks_is_not_written_as_something_else() {
        let antidiagonal = HeadPattern::Antidiagonal { stride: 8, threshold: 0.9, blocks: 100 };
        let patterns: HeadPatterns =
            [LayerPatterns::default(), LayerPatterns::uniform(2, antidiagonal)].into_iter().collect();
        let error = patterns.to_json().unwrap_err().to_string();
        assert!(error.starts_with("pattern file, layer 1, head 0: is antidiagonal"), "{error}");
    }

    /// The authors' own files, from the folder that `PATTERN_FILES` names.
    #[test]
    fn published_files_survive_a_round_trip() {
        let Ok(folder) = std::env::var("PATTERN_FILES") else {
            // Past the capture of the test harness, which hides what passing tests print.
            let text = "NOT RUN: set PATTERN_FILES to a folder of the authors' pattern files, to read and write each";
            drop(writeln!(std::io::stderr(), "{text}"));
            return;
        };
        let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
        assert!(!files.is_empty(), "no JSON file in {folder}");
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let patterns = HeadPatterns::from_json(&text).unwrap();
            let heads = patterns.layer(0).unwrap().head_count();
            assert!(patterns.layers() >= 28 && heads >= 28, "{}: {heads} heads", file.display());
            patterns.check(patterns.layers(), heads).unwrap();
            let own: Value = serde_json::from_str(&patterns.to_json().unwrap()).unwrap();
            assert_eq!(own, serde_json::from_str::<Value>(&text).unwrap(), "{}", file.display());
        }
    }

    #[test]
    fn ranks_take_their_own_heads() {
        let layer = HeadPatterns::from_json(FILE).unwrap().layer(0).unwrap();
        let rank = layer.range(2..4);
        assert_eq!(rank.head(0), HeadPattern::AShape { sink: 100, local: 800 });
        assert_eq!(rank.head(1), HeadPattern::default());
        assert_eq!(rank.head_count(), 1);
        assert_eq!(layer.range(2..3), rank);
        // Two ranks hold what the layer holds.
        let halves = [layer.range(0..2), layer.range(2..4)];
        let joined: Vec<_> = halves.iter().flat_map(|rank| (0..2).map(|head| rank.head(head))).collect();
        assert_eq!(joined, (0..4).map(|head| layer.head(head)).collect::<Vec<_>>());
        #[allow(clippy::reversed_empty_ranges, reason = "what a caller may give")]
        let none = layer.range(3..1);
        assert_eq!(none.head_count(), 0);
    }

    #[test]
    fn errors_name_layer_and_head() {
        for (text, expected) in [
            ("{}", "pattern file, layer 0, head all: the file must be an array of layers"),
            ("[{}, 3]", "pattern file, layer 1, head all: a layer must be an object from heads to [type, v, s, score]"),
            (r#"[{}, {"x": []}]"#, "pattern file, layer 1, head x: a head must be a number from 0, as \"7\""),
            (r#"[{"01": []}]"#, "pattern file, layer 0, head 01: a head must be a number from 0, as \"7\""),
            (
                r#"[{"4": ["stream_llm", 1, 2]}]"#,
                r#"pattern file, layer 0, head 4: ["stream_llm",1,2] is no [type, v, s, score]"#,
            ),
            (
                r#"[{"4": ["stream_llm", -1, 2, 0]}]"#,
                "pattern file, layer 0, head 4: v of stream_llm is -1; a count from 0 to 4294967295 is needed",
            ),
            (
                r#"[{"4": ["flex_vertical_and_slash", [2.0, 5], [0.5, 5], 0]}]"#,
                "pattern file, layer 0, head 4: v of flex_vertical_and_slash is [2.0,5]; a share above 0, at most 1 \
                 comes first",
            ),
            (
                r#"[{"4": ["flex_vertical_and_slash", [1.0, 5], [0.0, 5], 0]}]"#,
                "pattern file, layer 0, head 4: s of flex_vertical_and_slash is [0.0,5]; a share above 0, at most 1 \
                 comes first",
            ),
            (
                r#"[{"4": ["flex_vertical_and_slash", 1000, 6096, 0]}]"#,
                "pattern file, layer 0, head 4: v of flex_vertical_and_slash is 1000; an array of two is needed",
            ),
            (
                r#"[{"4": ["flex_block_sparse", [0, 5], 0, 0]}]"#,
                "pattern file, layer 0, head 4: v of flex_block_sparse is [0,5]; a share above 0, at most 1 comes first",
            ),
            (
                r#"[{"4": ["flex", [1.5, 0.1], [9], 0]}]"#,
                "pattern file, layer 0, head 4: v of flex is [1.5,0.1]; a share above 0, at most 1 comes first",
            ),
            (
                r#"[{"4": ["flex", [0.9, -0.1], [9], 0]}]"#,
                "pattern file, layer 0, head 4: v of flex is [0.9,-0.1]; a finite threshold of 0 or more comes second",
            ),
            (
                r#"[{"4": ["flex", [0.9, 1e99], [9], 0]}]"#,
                "pattern file, layer 0, head 4: v of flex is [0.9,1e+99]; a finite threshold of 0 or more comes second",
            ),
            (
                r#"[{"4": ["flex", [0.9, 0.1], 9, 0]}]"#,
                "pattern file, layer 0, head 4: s of flex is 9; an array of one is needed",
            ),
        ] {
            assert_eq!(HeadPatterns::from_json(text).unwrap_err().to_string(), expected);
        }
        let error = HeadPatterns::from_json(r#"[{"0": ["dilated", 1, 2, 0]}]"#).unwrap_err().to_string();
        assert!(error.contains("unknown type dilated; known are vertical_and_slash"), "{error}");
        assert!(HeadPatterns::from_json("[{").unwrap_err().to_string().contains("not JSON"));
        let error = HeadPatterns::from_json(FILE).unwrap().layer(2).unwrap_err().to_string();
        assert_eq!(error, "pattern file, layer 2, head all: no such layer; the file has 2");
    }
}
