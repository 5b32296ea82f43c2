//! Which rows a step takes.

use half::bf16;
use ptx::kernels::sampling::{SelectParameters, rule, schedule, score, select_flags};

/// In which order a rule takes rows that no threshold decides about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// The surest first, of equals the lowest position (`maskgit_plus`, `topk_margin`, `entropy`: the request's confidence
    /// says which).
    Surest,
    /// By a draw without replacement from the softmax of confidence over this temperature, as Gumbel noise on the
    /// confidences (`alg_temp`).
    Noisy(f32),
    /// At random.
    Random,
    /// Each row by itself, with the probability that the schedule gives (`origin` of Dream, `origin-ratio` of Dimple).
    Chance,
    /// From left to right; by a schedule of time, one a step (`autoregressive`).
    LeftToRight,
}

/// Which rows a step takes. At the last step of a block all that are left, under every rule; ties go to the lowest position.
///
/// A threshold compares with the request's confidence, which is a probability or a difference of two unless the request
/// calls the entropy so; a confidence of entropy never passes one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Those above a confidence, and at least the surest (Dimple, arXiv 2505.16990, algorithm 1; Fast-dLLM v2).
    Threshold(f32),
    /// Dimple's decoder (`decoding_pipeline="dim"`): those above `threshold`; if there are none, by `order` as many as the
    /// schedule of [`Rule::Dream`] has due, counted from the share of masks that is left, and at least one. `origin` is
    /// [`Order::Random`] here.
    Dimple {
        /// Confidence to exceed (`alg_p_threshold`).
        threshold: f32,
        /// Order of the fallback (`alg`).
        order: Order,
        /// Last time of the schedule (`eps`).
        epsilon: f32,
    },
    /// Dream's decoder (arXiv 2508.15487), Dimple's `decoding_pipeline="dream"`: times fall evenly from 1 to `epsilon`, and of
    /// n masks ⌊n (1 − s/t)⌋ go between t and s. The first step may take none.
    Dream {
        /// Which go (`alg`, `alg_temp`).
        order: Order,
        /// Last time of the schedule (`eps`).
        epsilon: f32,
    },
    /// LLaDA's decoder (arXiv 2502.09992, §2.4): as many at each step of a block, by `order`: [`Order::Surest`] for
    /// `low_confidence`, [`Order::Random`] for `random` remasking. SDAR's `low_confidence_static`, and with
    /// [`Order::LeftToRight`] its `sequential`.
    Llada {
        /// Which go.
        order: Order,
    },
    /// Those of at least this confidence, and the surest (Fast-dLLM, arXiv 2505.22618, §3.3; LMDeploy's dynamic unmasking).
    FastThreshold(f32),
    /// The surest, and each next one, the m-th, while its confidence is at least 1 − f / (m + 1) (Fast-dLLM, theorem 1), as its
    /// code counts: the last row of all goes with those before it.
    FastFactor(f32),
    /// Fast-dLLM's budget for Dream (`confidence_threshold`): of as many as [`Rule::Llada`] takes and what earlier steps
    /// left, the surest and those of at least this confidence.
    FastBudget(f32),
    /// Those of at least this confidence, or as good as the surest to 10⁻⁵; a row that draws the mask token is never taken
    /// (dInfer, arXiv 2510.08666).
    DInferThreshold(f32),
    /// Those above `threshold`, the surest of each run of adjacent masks if above `low`, and at least the surest (dInfer's
    /// hierarchical decoding).
    Hierarchy {
        /// Confidence to exceed.
        threshold: f32,
        /// Confidence that the surest of a run has to exceed.
        low: f32,
    },
    /// The same with second thoughts: decoded tokens that have fallen below `remask` count as masks. One more than there are
    /// of those is taken at least, and those that are not taken are masked again.
    HierarchyRemask {
        /// Confidence to exceed.
        threshold: f32,
        /// Confidence that the surest of a run has to exceed.
        low: f32,
        /// Confidence to keep.
        remask: f32,
    },
    /// Those above this confidence if they are at least as many as [`Rule::Llada`] would take, else those (SDAR's
    /// `low_confidence_dynamic`, LLaDA2).
    Dynamic(f32),
    /// The rows of least entropy, as many as have better ones of at most this many nats in all (entropy-bounded sampling,
    /// arXiv 2505.24857, as SGLang counts).
    EntropyBounded(f32),
    /// Those of less entropy than this, in nats, and at least the one of least (D2F, d3LLM).
    EntropyThreshold(f32),
    /// Those above `threshold`, and at least `count`; and decoded tokens are exchanged for others above `edit` (LLaDA2.1's
    /// joint decoding).
    Joint {
        /// Confidence to exceed.
        threshold: f32,
        /// Rows a step at least.
        count: u32,
        /// Confidence that a different token needs to replace a decoded one.
        edit: f32,
        /// Steps a block that may only edit, once no mask is left; the first that edits nothing is the last.
        post_steps: u32,
    },
    /// One at random (BD3-LM's first-hitting sampler, arXiv 2503.09573).
    FirstHitting,
}

