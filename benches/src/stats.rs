//! Medians, their uncertainty, and reproducible chance.

/// The median; 0 of nothing.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Chance that comes out the same for the same seed: for resampling and for tests, not for secrets.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Any seed will do.
    #[must_use]
    pub fn new(seed: u64) -> Dice {
        // Spread, so that seeds next to each other have nothing in common; xorshift must not start at 0.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Dice((z ^ (z >> 31)).max(1))
    }

    /// xorshift64*.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 up to, but not including 1.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// An index below `n`, which must not be 0.
    pub fn index(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// Of the normal distribution with mean 0 and deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// Resamplings of [`interval`].
const ROUNDS: usize = 2000;

/// The 95 % bootstrap interval of the median (percentile method), with a fixed seed so that a report can be made again.
#[must_use]
pub fn interval(values: &[f64]) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mut dice = Dice::new(0);
    let mut sample = vec![0.0; values.len()];
    let mut medians: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            sample.fill_with(|| values[dice.index(values.len())]);
            median(&sample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    (medians[ROUNDS * 25 / 1000], medians[ROUNDS * 975 / 1000])
}

/// The ratios `ours / base` within the rounds that both have; pairs of round and value. What the machine did to both in a
/// round falls out of them.
#[must_use]
pub fn paired_ratios(ours: &[(u32, f64)], base: &[(u32, f64)]) -> Vec<f64> {
    let of = |round: u32| base.iter().find(|(r, _)| *r == round).map(|(_, v)| *v);
    let ratios = ours.iter().filter_map(|&(round, value)| Some(value / of(round)?));
    ratios.filter(|ratio| ratio.is_finite()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_intervals() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        let values: Vec<f64> = (0..101).map(f64::from).collect();
        let (low, high) = interval(&values);
        assert!(low < 50.0 && 50.0 < high && low > 30.0 && high < 70.0, "{low} {high}");
        assert_eq!(interval(&[7.0; 9]), (7.0, 7.0));
    }

    #[test]
    fn ratios_pair_the_same_rounds() {
        let (ours, base) = ([(0, 50.0), (2, 30.0), (3, 1.0)], [(2, 60.0), (0, 100.0), (3, 0.0)]);
        assert_eq!(paired_ratios(&ours, &base), [0.5, 0.5]);
    }

    #[test]
    fn dice_are_fair_enough() {
        let mut dice = Dice::new(7);
        let normals: Vec<f64> = (0..20_000).map(|_| dice.normal()).collect();
        let mean = normals.iter().sum::<f64>() / 20_000.0;
        let deviation = (normals.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 20_000.0).sqrt();
        assert!(mean.abs() < 0.03 && (deviation - 1.0).abs() < 0.03, "{mean} {deviation}");
        assert!((0..1000).all(|_| (0.0..1.0).contains(&dice.uniform())));
        assert_ne!(Dice::new(1).uniform(), Dice::new(2).uniform());
    }
}
