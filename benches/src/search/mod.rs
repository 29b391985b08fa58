//! The search for throughput: Multiple Loss Ratio search (MLRsearch, RFC 9971), for one goal at a time.
//!
//! A goal says how much loss is still forwarding (`loss_ratio`), how much of the time may be worse all the same
//! (`exceed_ratio`), how long a trial and all trials of a load last, and how near to each other the bounds shall come
//! (`width`). A load is a lower or an upper bound once no outcome of the trials still missing could change that. The
//! result is the conditional throughput: what was forwarded at the greatest lower bound below the least upper one.
//! Short trials find the neighbourhood; only full ones count towards a lower bound.
//!
//! It is a pure function of what the trials answer: it reads no clock and starts nothing.

mod goal;
#[cfg(test)]
mod tests;

use crate::results::Trial;

pub use self::goal::{Bound, Goal, classify, conditional_throughput};

/// Between which loads to search, and how long at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// The least load worth a trial, in frames per second; above 0.
    pub min_load_fps: f64,
    /// The most that the generator can give.
    pub max_load_fps: f64,
    /// The search ends, with an irregular result, before its trials take longer than this.
    pub budget_s: f64,
}

/// Why a result is not regular: one of the bounds is missing, or they are too far from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irregular {
    /// The greatest load is a lower bound: the contestant can do at least this.
    NoLossAtMaxLoad,
    /// The least load is an upper bound: the contestant loses too much at any load.
    LossAtMinLoad,
    /// The time was over first.
    OutOfTime,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The goal.
    pub goal: Goal,
    /// The relevant lower bound in frames per second: the greatest below the upper one.
    pub lower_fps: Option<f64>,
    /// The relevant upper bound: the least there is.
    pub upper_fps: Option<f64>,
    /// Frames per second forwarded at the lower bound.
    pub throughput_fps: Option<f64>,
    /// `None`: the result is regular.
    pub irregular: Option<Irregular>,
    /// All trials in their order; a loss-over-load curve as well.
    pub trials: Vec<Trial>,
}

/// Searches. `measure(load in frames/s, seconds)` answers frames (sent, lost) of one trial; what could not be sent at this
/// load must be counted in both. Its first error ends the search.
///
/// # Errors
/// That of `measure`.
///
/// # Panics
/// The goal or the limits make no sense (see [`Goal::is_valid`]): an error of the caller.
pub fn search<E>(
    goal: &Goal,
    limits: &Limits,
    mut measure: impl FnMut(f64, f64) -> Result<(u64, u64), E>,
) -> Result<Found, E> {
    assert!(goal.is_valid(), "a goal that cannot be reached: {goal:?}");
    let Limits { min_load_fps: min, max_load_fps: max, budget_s } = *limits;
    assert!(0.0 < min && min <= max && max.is_finite(), "loads that cannot be offered: {limits:?}");
    let mut trials: Vec<Trial> = Vec::new();
    let mut seconds_left = budget_s;
    let mut trial = |load: f64, seconds: f64, trials: &mut Vec<Trial>| -> Result<bool, E> {
        if seconds > seconds_left {
            return Ok(false);
        }
        seconds_left -= seconds;
        let (sent, lost) = measure(load, seconds)?;
        trials.push(Trial { load_fps: load, seconds, sent, lost: lost.min(sent) });
        Ok(true)
    };
    // Where to begin: what comes out of the greatest load, then what comes out of that. Short trials, but they may already
    // be upper bounds.
    let mut start = max;
    for _ in 0..2 {
        if !trial(start, goal.initial_trial_s, &mut trials)? {
            break;
        }
        let last = trials[trials.len() - 1];
        if last.loss_ratio() <= goal.loss_ratio {
            break;
        }
        start = last.forwarding_rate_fps().clamp(min, max);
    }
    let (mut target, mut step) = (start, goal.width);
    loop {
        let (lower, upper) = bounds(goal, &trials);
        match (lower, upper) {
            (Some(l), None) if l >= max => break,
            (None, Some(u)) if u <= min => break,
            (Some(l), Some(u)) if goal.narrow_enough(l, u) => break,
            _ => {}
        }
        if classify(goal, &at(&trials, target)) != Bound::Undecided {
            step *= 2.0;
            target = match (lower, upper) {
                // Outwards in growing steps: the bound is near the start, or far off.
                (Some(l), None) => (l / (1.0 - step.min(0.5))).min(max),
                (None, Some(u)) => (u * (1.0 - step.min(0.5))).max(min),
                // Halfway, by ratio, as the width is one.
                (Some(l), Some(u)) => (l * u).sqrt(),
                (None, None) => unreachable!("the target is a bound"),
            };
        }
        // The first trial of a load is short: one far above the knee is given up at little cost.
        let tried = trials.iter().any(|t| same(t.load_fps, target));
        let seconds = if tried { goal.final_trial_s } else { goal.initial_trial_s };
        if !trial(target, seconds, &mut trials)? {
            return Ok(finish(goal, trials, Some(Irregular::OutOfTime)));
        }
    }
    let irregular = match bounds(goal, &trials) {
        (_, None) => Some(Irregular::NoLossAtMaxLoad),
        (None, _) => Some(Irregular::LossAtMinLoad),
        _ => None,
    };
    Ok(finish(goal, trials, irregular))
}

/// One trial at the greatest load: the maximum receive rate (MRR) in frames per second, whatever the loss.
///
/// # Errors
/// That of `measure`, which is as for [`search`].
pub fn maximum_receive_rate<E>(
    max_load_fps: f64,
    seconds: f64,
    mut measure: impl FnMut(f64, f64) -> Result<(u64, u64), E>,
) -> Result<Trial, E> {
    let (sent, lost) = measure(max_load_fps, seconds)?;
    Ok(Trial { load_fps: max_load_fps, seconds, sent, lost: lost.min(sent) })
}

fn finish(goal: &Goal, trials: Vec<Trial>, irregular: Option<Irregular>) -> Found {
    let (lower_fps, upper_fps) = bounds(goal, &trials);
    let throughput_fps = lower_fps.map(|load| conditional_throughput(goal, load, &at(&trials, load)));
    Found { goal: *goal, lower_fps, upper_fps, throughput_fps, irregular, trials }
}

/// Loads are compared as what they are sent as; the smallest steps of the search are far greater.
fn same(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs()
}

fn at(trials: &[Trial], load: f64) -> Vec<Trial> {
    trials.iter().copied().filter(|t| same(t.load_fps, load)).collect()
}

fn loads(trials: &[Trial]) -> Vec<f64> {
    let mut loads: Vec<f64> = trials.iter().map(|t| t.load_fps).collect();
    loads.sort_by(f64::total_cmp);
    loads.dedup_by(|a, b| same(*a, *b));
    loads
}

/// The relevant bounds: the least upper, and the greatest lower below that. A lower bound above an upper one (the device
/// behaves better at a greater load) does not count.
fn bounds(goal: &Goal, trials: &[Trial]) -> (Option<f64>, Option<f64>) {
    let all = loads(trials);
    let is = |load: f64, bound: Bound| classify(goal, &at(trials, load)) == bound;
    let upper = all.iter().copied().find(|l| is(*l, Bound::Upper));
    let below = all.iter().copied().rev().filter(|l| upper.is_none_or(|u| *l < u));
    (below.into_iter().find(|l| is(*l, Bound::Lower)), upper)
}
