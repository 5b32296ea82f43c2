//! Which patterns the heads of a model get, as the command line says it.

use crate::{Result, session::Session};
use kernel_core::{HeadPattern, HeadPatterns, LayerPatterns};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// What a pattern of one head may be.
const PATTERNS: &str = "dense, a_shape:SINK,LOCAL, tri_shape:SINK,LOCAL,LAST, vertical_slash:COLUMNS,SLASHES, flex_vertical_slash:SHARE,COLUMNS,SLASHES, block_sparse:BLOCKS, flex_block_sparse:SHARE,BLOCKS or flex:SHARE,THRESHOLD";

/// Patterns for all heads of a model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Policy {
    /// One for every head.
    Uniform(HeadPattern),
    /// Dense below a layer, triangles from it on.
    TriangleMix { starting_layer: usize, triangle: HeadPattern },
    /// Each head's own, from a file.
    File(PathBuf),
}

/// The sizes of `name:number,…`.
fn sizes(text: &str) -> std::result::Result<(&str, Vec<u32>), String> {
    let (name, sizes) = text.split_once(':').unwrap_or((text, ""));
    let sizes = sizes.split(',').filter(|size| !size.is_empty()).map(|size| size.trim().parse::<u32>());
    Ok((name, sizes.collect::<std::result::Result<_, _>>().map_err(|error| error.to_string())?))
}

/// Reads the pattern of one head that asks for a share: `flex…:SHARE,` and the rest.
fn flex(name: &str, rest: &str) -> std::result::Result<HeadPattern, String> {
    let (share, rest) = rest.split_once(',').ok_or_else(|| format!("give {PATTERNS}"))?;
    let number = |text: &str| text.trim().parse::<f32>().map_err(|error| format!("{text}: {error}"));
    let share = number(share)?;
    if !(share > 0.0 && share <= 1.0) {
        return Err(format!("the share is {share}; give one above 0 and up to 1"));
    }
    if name == "flex" {
        let threshold = number(rest)?;
        if !(threshold.is_finite() && threshold >= 0.0) {
            return Err(format!("the threshold is {threshold}; give a finite one of 0 or more"));
        }
        return Ok(HeadPattern::Flex { share, threshold, blocks: u32::MAX });
    }
    match (name, &sizes(&format!(":{rest}"))?.1[..]) {
        ("flex_vertical_slash", &[columns, slashes]) => {
            Ok(HeadPattern::FlexVerticalSlash { columns: (share, columns), slashes: (share, slashes) })
        }
        ("flex_block_sparse", &[blocks]) => Ok(HeadPattern::FlexBlockSparse { blocks: (share, blocks) }),
        _ => Err(format!("give {PATTERNS}")),
    }
}

/// Reads the pattern of one head.
pub(crate) fn pattern(text: &str) -> std::result::Result<HeadPattern, String> {
    if let Some((name @ ("flex" | "flex_vertical_slash" | "flex_block_sparse"), rest)) = text.split_once(':') {
        return flex(name, rest);
    }
    let (name, sizes) = sizes(text)?;
    match (name, &sizes[..]) {
        ("dense", []) => Ok(HeadPattern::Dense),
        ("a_shape", &[sink, local]) => Ok(HeadPattern::AShape { sink, local }),
        ("tri_shape", &[sink, local, last]) => Ok(HeadPattern::TriShape { sink, local, last }),
        ("vertical_slash", &[columns, slashes]) => Ok(HeadPattern::VerticalSlash { columns, slashes }),
        ("block_sparse", &[blocks]) => Ok(HeadPattern::BlockSparse { blocks }),
        _ => Err(format!("give {PATTERNS}")),
    }
}

/// Reads a policy: a pattern, `triangle_mix:…`, and whatever begins like neither is a file.
pub(crate) fn policy(text: &str) -> std::result::Result<Policy, String> {
    const NAMES: [&str; 9] = [
        "dense",
        "a_shape",
        "tri_shape",
        "vertical_slash",
        "flex_vertical_slash",
        "block_sparse",
        "flex_block_sparse",
        "flex",
        "triangle_mix",
    ];
    let name = text.split(':').next().unwrap_or(text);
    if !NAMES.contains(&name) {
        return Ok(Policy::File(text.into()));
    }
    if name != "triangle_mix" {
        return pattern(text).map(Policy::Uniform);
    }
    let (starting_layer, triangle) = match sizes(text)?.1[..] {
        [layer] => (layer, HeadPattern::TRIANGLE),
        [layer, sink, local, last] => (layer, HeadPattern::TriShape { sink, local, last }),
        _ => return Err("give triangle_mix:STARTING_LAYER or triangle_mix:STARTING_LAYER,SINK,LOCAL,LAST".into()),
    };
    Ok(Policy::TriangleMix { starting_layer: starting_layer as usize, triangle })
}