impl Rule {
    /// Dimple's confident decoding with its published settings: `maskgit_plus` where no confidence passes, `eps` 10⁻³.
    pub fn dimple(threshold: f32) -> Rule {
        Rule::Dimple { threshold, order: Order::Surest, epsilon: 1e-3 }
    }

    /// Dream's `origin`, its default, with `eps` 10⁻³.
    pub fn dream_origin() -> Rule {
        Rule::Dream { order: Order::Chance, epsilon: 1e-3 }
    }

    /// Dream's `maskgit_plus`, `topk_margin` or `entropy`, by the request's confidence, with `eps` 10⁻³.
    pub fn dream() -> Rule {
        Rule::Dream { order: Order::Surest, epsilon: 1e-3 }
    }

    /// LLaDA's low-confidence remasking.
    pub fn llada() -> Rule {
        Rule::Llada { order: Order::Surest }
    }

    /// dInfer's hierarchical decoding with its published lower threshold.
    pub fn hierarchy(threshold: f32) -> Rule {
        Rule::Hierarchy { threshold, low: 0.4 }
    }

    /// LLaDA2.1 in its mode for quality.
    pub fn joint_quality() -> Rule {
        Rule::Joint { threshold: 0.7, count: 1, edit: 0.5, post_steps: 16 }
    }

    /// LLaDA2.1 in its mode for speed.
    pub fn joint_speed() -> Rule {
        Rule::Joint { threshold: 0.5, count: 1, edit: 0.0, post_steps: 16 }
    }

    /// Whether it goes by the entropy of the raw logits, whatever is called confidence.
    pub(super) fn reads_entropy(&self) -> bool {
        matches!(self, Rule::EntropyBounded(_) | Rule::EntropyThreshold(_))
    }

    /// Whether decoded rows are listed too.
    pub fn revises(&self) -> bool {
        matches!(self, Rule::HierarchyRemask { .. } | Rule::Joint { .. })
    }

    /// What is wrong with it, if anything.
    pub(super) fn check(&self) -> Result<(), String> {
        let order = |order: Order| match order {
            Order::Noisy(noise) if !(noise.is_finite() && noise > 0.0) => {
                Err(format!("the order's noise is {noise}; it must be finite and above 0"))
            }
            _ => Ok(()),
        };
        let amount = |name: &str, amount: f32| {
            let fine = amount.is_finite() && amount >= 0.0;
            if fine { Ok(()) } else { Err(format!("{name} is {amount}; it must be finite and not negative")) }
        };
        match *self {
            Rule::Threshold(threshold)
            | Rule::FastThreshold(threshold)
            | Rule::FastBudget(threshold)
            | Rule::DInferThreshold(threshold)
            | Rule::Dynamic(threshold) => share("the threshold", threshold),
            Rule::Dimple { threshold, order: by, epsilon } => {
                share("the threshold", threshold).and(share("epsilon", epsilon)).and(order(by))
            }
            Rule::Dream { order: by, epsilon } => share("epsilon", epsilon).and(order(by)),
            Rule::Llada { order: Order::Chance } => {
                Err("an even schedule has no probabilities; take another order than Chance".into())
            }
            Rule::Llada { order: by } => order(by),
            Rule::FastFactor(factor) => amount("the factor", factor),
            Rule::Hierarchy { threshold, low } => share("the threshold", threshold).and(share("low", low)),
            Rule::HierarchyRemask { threshold, low, remask } => {
                share("the threshold", threshold).and(share("low", low)).and(share("remask", remask))
            }
            Rule::EntropyBounded(nats) => amount("the budget", nats),
            Rule::EntropyThreshold(nats) => amount("the threshold", nats),
            Rule::Joint { threshold, edit, .. } => share("the threshold", threshold).and(share("edit", edit)),
            Rule::FirstHitting => Ok(()),
        }
    }

