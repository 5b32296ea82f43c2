//! A mistake in a text: a line changed.

/// A change of a line of a text.
pub(super) enum Change {
    /// The line is gone.
    Drop,
    /// The line comes after the next one.
    Later,
    /// The line comes after the next one that has this piece.
    Past(&'static str),
    /// Another line stands there.
    Rewrite(fn(&str) -> String),
    /// The first such piece of the line becomes another.
    Swap(&'static str, &'static str),
}
pub(super) use Change::{Drop, Later, Past, Rewrite, Swap};

/// A mistake: in the `nth` line that has `pattern`, after the line that has `section`.
pub(super) struct Mutation {
    pub(super) what: &'static str,
    pub(super) section: &'static str,
    pub(super) pattern: &'static str,
    pub(super) nth: usize,
    pub(super) change: Change,
}

impl Mutation {
    /// The mutated text, or why there is none.
    pub(super) fn apply(&self, text: &str) -> Result<String, String> {
        let mut lines: Vec<String> = text.lines().map(String::from).collect();
        let start = lines.iter().position(|line| line.contains(self.section)).ok_or("no such section")?;
        let found = (start..lines.len()).filter(|&i| lines[i].contains(self.pattern)).nth(self.nth);
        let at = found.ok_or("no such line")?;
        match self.change {
            Drop => drop(lines.remove(at)),
            Later => lines.swap(at, at + 1),
            Past(piece) => {
                let after = (at + 1..lines.len()).find(|&i| lines[i].contains(piece)).ok_or("no such line after it")?;
                lines[at..=after].rotate_left(1);
            }
            Rewrite(rewrite) => lines[at] = rewrite(&lines[at]),
            Swap(from, to) if lines[at].contains(from) => lines[at] = lines[at].replacen(from, to, 1),
            Swap(..) => return Err(format!("nothing to change in `{}`", lines[at].trim())),
        }
        let mutated = lines.join("\n") + "\n";
        if mutated == text { Err("the text stays the same".into()) } else { Ok(mutated) }
    }
}

pub(super) fn in_section(
    section: &'static str,
    what: &'static str,
    pattern: &'static str,
    nth: usize,
    change: Change,
) -> Mutation {
    Mutation { what, section, pattern, nth, change }
}

pub(super) fn mutation(what: &'static str, pattern: &'static str, nth: usize, change: Change) -> Mutation {
    in_section("{", what, pattern, nth, change)
}

/// `setp.xx %p, a, b` that never holds.
pub(super) fn never(line: &str) -> String {
    let operands: Vec<&str> = line.trim().trim_end_matches(';').split(", ").collect();
    let kind = line.trim().split(' ').next().unwrap().rsplit('.').next().unwrap();
    let target = operands[0].split(' ').nth(1).unwrap();
    format!("    setp.gt.{kind} {target}, {}, {};", operands[1], operands[1])
}

/// An instruction of two operands becomes a copy of the first.
pub(super) fn first_operand(line: &str) -> String {
    let operands: Vec<&str> = line.trim().trim_end_matches(';').split(", ").collect();
    let target = operands[0].split(' ').nth(1).unwrap();
    format!("    mov.f32 {target}, {};", operands[1])
}

/// What all lanes would have in common is each lane's own.
pub(super) fn own_value(line: &str) -> String {
    let operands: Vec<&str> = line.trim().split([' ', ',']).filter(|piece| !piece.is_empty()).collect();
    format!("    mov.b32 {}, {};", operands[1], operands[2])
}

/// The difference, or the quotient, of two integers becomes 0.
pub(super) fn no_shift(line: &str) -> String {
    let target = line.trim().split([' ', ',']).nth(1).unwrap();
    format!("    mov.b32 {target}, 0;")
}

/// The two registers of an `mma`'s right factor change places.
pub(super) fn exchange_right(line: &str) -> String {
    let groups: Vec<&str> = line.split('{').collect();
    let (pair, rest) = groups[3].split_once('}').unwrap();
    let (first, second) = pair.split_once(", ").unwrap();
    [groups[0], groups[1], groups[2], &format!("{second}, {first}}}{rest}"), groups[4]].join("{")
}

/// An atomic addition of nothing.
pub(super) fn counts_nothing(line: &str) -> String {
    let (before, _) = line.rsplit_once(", ").unwrap();
    format!("{before}, 0;")
}

/// `setp.xx %p, a, b` that always holds.
pub(super) fn always(line: &str) -> String {
    let line = never(line);
    line.replacen("setp.gt", "setp.ge", 1)
}

/// A wait on an mbarrier that is over at once.
pub(super) fn no_wait(line: &str) -> String {
    let predicate = line.trim().split([' ', ',']).nth(1).unwrap();
    let parity = line.split(", ").nth(2).unwrap();
    format!("    setp.eq.s32 {predicate}, {parity}, {parity};")
}

/// A bulk copy whose row and column are exchanged.
pub(super) fn exchange_coordinates(line: &str) -> String {
    let (before, rest) = line.rsplit_once('{').unwrap();
    let (first, rest) = rest.split_once(", ").unwrap();
    let (second, rest) = rest.split_once(", ").unwrap();
    format!("{before}{{{second}, {first}, {rest}")
}

/// `selp %r, a, b, %p` always takes b.
pub(super) fn second_choice(line: &str) -> String {
    let operands: Vec<&str> = line.trim().trim_end_matches(';').split(", ").collect();
    let target = operands[0].split(' ').nth(1).unwrap();
    format!("    mov.b32 {target}, {};", operands[2])
}

/// `selp %r, a, b, %p` always takes a.
pub(super) fn first_choice(line: &str) -> String {
    let operands: Vec<&str> = line.trim().split(", ").collect();
    let target = operands[0].split(' ').nth(1).unwrap();
    format!("    mov.b32 {target}, {};", operands[1])
}

/// The combination of two words becomes a 1.
pub(super) fn first_word(line: &str) -> String {
    let target = line.trim().split([' ', ',']).nth(1).unwrap();
    format!("    mov.b32 {target}, 1;")
}

/// A comparison takes what is equal too.
pub(super) fn at_most() -> Change {
    Swap("setp.lt", "setp.le")
}

/// A guarded instruction without its guard.
pub(super) fn unguarded(line: &str) -> String {
    line.trim().split_once(' ').map_or_else(String::new, |(_, rest)| format!("    {rest}"))
}

/// Sections that several kernels have.
pub(super) const FIRST: &str = "// the first tile";
pub(super) const OUTPUT: &str = "// output";
pub(super) const PART: &str = "// which rows, and which part of the keys";
pub(super) const STEPS: &str = "// steps";
pub(super) const WEIGHTS: &str = "// weights";
