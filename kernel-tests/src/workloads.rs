//! The standard benchmark cases: fixed index sets, shapes and budgets, so that figures can be compared.
//!
//! The speed of sparse attention depends on which indices it gets: with 1000 verticals and 6096 slashes at 128K tokens
//! the visited share of the matrix is 10 % if slashes are contiguous and 98 % if they are scattered evenly.

/// How slash offsets are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The nearest offsets.
    Contiguous,
    /// Half of them nearest, the rest in runs of 64: the default.
    Clustered,
    /// The 100 nearest and the rest evenly.
    Scattered,
}

/// Verticals and slashes that the published per-head files use.
pub const BUDGETS: [(usize, usize); 8] =
    [(1000, 6096), (3500, 100), (30, 800), (100, 800), (500, 700), (512, 2048), (1000, 4096), (100, 750)];

/// Key columns, ascending: the first 30 and the rest evenly. `verticals` is at least 30.
pub fn verticals(tokens: usize, verticals: usize) -> Vec<u32> {
    let spread = verticals - 30;
    (0..30).chain((0..spread).map(|j| 30 + j * (tokens - 30) / spread)).map(|c| c as u32).collect()
}

/// Slash offsets, ascending.
pub fn slashes(tokens: usize, slashes: usize, layout: Layout) -> Vec<u32> {
    let offsets: Vec<usize> = match layout {
        Layout::Contiguous => (0..slashes).collect(),
        Layout::Clustered => {
            let near = slashes / 2;
            let runs = (slashes - near) / 64;
            let start = |i: usize| near + (i + 1) * (tokens - near - 64) / (runs + 1);
            (0..near).chain((0..runs).flat_map(|i| start(i)..start(i) + 64)).collect()
        }
        Layout::Scattered => {
            let spread = slashes - 100;
            (0..100).chain((0..spread).map(|j| 100 + j * (tokens - 100) / spread)).collect()
        }
    };
    offsets.into_iter().map(|o| o as u32).collect()
}

/// Key blocks of row block `row` at density `density`: its diagonal block, block 0 and evenly spaced others, ascending.
pub fn blocks(row: usize, density: f64) -> Vec<u32> {
    let count = ((density * (row + 1) as f64).ceil() as usize).max(1);
    if count == 1 {
        return vec![row as u32];
    }
    (0..count).map(|i| (i * row / (count - 1)) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ascending(list: &[u32]) -> bool {
        list.windows(2).all(|w| w[0] < w[1])
    }

    #[test]
    fn index_sets_are_ascending_and_of_the_size_asked() {
        let tokens = 131_072;
        for (nv, ns) in BUDGETS {
            if nv > 30 {
                let columns = verticals(tokens, nv);
                assert_eq!(columns.len(), nv);
                assert!(ascending(&columns) && columns[nv - 1] < tokens as u32);
            }
            for layout in [Layout::Contiguous, Layout::Clustered, Layout::Scattered] {
                let offsets = slashes(tokens, ns, layout);
                assert!(ascending(&offsets) && offsets[0] == 0, "{layout:?} {ns}");
                assert!(offsets.len() <= ns && offsets.len() + 64 > ns);
            }
        }
    }

    #[test]
    fn block_rows_keep_their_diagonal_and_the_sink() {
        for row in 0..200 {
            for density in [0.01, 0.125, 0.5, 1.0] {
                let list = blocks(row, density);
                assert!(ascending(&list) && list.last() == Some(&(row as u32)));
                assert!(list.len() == 1 || list[0] == 0);
            }
        }
        assert_eq!(blocks(7, 1.0), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
