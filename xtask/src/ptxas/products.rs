//! What became of the products of warpgroups (`wgmma`), read from the disassembly.
//!
//! `ptxas` may serialise them, or move a wait up before the work that should hide under them, and says so at best as
//! information. In the code of a good attention kernel there are few waits for many products, and between the wait that
//! leaves the sum of the last tile under way and the wait for that sum stand all powers of two of a tile's softmax.

use std::fmt;
use std::path::Path;
use std::process::Command;

use crate::Result;

/// A serialised kernel waits for each product.
const MOST_WAITS: usize = 6;
/// Heads of 64 and tiles of 128 keys give 24.
const FEWEST_PRODUCTS: usize = 16;

/// The instructions that tell, one a line, in the order of the code.
pub(super) fn disassemble(disassembler: &Path, cubin: &Path) -> Result<String> {
    let output = Command::new(disassembler).arg("-c").arg(cubin).output();
    let output = output.map_err(|error| format!("{}: {error}", disassembler.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {} ({})", disassembler.display(), said.trim_end(), output.status).into());
    }
    let listing = String::from_utf8_lossy(&output.stdout);
    Ok(listing.lines().filter(|line| Instruction::read(line).is_some()).map(|line| format!("{line}\n")).collect())
}

#[derive(Debug, PartialEq)]
enum Instruction {
    /// A product of so many columns.
    Product(u32),
    Arrival,
    /// Until at most so many groups of products are under way.
    Wait(u32),
    PowerOfTwo,
}

impl Instruction {
    fn read(line: &str) -> Option<Self> {
        let after = |mark: &str| line.split_once(mark).map(|(_, after)| after);
        let number = |text: &str| text.split(|digit: char| !digit.is_ascii_digit()).next()?.parse().ok();
        if let Some(shape) = after("HGMMA.64x") {
            return number(shape).map(Self::Product);
        }
        if let Some(pending) = after("WARPGROUP.DEPBAR.LE gsb0, 0x") {
            return number(pending).map(Self::Wait);
        }
        if line.contains("WARPGROUP.ARRIVE") {
            return Some(Self::Arrival);
        }
        line.contains("MUFU.EX2").then_some(Self::PowerOfTwo)
    }
}

/// The products of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Products {
    pub(super) products: usize,
    arrivals: usize,
    pub(super) waits: usize,
    /// Columns of the first product, which is that of queries and keys: the keys of a tile.
    keys: u32,
    /// Powers of two between the wait that leaves one group under way and the one that leaves none.
    pub(super) hidden: Option<usize>,
}

impl Products {
    /// Counts what [`disassemble`] gives.
    pub(super) fn count(instructions: &str) -> Self {
        let mut counts = Self::default();
        // Powers of two since a wait that left one group under way.
        let mut hiding = None;
        for instruction in instructions.lines().filter_map(Instruction::read) {
            match instruction {
                Instruction::Product(columns) => {
                    counts.products += 1;
                    if counts.keys == 0 {
                        counts.keys = columns;
                    }
                }
                Instruction::Arrival => counts.arrivals += 1,
                Instruction::Wait(pending) => {
                    counts.waits += 1;
                    if let Some(powers) = hiding.take() {
                        counts.hidden = Some(counts.hidden.map_or(powers, |least: usize| least.min(powers)));
                    }
                    hiding = (pending > 0).then_some(0);
                }
                Instruction::PowerOfTwo => hiding = hiding.map(|powers| powers + 1),
            }
        }
        counts
    }

    /// What is wrong with these products, if they are those of one loop: there are none, or they wait for each other.
    pub(super) fn serialised(self) -> Option<String> {
        let Self { products, waits, .. } = self;
        (2 * waits > products || products == 0)
            .then(|| format!("waits {waits} times (WARPGROUP.DEPBAR) for {products} HGMMA: products are serialised"))
    }

    /// What is wrong with these products, if they are an attention kernel's.
    pub(super) fn problem(self) -> Option<String> {
        // 64 rows a warpgroup of 128 threads.
        let tile = self.keys as usize / 2;
        if self.products < FEWEST_PRODUCTS {
            Some(format!("has {} HGMMA instructions, expected at least {FEWEST_PRODUCTS}", self.products))
        } else if self.waits > MOST_WAITS {
            let (waits, products) = (self.waits, self.products);
            Some(format!("waits {waits} times (WARPGROUP.DEPBAR) for {products} HGMMA: products are serialised"))
        } else if self.hidden.is_none_or(|hidden| hidden < tile) {
            let hidden = self.hidden.unwrap_or(0);
            Some(format!("hides {hidden} of a tile's {tile} powers of two (MUFU.EX2) under products: a wait has moved"))
        } else {
            None
        }
    }
}

