//! Which patterns the heads of a model get, as the command line says it.

use crate::{Result, session::Session};
use kernel_core::{HeadPattern, HeadPatterns, LayerPatterns};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// What a pattern of one head may be.
const PATTERNS: &str = "dense, a_shape:SINK,LOCAL, tri_shape:SINK,LOCAL,LAST, vertical_slash:COLUMNS,SLASHES, flex_vertical_slash:SHARE,COLUMNS,SLASHES or block_sparse:BLOCKS";

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

/// Reads the pattern of one head.
pub(crate) fn pattern(text: &str) -> std::result::Result<HeadPattern, String> {
    if let Some(rest) = text.strip_prefix("flex_vertical_slash:") {
        let (share, most) = rest.split_once(',').ok_or_else(|| format!("give {PATTERNS}"))?;
        let share: f32 = share.trim().parse().map_err(|error| format!("{share}: {error}"))?;
        if !(share > 0.0 && share <= 1.0) {
            return Err(format!("the share is {share}; give one above 0 and up to 1"));
        }
        return match sizes(&format!(":{most}"))?.1[..] {
            [columns, slashes] => {
                Ok(HeadPattern::FlexVerticalSlash { columns: (share, columns), slashes: (share, slashes) })
            }
            _ => Err(format!("give {PATTERNS}")),
        };
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
    const NAMES: [&str; 7] =
        ["dense", "a_shape", "tri_shape", "vertical_slash", "flex_vertical_slash", "block_sparse", "triangle_mix"];
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
        assert_eq!(read("dir/my.json"), Ok(("my".into(), Policy::File("dir/my.json".into()))));
        assert!(policy("triangle_mix").is_err_and(|error| error.contains("STARTING_LAYER")));
        assert!(policy("a_shape:1").is_err_and(|error| error.contains("a_shape:SINK,LOCAL")));
        assert!(policy("a_shape:1,x").is_err_and(|error| error.contains("invalid digit")));
    }
}
