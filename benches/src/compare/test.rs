//! The tests that tell a change from noise.

use crate::stats::{Dice, median};

/// Number of ways, out of all orders of `n` and `m` values, in which the first sample exceeds the second `u` times, for each `u`.
fn ways(n: usize, m: usize) -> Vec<f64> {
    // Counts of `u` for growing n: either the largest value is of the first sample (and beats all m), or of the second.
    let mut table = vec![vec![Vec::new(); m + 1]; n + 1];
    for i in 0..=n {
        for j in 0..=m {
            let mut row = vec![0.0; i * j + 1];
            if i == 0 || j == 0 {
                row[0] = 1.0;
            } else {
                for (u, way) in table[i - 1][j].iter().enumerate() {
                    row[u + j] += way;
                }
                for (u, way) in table[i][j - 1].iter().enumerate() {
                    row[u] += way;
                }
            }
            table[i][j] = row;
        }
    }
    std::mem::take(&mut table[n][m])
}

/// More rounds than this are thinned evenly: the exact table grows with the fourth power.
const MOST: usize = 40;

fn thinned(values: &[f64]) -> Vec<f64> {
    let n = values.len().min(MOST);
    (0..n).map(|i| values[i * values.len() / n]).collect()
}

/// The two-sided p of the exact test of Mann and Whitney. Ties count half, and what remains of a half goes to "no difference".
pub(super) fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (thinned(a), thinned(b));
    if a.is_empty() || b.is_empty() {
        return 1.0;
    }
    let wins = |x: &f64, y: &f64| if x > y { 1.0 } else { f64::from(u8::from(x == y)) / 2.0 };
    let u: f64 = a.iter().map(|x| b.iter().map(|y| wins(x, y)).sum::<f64>()).sum();
    let extreme = u.min((a.len() * b.len()) as f64 - u).ceil() as usize;
    let ways = ways(a.len(), b.len());
    let tail: f64 = ways[..=extreme.min(ways.len() - 1)].iter().sum();
    (2.0 * tail / ways.iter().sum::<f64>()).min(1.0)
}

/// The least p that so many values can show: all of one above all of the other.
pub(super) fn smallest_p(n: usize, m: usize) -> f64 {
    let (n, m) = (n.min(MOST), m.min(MOST));
    let orders: f64 = (1..=n).map(|i| (m + i) as f64 / i as f64).product();
    (2.0 / orders).min(1.0)
}

/// Holm's correction: the p of each comparison such that any below alpha is a false alarm with at most chance alpha in all.
pub(super) fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let (mut corrected, mut least) = (vec![1.0; p.len()], 0.0_f64);
    for (rank, &i) in order.iter().enumerate() {
        least = least.max(p[i] * (p.len() - rank) as f64).min(1.0);
        corrected[i] = least;
    }
    corrected
}

const RESAMPLINGS: usize = 2000;

/// 95 % bootstrap interval of the ratio of medians, of logarithms; with a fixed seed.
pub(super) fn ratio_interval(old: &[f64], new: &[f64]) -> (f64, f64) {
    let mut dice = Dice::new(1);
    let mut drawn = |values: &[f64]| {
        let sample: Vec<f64> = values.iter().map(|_| values[dice.index(values.len())]).collect();
        median(&sample)
    };
    let mut ratios: Vec<f64> = (0..RESAMPLINGS).map(|_| (drawn(new) - drawn(old)).exp()).collect();
    ratios.sort_by(f64::total_cmp);
    (ratios[RESAMPLINGS * 25 / 1000], ratios[RESAMPLINGS * 975 / 1000])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_values_are_those_of_the_tables() {
        let (low, high) = ([1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]);
        assert!((mann_whitney(&low, &high) - 2.0 / 252.0).abs() < 1e-12);
        assert!((smallest_p(5, 5) - 2.0 / 252.0).abs() < 1e-12);
        assert!((smallest_p(3, 3) - 0.1).abs() < 1e-12);
        // U = 1 of 3 by 3: two orders of twenty on either side.
        assert!((mann_whitney(&[1.0, 2.0, 4.0], &[3.0, 5.0, 6.0]) - 0.2).abs() < 1e-12);
        assert_eq!(mann_whitney(&[1.0; 9], &[1.0; 9]), 1.0);
        assert_eq!((mann_whitney(&[], &[1.0]), smallest_p(1, 1)), (1.0, 1.0));
    }

    #[test]
    fn holm_multiplies_the_least_most() {
        let close = |a: &[f64], b: &[f64]| assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?}");
        close(&holm(&[0.01, 0.04, 0.03]), &[0.03, 0.06, 0.06]);
        close(&holm(&[0.9, 0.9]), &[1.0, 1.0]);
    }
}