    /// Writes the rule's part of a request's record.
    pub(super) fn describe(&self, parameters: &mut SelectParameters) {
        let p = parameters;
        // At least the surest.
        (p.schedule, p.count) = (schedule::FIXED, 1);
        let mut order = Order::Surest;
        match *self {
            Rule::Threshold(threshold) => (p.rule, p.threshold) = (rule::THRESHOLD, threshold),
            Rule::Dimple { threshold, order: by, epsilon } => {
                (p.rule, p.schedule) = (rule::THRESHOLD, schedule::SKIP);
                (p.threshold, p.epsilon, order) = (threshold, epsilon, by);
                // A threshold of 0 means none.
                if threshold == 0.0 {
                    p.rule = rule::TOP_K;
                }
            }
            Rule::Dream { order: by, epsilon } => {
                (p.rule, p.schedule, p.epsilon, order) = (rule::TOP_K, schedule::TIME, epsilon, by);
            }
            Rule::Llada { order: by } => (p.rule, p.schedule, order) = (rule::TOP_K, schedule::EVEN, by),
            Rule::FastThreshold(threshold) => {
                (p.rule, p.threshold) = (rule::THRESHOLD, threshold);
                p.flags |= select_flags::INCLUSIVE;
            }
            Rule::FastFactor(factor) => (p.rule, p.threshold) = (rule::FACTOR, factor),
            Rule::FastBudget(threshold) => {
                (p.rule, p.schedule, p.threshold) = (rule::BUDGET, schedule::EVEN, threshold);
                p.flags |= select_flags::INCLUSIVE;
            }
            Rule::DInferThreshold(threshold) => {
                (p.rule, p.threshold) = (rule::NEAR_BEST, threshold);
                p.flags |= select_flags::EXCLUDE_MASK;
            }
            Rule::Hierarchy { threshold, low } => {
                (p.rule, p.threshold, p.low) = (rule::HIERARCHY, threshold, low);
            }
            Rule::HierarchyRemask { threshold, low, remask } => {
                (p.rule, p.threshold, p.low, p.revision) = (rule::HIERARCHY, threshold, low, remask);
                p.flags |= select_flags::REMASK;
            }
            Rule::Dynamic(threshold) => {
                (p.rule, p.schedule, p.threshold) = (rule::DYNAMIC, schedule::EVEN, threshold);
            }
            Rule::EntropyBounded(nats) => {
                (p.rule, p.threshold, p.score) = (rule::ENTROPY_BUDGET, nats, score::ENTROPY);
            }
            Rule::EntropyThreshold(nats) => {
                (p.rule, p.threshold, p.score) = (rule::THRESHOLD, -nats, score::ENTROPY);
            }
            Rule::Joint { threshold, count, edit, post_steps } => {
                (p.rule, p.threshold, p.count) = (rule::DYNAMIC, threshold, count);
                (p.revision, p.post_steps) = (edit, post_steps);
                p.flags |= select_flags::EDIT;
            }
            Rule::FirstHitting => (p.rule, order) = (rule::TOP_K, Order::Random),
        }
        match order {
            Order::Surest => {}
            Order::Noisy(noise) => (p.score, p.noise) = (score::NOISY, noise),
            Order::Random => p.score = score::RANDOM,
            Order::Chance => p.flags |= select_flags::BERNOULLI,
            Order::LeftToRight => {
                p.score = score::FIRST;
                // Autoregressive decoding knows no time.
                if p.schedule != schedule::EVEN {
                    (p.schedule, p.count) = (schedule::FIXED, 1);
                }
            }
        }
    }
}

fn share(name: &str, value: f32) -> Result<(), String> {
    if (0.0..=1.0).contains(&value) { Ok(()) } else { Err(format!("{name} is {value}; it must be from 0 to 1")) }
}

/// Thresholds as bfloat16 compares them.
pub(super) fn round_thresholds(parameters: &mut SelectParameters) {
    for threshold in [&mut parameters.threshold, &mut parameters.low, &mut parameters.revision] {
        *threshold = bf16::from_f32(*threshold).to_f32();
    }
}
