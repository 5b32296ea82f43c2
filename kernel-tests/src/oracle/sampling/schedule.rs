//! How many rows are due at a step.

use ptx::kernels::sampling::{RequestState, SelectParameters, schedule};

/// Point `at` of PyTorch's `linspace(1, ε, steps + 1)` in single precision.
pub(super) fn time(epsilon: f32, steps: u32, at: u32) -> f32 {
    let delta = (epsilon - 1.0) / steps as f32;
    if at < steps.div_ceil(2) { 1.0 + delta * at as f32 } else { epsilon - delta * (steps - at) as f32 }
}

/// How many rows are due with `masks` left, and the share of them that this is.
pub(super) fn due(parameters: &SelectParameters, state: &RequestState, masks: usize) -> (usize, f32) {
    let (steps, step) = (parameters.steps, state.block_step);
    let time = |at| time(parameters.epsilon, steps, at);
    let between = |t: f32, s: f32| ((masks as f32 * (1.0 - s / t)) as usize, 1.0 - s / t);
    match parameters.schedule {
        schedule::EVEN => {
            let (each, rest) = (state.initial_masks / steps, state.initial_masks % steps);
            ((each + u32::from(step < rest)) as usize, 0.0)
        }
        schedule::TIME => between(time(step), time(step + 1)),
        schedule::SKIP => {
            let t = masks as f32 / state.initial_masks as f32;
            let mut at = (0..=steps).find(|&at| time(at) < t).unwrap_or(steps).max(step + 1);
            while between(t, time(at)).0 < 1 && time(at) > parameters.epsilon {
                at += 1;
            }
            let (count, share) = between(t, time(at));
            (if time(at) <= parameters.epsilon { masks } else { count }, share)
        }
        _ => (parameters.count as usize, 0.0),
    }
}
