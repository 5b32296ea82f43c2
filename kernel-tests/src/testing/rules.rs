//! A request for every rule, order and option of the selection kernel.

use kernel_core::sampling::{Draw, Ending, EndingTime, Order, Request, Rule};

/// Requests by name, over positions that are the caller's to choose. Confidences are expected to be multiples of 1/5, tokens
/// to be below 50.
pub fn rules(mask_token: u32) -> Vec<(&'static str, Request)> {
    let epsilon = 1e-3;
    let orders = [Order::Surest, Order::Noisy(0.4), Order::Random, Order::Chance, Order::LeftToRight];
    let request = |steps, rule| Request {
        steps,
        rule,
        draw: Draw { seed: 0x1234_5678_9ABC, stream: 3, ..Draw::greedy() },
        ..Request::greedy(0, 0..0, 0, mask_token, 0.0)
    };
    let ending = |when| Some(Ending { tokens: vec![5, 17], fill: 49, when });
    let mut list = vec![
        ("threshold", request(9, Rule::Threshold(0.8))),
        ("threshold at least", request(9, Rule::FastThreshold(0.8))),
        ("factor", request(20, Rule::FastFactor(5.0))),
        ("small factor", request(20, Rule::FastFactor(0.9))),
        ("budget", request(6, Rule::FastBudget(0.8))),
        ("small budget", request(24, Rule::FastBudget(0.8))),
        ("near the best", request(20, Rule::DInferThreshold(0.7))),
        ("hierarchy", request(20, Rule::hierarchy(0.9))),
        ("hierarchy that masks again", request(12, Rule::HierarchyRemask { threshold: 0.9, low: 0.5, remask: 0.3 })),
        ("dynamic", request(6, Rule::Dynamic(0.8))),
        ("sequential", request(6, Rule::Llada { order: Order::LeftToRight })),
        ("even", request(7, Rule::llada())),
        ("even, at random", request(7, Rule::Llada { order: Order::Random })),
        ("even, with noise", request(7, Rule::Llada { order: Order::Noisy(1.0) })),
        ("entropy-bounded", request(20, Rule::EntropyBounded(0.15))),
        ("without entropy", request(20, Rule::EntropyBounded(0.0))),
        ("entropy below", request(20, Rule::EntropyThreshold(0.1))),
        ("joint", request(8, Rule::Joint { threshold: 0.7, count: 2, edit: 0.5, post_steps: 3 })),
        ("joint that never rests", request(4, Rule::Joint { threshold: 0.5, count: 1, edit: 0.0, post_steps: 5 })),
        ("first hitting", request(20, Rule::FirstHitting)),
        ("one step", request(1, Rule::Threshold(1.0))),
        ("without the mask token", Request { exclude_mask: true, ..request(9, Rule::Threshold(0.5)) }),
        ("rounded", Request { round_to_bf16: true, ..request(9, Rule::FastThreshold(0.8)) }),
        (
            "ends after a step",
            Request { ending: ending(EndingTime::EveryStep), ..request(20, Rule::Llada { order: Order::LeftToRight }) },
        ),
        ("ends after a block", Request { ending: ending(EndingTime::EndOfBlock), ..request(5, Rule::dimple(0.7)) }),
        (
            "edited and ended",
            Request {
                ending: ending(EndingTime::EveryStep),
                ..request(6, Rule::Joint { threshold: 0.7, count: 3, edit: 0.7, post_steps: 2 })
            },
        ),
    ];
    list.extend(orders.map(|order| ("dream", request(8, Rule::Dream { order, epsilon }))));
    list.extend(orders.map(|order| ("dimple", request(12, Rule::Dimple { threshold: 0.9, order, epsilon }))));
    list.extend(
        orders.map(|order| ("dimple without threshold", request(12, Rule::Dimple { threshold: 0.0, order, epsilon }))),
    );
    list
}
