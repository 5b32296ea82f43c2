//! Comparisons, selection and predicate logic.

use super::{Builder, Class, F32, Int, RF, RP, Reg, Source};

macro_rules! compare_int {
    ($($(#[$doc:meta])* $method:ident $relation:literal $suffix:ident;)*) => {
        impl Builder {$(
            $(#[$doc])*
            pub fn $method<C: Int>(&mut self, a: Reg<C>, b: impl Into<Source<C>>) -> RP {
                self.op(format!(concat!("setp.", $relation, ".{}"), C::$suffix), [a.into(), b.into().operand])
            }
        )*}
    };
}

compare_int! {
    /// `a == b`.
    eq "eq" SIGNED;
    /// `a != b`.
    ne "ne" SIGNED;
    /// `a < b`, unsigned.
    lt_u "lt" UNSIGNED;
    /// `a <= b`, unsigned.
    le_u "le" UNSIGNED;
    /// `a > b`, unsigned.
    gt_u "gt" UNSIGNED;
    /// `a >= b`, unsigned.
    ge_u "ge" UNSIGNED;
    /// `a < b`, signed.
    lt_s "lt" SIGNED;
    /// `a <= b`, signed.
    le_s "le" SIGNED;
    /// `a > b`, signed.
    gt_s "gt" SIGNED;
    /// `a >= b`, signed.
    ge_s "ge" SIGNED;
}

macro_rules! compare_float {
    ($($(#[$doc:meta])* $method:ident $relation:literal;)*) => {
        impl Builder {$(
            $(#[$doc])*
            pub fn $method(&mut self, a: RF, b: impl Into<Source<F32>>) -> RP {
                self.op(concat!("setp.", $relation, ".f32"), [a.into(), b.into().operand])
            }
        )*}
    };
}

compare_float! {
    /// `a == b`; false if either is NaN.
    eq_f "eq";
    /// `a != b`; true if either is NaN.
    ne_f "neu";
    /// `a < b`; false if either is NaN.
    lt_f "lt";
    /// `a <= b`; false if either is NaN.
    le_f "le";
    /// `a > b`; false if either is NaN.
    gt_f "gt";
    /// `a >= b`; false if either is NaN.
    ge_f "ge";
}

impl Builder {
    /// `condition ? yes : no`.
    pub fn select<C: Class>(&mut self, condition: RP, yes: impl Into<Source<C>>, no: impl Into<Source<C>>) -> Reg<C> {
        self.op(format!("selp.{}", C::BITS), [yes.into().operand, no.into().operand, condition.into()])
    }

    /// `a && b`.
    pub fn and_p(&mut self, a: RP, b: RP) -> RP {
        self.op("and.pred", [a.into(), b.into()])
    }

    /// `a || b`.
    pub fn or_p(&mut self, a: RP, b: RP) -> RP {
        self.op("or.pred", [a.into(), b.into()])
    }

    /// `a != b`.
    pub fn xor_p(&mut self, a: RP, b: RP) -> RP {
        self.op("xor.pred", [a.into(), b.into()])
    }

    /// `!a`.
    pub fn not_p(&mut self, a: RP) -> RP {
        self.op("not.pred", [a.into()])
    }
}