impl fmt::Display for Products {
    /// Products, arrivals, waits and hidden powers of two.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { products, arrivals, waits, hidden, .. } = *self;
        write!(f, "{products:>5}  {arrivals:>7}  {waits:>5}  {:>6}", hidden.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCT: &str = "        /*2e90*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR16], RZ, !UPT ;";
    const ARRIVAL: &str = "        /*2e30*/                   WARPGROUP.ARRIVE ;";
    const ONE_LEFT: &str = "        /*5110*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;";
    const NONE_LEFT: &str = "        /*6c00*/              @!PT WARPGROUP.DEPBAR.LE gsb0, 0x0 ;";
    const POWER: &str = "        /*3d30*/              @!P0 MUFU.EX2 R23, R53 ;";

    #[test]
    fn instructions_are_read_and_others_left_out() {
        for (line, expected) in [
            (PRODUCT, Some(Instruction::Product(128))),
            (ARRIVAL, Some(Instruction::Arrival)),
            (ONE_LEFT, Some(Instruction::Wait(1))),
            (NONE_LEFT, Some(Instruction::Wait(0))),
            (POWER, Some(Instruction::PowerOfTwo)),
            ("        /*0030*/                   MUFU.RCP R5, R4 ;", None),
            ("        /*0040*/                   WARPGROUPSET.ALL ;", None),
            (".L_x_40:", None),
        ] {
            assert_eq!(Instruction::read(line), expected, "{line}");
        }
    }

    /// A kernel: a first tile, and a loop in which `early` powers of two stand before the wait that leaves a group under
    /// way, `hidden` before the last wait and `late` after it.
    fn kernel(early: usize, hidden: usize, late: usize) -> String {
        let many = |line, count| vec![line; count];
        let powers = |count| many(POWER, count);
        let first = [vec![ARRIVAL], many(PRODUCT, 8), vec![NONE_LEFT], powers(64)].concat();
        let begin = [vec![ARRIVAL], many(PRODUCT, 8), vec![ARRIVAL], many(PRODUCT, 8)].concat();
        let end = [powers(early), vec![ONE_LEFT], powers(hidden), vec![NONE_LEFT], powers(late)].concat();
        [first, begin, end].concat().join("\n")
    }

    #[test]
    fn a_tile_of_powers_between_the_waits_is_good() {
        let counts = Products::count(&kernel(0, 64, 2));
        assert_eq!(counts, Products { products: 24, arrivals: 3, waits: 3, keys: 128, hidden: Some(64) });
        assert_eq!(counts.problem(), None);
        assert_eq!(counts.to_string(), "   24        3      3      64");
    }

    #[test]
    fn a_wait_that_moved_is_found() {
        for (early, hidden, late) in [(0, 0, 64), (0, 63, 1), (64, 0, 0)] {
            let problem = Products::count(&kernel(early, hidden, late)).problem();
            let expected = format!("hides {hidden} of a tile's 64 powers of two");
            assert!(problem.as_ref().is_some_and(|problem| problem.starts_with(&expected)), "{problem:?}");
        }
        // Of two loops the worse one counts.
        let two = [kernel(0, 64, 0), kernel(0, 10, 54)].join("\n");
        assert!(Products::count(&two).problem().is_some_and(|problem| problem.starts_with("hides 10 ")));
        // No wait leaves anything under way.
        let none = kernel(0, 64, 0).replace(ONE_LEFT, NONE_LEFT);
        assert!(Products::count(&none).problem().is_some_and(|problem| problem.starts_with("hides 0 ")));
    }

    #[test]
    fn serialised_products_are_found() {
        let serialised = kernel(0, 64, 0).replace(PRODUCT, &[ARRIVAL, PRODUCT, NONE_LEFT].join("\n"));
        for problem in [Products::count(&serialised).problem(), Products::count(&serialised).serialised()] {
            assert!(problem.as_ref().is_some_and(|problem| problem.contains("serialised")), "{problem:?}");
        }
        assert_eq!(Products::count(&kernel(0, 0, 0)).serialised(), None);
        assert!(Products::count(POWER).serialised().is_some());
        assert!(Products::count(POWER).problem().is_some_and(|problem| problem.starts_with("has 0 HGMMA")));
    }
}
