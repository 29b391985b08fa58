//! Medians and their uncertainty.

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

/// Resamplings of [`interval`].
const ROUNDS: usize = 2000;

/// The 95 % bootstrap interval of the median (percentile method), with a fixed seed so that a report can be made again.
#[must_use]
pub fn interval(values: &[f64]) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        // xorshift64*: good enough to pick indices.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize
    };
    let mut medians: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let sample: Vec<f64> = (0..values.len()).map(|_| values[next() % values.len()]).collect();
            median(&sample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    (medians[ROUNDS * 25 / 1000], medians[ROUNDS * 975 / 1000])
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
}
