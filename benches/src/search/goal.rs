//! What a load is to a goal (RFC 9971, appendices A and B).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::results::Trial;

/// A search goal.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Goal {
    /// Loss ratio that still counts as forwarding: 0 for a non-drop rate, 0.005 for a partial one. Below 1.
    pub loss_ratio: f64,
    /// Part of the time that may have more loss than that: 0 for none, 0.5 for every other trial. Below 1.
    pub exceed_ratio: f64,
    /// First trials at a load last this long, in seconds.
    pub initial_trial_s: f64,
    /// A full-length trial lasts this long.
    pub final_trial_s: f64,
    /// At this sum of full-length trials a load is decided.
    pub duration_sum_s: f64,
    /// Largest distance of the bounds, as part of the upper one.
    pub width: f64,
}

impl Goal {
    /// The throughput of RFC 2544: one trial of 60 s without any loss.
    pub const RFC2544: Goal = Goal {
        loss_ratio: 0.0,
        exceed_ratio: 0.0,
        initial_trial_s: 1.0,
        final_trial_s: 60.0,
        duration_sum_s: 60.0,
        width: 0.01,
    };
    /// Trials of a second, half of which may lose more than five of a thousand frames: for a machine that others use too.
    pub const PARTIAL_DROP: Goal = Goal {
        loss_ratio: 0.005,
        exceed_ratio: 0.5,
        initial_trial_s: 0.25,
        final_trial_s: 1.0,
        duration_sum_s: 7.0,
        width: 0.01,
    };
    /// The same with no loss in most trials: only one in four may lose anything.
    pub const NON_DROP: Goal = Goal { loss_ratio: 0.0, exceed_ratio: 0.25, ..Goal::PARTIAL_DROP };

    /// Whether the attributes are within what they may be.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        (0.0..1.0).contains(&self.loss_ratio)
            && (0.0..1.0).contains(&self.exceed_ratio)
            && 0.0 < self.initial_trial_s
            && self.initial_trial_s <= self.final_trial_s
            && self.final_trial_s <= self.duration_sum_s
            && 0.0 < self.width
            && self.width < 1.0
    }

    /// Whether two bounds are as near as asked for.
    #[must_use]
    pub fn narrow_enough(&self, lower: f64, upper: f64) -> bool {
        (upper - lower) / upper <= self.width
    }
}

/// What a load is to a goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// It upholds the goal, whatever trials still missing would say.
    Lower,
    /// It fails, whatever they would say.
    Upper,
    /// It depends on them.
    Undecided,
}

/// What the load of some trials is to a goal (appendix A). Short trials can show that it fails, beyond the share of lossy
/// ones that their own lossless ones allow; they cannot show that it holds.
#[must_use]
pub fn classify(goal: &Goal, trials: &[Trial]) -> Bound {
    let sum = |full: bool, lossy: bool| -> f64 {
        let fits = |t: &&Trial| {
            (t.seconds + 1e-9 >= goal.final_trial_s) == full && (t.loss_ratio() > goal.loss_ratio) == lossy
        };
        trials.iter().filter(fits).map(|t| t.seconds).sum()
    };
    let balancing_s = sum(false, false) * goal.exceed_ratio / (1.0 - goal.exceed_ratio);
    let excess_s = (sum(false, true) - balancing_s).max(0.0);
    let lossy_s = sum(true, true) + excess_s;
    let lossless_s = sum(true, false);
    let whole_s = (lossless_s + lossy_s).max(goal.duration_sum_s);
    let allowed_s = whole_s * goal.exceed_ratio + 1e-9;
    // What is missing can be all lossless at best, all lossy at worst.
    match (lossy_s <= allowed_s, whole_s - lossless_s <= allowed_s) {
        (_, true) => Bound::Lower,
        (false, _) => Bound::Upper,
        _ => Bound::Undecided,
    }
}

/// The forwarding rate to expect at a lower bound (appendix B): the load less the loss that is not exceeded in all but the
/// share of the time that the goal grants.
#[must_use]
pub fn conditional_throughput(goal: &Goal, load_fps: f64, trials: &[Trial]) -> f64 {
    let mut full: Vec<&Trial> = trials.iter().filter(|t| t.seconds + 1e-9 >= goal.final_trial_s).collect();
    full.sort_by(|a, b| a.loss_ratio().total_cmp(&b.loss_ratio()));
    let all_s: f64 = full.iter().map(|t| t.seconds).sum();
    // Trials not made, because the bound was sure already, count as the worst.
    let mut remaining_s = all_s.max(goal.duration_sum_s) * (1.0 - goal.exceed_ratio);
    let mut loss = 1.0;
    for trial in full {
        if remaining_s <= 1e-9 {
            break;
        }
        loss = trial.loss_ratio();
        remaining_s -= trial.seconds;
    }
    if remaining_s > 1e-9 {
        loss = 1.0; // no lower bound at all
    }
    load_fps * (1.0 - loss)
}
