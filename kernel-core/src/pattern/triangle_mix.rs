//! TriangleMix: dense layers first, then triangles.

use super::{HeadPattern, HeadPatterns, LayerPatterns};
use crate::Error;

impl HeadPattern {
    /// The tri-shape of TriangleMix, as its authors publish it: 8 sink keys, a local window of 512, and 128 dense rows at the
    /// end.
    pub const TRIANGLE: HeadPattern = HeadPattern::TriShape { sink: 8, local: 512, last: 128 };
}

impl HeadPatterns {
    /// TriangleMix: all `heads` query heads of the layers below `starting_layer` are dense, and those of the others have the
    /// pattern `triangle`, usually [`HeadPattern::TRIANGLE`]. Deep layers hardly need the middle of their attention: what
    /// lies past the sink and the window, seen from rows before the last ones.
    ///
    /// There is no default for `starting_layer`: it depends on the model. The authors' is 16 for 32 layers; the method and its
    /// sizes are theirs, from the `tri_mix` attention of the MInference repository.
    ///
    /// # Errors
    /// [`Error::Setting`] where `starting_layer` is above `layers`; equal to it, all layers are dense.
    pub fn triangle_mix(
        layers: usize,
        heads: u32,
        starting_layer: usize,
        triangle: HeadPattern,
    ) -> Result<HeadPatterns, Error> {
        if starting_layer > layers {
            let message = format!("is {starting_layer}; the model has {layers} layers, give one from 0 to {layers}");
            return Err(Error::Setting { setting: "starting_layer", message });
        }
        let pattern = |layer| if layer < starting_layer { HeadPattern::Dense } else { triangle };
        Ok((0..layers).map(|layer| LayerPatterns::uniform(heads, pattern(layer))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_dense_up_to_the_first_triangle() {
        let patterns = HeadPatterns::triangle_mix(4, 3, 2, HeadPattern::TRIANGLE).unwrap();
        let dense = LayerPatterns::uniform(3, HeadPattern::Dense);
        let triangles = LayerPatterns::uniform(3, HeadPattern::TriShape { sink: 8, local: 512, last: 128 });
        let layers: Vec<_> = (0..4).map(|layer| patterns.layer(layer).unwrap()).collect();
        assert_eq!(layers, [dense.clone(), dense, triangles.clone(), triangles]);
        assert_eq!(HeadPatterns::from_json(&patterns.to_json().unwrap()).unwrap(), patterns, "as a file");

        let own = HeadPattern::TriShape { sink: 1, local: 2, last: 3 };
        assert_eq!(HeadPatterns::triangle_mix(1, 1, 0, own).unwrap().layer(0).unwrap().head(0), own);
        assert_eq!(HeadPatterns::triangle_mix(1, 1, 1, own).unwrap().layer(0).unwrap().head(0), HeadPattern::Dense);
    }

    #[test]
    fn the_first_triangle_is_one_of_the_layers() {
        let error = HeadPatterns::triangle_mix(4, 3, 5, HeadPattern::TRIANGLE).unwrap_err().to_string();
        assert!(error.contains("starting_layer") && error.contains("from 0 to 4"), "{error}");
    }
}
