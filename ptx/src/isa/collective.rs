//! Warp collectives: every lane of the warp takes part.

use super::{B32, Builder, Class, F32, Operand, R32, RP, Reg, Source};

/// What a shuffle moves.
pub trait Shuffled: Class {}
impl Shuffled for B32 {}
impl Shuffled for F32 {}

const ALL: &str = "-1";

impl Builder {
    /// The value of lane `own lane ^ mask`.
    pub fn shuffle_xor<C: Shuffled>(&mut self, a: Reg<C>, mask: u32) -> Reg<C> {
        self.shuffle("bfly", a, Operand::Text(mask.to_string()), "31")
    }

    /// The value of lane `source`.
    pub fn shuffle_from<C: Shuffled>(&mut self, a: Reg<C>, source: impl Into<Source<B32>>) -> Reg<C> {
        self.shuffle("idx", a, source.into().operand, "31")
    }

    /// The value of lane `own lane - delta`; lanes below `delta` keep their own.
    pub fn shuffle_up<C: Shuffled>(&mut self, a: Reg<C>, delta: u32) -> Reg<C> {
        self.shuffle("up", a, Operand::Text(delta.to_string()), "0")
    }

    fn shuffle<C: Shuffled>(&mut self, mode: &str, a: Reg<C>, lane: Operand, clamp: &str) -> Reg<C> {
        self.op(
            format!("shfl.sync.{mode}.b32"),
            [a.into(), lane, Operand::Text(clamp.into()), Operand::Text(ALL.into())],
        )
    }

    /// One bit a lane: where `a` holds.
    pub fn ballot(&mut self, a: RP) -> R32 {
        self.op("vote.sync.ballot.b32", [a.into(), Operand::Text(ALL.into())])
    }

    /// Whether `a` holds in some lane.
    pub fn any(&mut self, a: RP) -> RP {
        self.op("vote.sync.any.pred", [a.into(), Operand::Text(ALL.into())])
    }

    /// Whether `a` holds in all lanes.
    pub fn all(&mut self, a: RP) -> RP {
        self.op("vote.sync.all.pred", [a.into(), Operand::Text(ALL.into())])
    }

    /// Holds in one lane of the warp, always the same, and lets `ptxas` know that it is one (sm_90).
    pub fn elect(&mut self) -> RP {
        let elected = self.fresh();
        let pair = Operand::Pair(Box::new(Operand::Text("_".into())), Box::new(elected.into()));
        self.emit("elect.sync", vec![pair, Operand::Text(ALL.into())]);
        elected
    }

    /// The sum over the warp, wrapping.
    pub fn warp_sum(&mut self, a: R32) -> R32 {
        self.op("redux.sync.add.u32", [a.into(), Operand::Text(ALL.into())])
    }

    /// The unsigned maximum over the warp.
    pub fn warp_max_u(&mut self, a: R32) -> R32 {
        self.op("redux.sync.max.u32", [a.into(), Operand::Text(ALL.into())])
    }

    /// The unsigned minimum over the warp.
    pub fn warp_min_u(&mut self, a: R32) -> R32 {
        self.op("redux.sync.min.u32", [a.into(), Operand::Text(ALL.into())])
    }
}