impl Policy {
    /// The patterns of the session's model.
    pub(crate) fn patterns(&self, session: &Session) -> Result<HeadPatterns> {
        let (layers, heads) = (session.config.layers, session.config.heads as u32);
        match self {
            Policy::Uniform(pattern) => Ok((0..layers).map(|_| LayerPatterns::uniform(heads, *pattern)).collect()),
            Policy::TriangleMix { starting_layer, triangle } => {
                Ok(HeadPatterns::triangle_mix(layers, heads, *starting_layer, *triangle)?)
            }
            Policy::File(path) => {
                let instead = format!("give a file, triangle_mix:STARTING_LAYER, {PATTERNS}");
                read(session, path, &instead)
            }
        }
    }
}

/// The patterns of `path`, held against the session's model. `instead` says what helps where there is no such file.
pub(crate) fn read(session: &Session, path: &Path, instead: &str) -> Result<HeadPatterns> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}; {instead}", path.display()))?;
    let wrong = |error: kernel_core::Error| format!("{}: {error}", path.display());
    let patterns = HeadPatterns::from_json(&text).map_err(wrong)?;
    patterns.check(session.config.layers, session.config.heads as u32).map_err(wrong)?;
    Ok(patterns)
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Uniform(pattern) => f.write_str(&crate::layer::describe(*pattern)),
            Policy::TriangleMix { starting_layer, .. } => write!(f, "TriangleMix from layer {starting_layer}"),
            Policy::File(path) => f.write_str(&path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_patterns_triangles_and_files() {
        let read = |text: &str| policy(text).map(|policy| (policy.to_string(), policy));
        let uniform = Policy::Uniform(HeadPattern::VerticalSlash { columns: 30, slashes: 800 });
        assert_eq!(read("vertical_slash:30, 800"), Ok(("vertical-slash 30|800".into(), uniform)));
        let mix = |starting_layer, triangle| Policy::TriangleMix { starting_layer, triangle };
        assert_eq!(policy("triangle_mix:2"), Ok(mix(2, HeadPattern::TRIANGLE)));
        let own = HeadPattern::TriShape { sink: 1, local: 2, last: 3 };
        assert_eq!(read("triangle_mix:0,1,2,3"), Ok(("TriangleMix from layer 0".into(), mix(0, own))));
        let flex = HeadPattern::FlexVerticalSlash { columns: (0.95, 30), slashes: (0.95, 800) };
        assert_eq!(policy("flex_vertical_slash:0.95,30,800"), Ok(Policy::Uniform(flex)));
        assert!(policy("flex_vertical_slash:1.5,30,800").is_err_and(|error| error.contains("up to 1")));
        let flex = HeadPattern::FlexBlockSparse { blocks: (0.9, 40) };
        assert_eq!(policy("flex_block_sparse:0.9,40"), Ok(Policy::Uniform(flex)));
        let flex = HeadPattern::Flex { share: 0.9, threshold: 0.1, blocks: u32::MAX };
        assert_eq!(read("flex:0.9, 0.1"), Ok(("flex 0.9, 0.1".into(), Policy::Uniform(flex))));
        assert!(policy("flex:0,0.1").is_err_and(|error| error.contains("above 0")));
        for threshold in ["-0.1", "inf", "nan"] {
            assert!(policy(&format!("flex:0.9,{threshold}")).is_err_and(|error| error.contains("finite one")));
        }
        assert!(policy("flex:0.9").is_err_and(|error| error.contains("flex:SHARE,THRESHOLD")));
        assert_eq!(read("dir/my.json"), Ok(("my".into(), Policy::File("dir/my.json".into()))));
        assert!(policy("triangle_mix").is_err_and(|error| error.contains("STARTING_LAYER")));
        assert!(policy("a_shape:1").is_err_and(|error| error.contains("a_shape:SINK,LOCAL")));
        assert!(policy("a_shape:1,x").is_err_and(|error| error.contains("invalid digit")));
    }
}
