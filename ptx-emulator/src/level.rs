//! Which vector instructions the machine has. Every lane loop is compiled once for each level and chosen at run time.

/// Proof that the machine has the vector instructions it names: only [`Level::detect`] makes the wider ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level(Width);

/// The levels that lane loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// What every machine has.
    pub(crate) const BASELINE: Level = Level(Width::Baseline);

    /// The widest level of this machine.
    pub(crate) fn detect() -> Level {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                let wide = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl");
                return Level(if wide { Width::Avx512 } else { Width::Avx2 });
            }
        }
        Level::BASELINE
    }

    pub(crate) fn width(self) -> Width {
        self.0
    }
}

/// Declares a function that runs `$body` compiled for the given level, or `$baseline` where there are no vector
/// instructions to count on. Both must be `#[inline(always)]`.
macro_rules! by_level {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $crate::level::by_level! { $(#[$doc])* fn $name($($arg: $ty),*) = $body, $body }
    };
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident, $baseline:ident) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        pub(crate) fn $name(level: $crate::level::Level, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) {
                    $body($($arg),*)
                }
                match level.width() {
                    $crate::level::Width::Baseline => $baseline($($arg),*),
                    // SAFETY: `Level::detect` makes this level only after it has seen avx2 and fma on this machine.
                    $crate::level::Width::Avx2 => unsafe { avx2($($arg),*) },
                    // SAFETY: `Level::detect` makes this level only after it has seen these features on this machine.
                    $crate::level::Width::Avx512 => unsafe { avx512($($arg),*) },
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let _ = level;
                $baseline($($arg),*)
            }
        }
    };
}
pub(crate) use by_level;
