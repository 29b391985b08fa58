//! The page: one file without scripts, fonts or pictures from elsewhere.

use std::{collections::BTreeSet, fmt::Write};

use super::{
    failures, flame, marks, number, plain,
    svg::{Axis, Bar, Line, bars, lines, short, stacked},
    warnings,
};
use crate::{
    results::{Case, Contestant, Latency, MarkKind, Metric, Party, Profile, Results, Round, Scenario, Search},
    stats::{interval, median},
};

/// Colours that the style sheet has.
const COLOURS: usize = 8;
const PARTIES: [(Party, &str); 4] =
    [(Party::Switch, "switch"), (Party::Softirq, "softirq"), (Party::Generator, "generator"), (Party::Sink, "sink")];
/// Losses below this are drawn as none.
const LEAST_LOSS: f64 = 1e-6;

/// Text as it may stand in HTML, in an attribute too.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

/// The whole report as one HTML file, the results themselves embedded as JSON (element `results`).
#[must_use]
pub fn html(results: &Results) -> String {
    let mut out = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
        <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>vswitch laboratory</title>\
        <link rel=\"icon\" href=\"data:,\"><style>\n"
        .to_owned();
    out += include_str!("report.css");
    out += "</style></head><body>\n";
    head(&mut out, results);
    for scenario in &results.scenarios {
        let _ = write!(out, "<section><h2>{}</h2><p>{}</p>", escape(&scenario.name), escape(&scenario.about));
        for case in &scenario.cases {
            show_case(&mut out, results, scenario, case);
        }
        out += "</section>\n";
    }
    // In a data block: no browser runs it. No "<" may be in it, which JSON can do without.
    let json = serde_json::to_string(results).unwrap_or_default().replace('<', "\\u003c");
    let _ = write!(
        out,
        "<p class=\"soft\">All values of all rounds are in this file as JSON, in the element <code>#results</code>.</p>\
         <script type=\"application/json\" id=\"results\">{json}</script>\n</body></html>\n"
    );
    out
}

fn head(out: &mut String, results: &Results) {
    let (run, machine) = (&results.run, &results.machine);
    let commit = run.commit.as_ref().map_or(String::new(), |c| format!(" ({c})"));
    let _ = write!(
        out,
        "<header><h1>vswitch laboratory</h1><p class=\"soft\">vswitch {}{} · {} · {} run</p>",
        escape(&run.vswitch_version),
        escape(&commit),
        escape(&run.started),
        format!("{:?}", run.effort).to_lowercase()
    );
    for line in warnings(results).iter().chain(&run.remarks) {
        let _ = write!(out, "<p class=\"note warn\" role=\"note\">{}</p>", escape(line));
    }
    if let Some(noise) = &results.noise {
        let _ = write!(
            out,
            "<p class=\"note quiet\">Null loop: <strong>{}</strong>. It varied by ±{:.1} % (threshold ±{:.1} %): \
             median {} {unit}, {} to {} {unit} in {} passes.</p>",
            format!("{:?}", noise.verdict).to_lowercase(),
            noise.spread * 100.0,
            noise.threshold * 100.0,
            number(noise.median, 1),
            number(noise.min, 1),
            number(noise.max, 1),
            noise.values.len(),
            unit = escape(&noise.unit)
        );
    }
    let skipped = skipped(results);
    if !skipped.is_empty() {
        let _ = write!(out, "<div class=\"note warn\" role=\"note\"><strong>Took no part</strong>");
        for line in skipped {
            let _ = write!(out, "<br>{line}");
        }
        *out += "</div>";
    }
    let list = |map: &std::collections::BTreeMap<String, String>| {
        map.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join("; ")
    };
    let memory = machine.memory_bytes.map_or(String::new(), |b| format!(", {} MiB", number(b as f64 / 1_048_576.0, 0)));
    let rows = [
        ("Processor", format!("{}, {} core(s){memory}", machine.cpu_model, machine.cores)),
        ("Kernel", machine.kernel.clone()),
        ("Hypervisor", machine.hypervisor.clone().unwrap_or_else(|| "none".to_owned())),
        ("Clock rate", machine.frequency.clone()),
        ("Mitigations", list(&machine.mitigations)),
        ("Programs", list(&machine.programs)),
        ("Throughput", run.search.as_ref().map_or_else(|| "maximum receive rate".to_owned(), searched)),
        ("Command", run.command.join(" ")),
    ];
    *out += "<dl>";
    for (name, value) in rows.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = write!(out, "<dt>{name}</dt><dd>{}</dd>", escape(value));
    }
    *out += "</dl></header>\n";
}

/// How throughput was searched for.
fn searched(search: &Search) -> String {
    let Search { goal, least_load_ratio, budget_s } = search;
    let percent = |part: f64| number(part * 100.0, 1);
    format!(
        "MLRsearch (RFC 9971): at most {} % loss, exceeded in at most {} % of the time; full trials of {} s, the first \
         of a load of {} s, a load decided by {} s of full trials; bounds within {} %; loads from {} % of what the \
         generators gave at once; {} s at most",
        percent(goal.loss_ratio),
        percent(goal.exceed_ratio),
        goal.final_trial_s,
        goal.initial_trial_s,
        goal.duration_sum_s,
        percent(goal.width),
        percent(*least_load_ratio),
        budget_s
    )
}

/// Each skipped contestant once, as HTML.
fn skipped(results: &Results) -> BTreeSet<String> {
    let cases = results.scenarios.iter().flat_map(|s| s.cases.iter().map(move |c| (s, c)));
    let all = cases.flat_map(|(s, case)| case.contestants.iter().map(move |c| (s, c)));
    all.filter_map(|(scenario, contestant)| {
        let why = contestant.skipped.as_ref()?;
        let install = why.install.as_ref().map_or(String::new(), |how| format!(": <code>{}</code>", escape(how)));
        let (name, scenario) = (escape(&contestant.name), escape(&scenario.name));
        Some(format!("{name} in {scenario}: {}{install}", escape(&why.reason)))
    })
    .collect()
}

/// The colour of a contestant is the same in the whole page.
fn colour(results: &Results, name: &str) -> usize {
    let mut names: Vec<&str> = Vec::new();
    for contestant in results.scenarios.iter().flat_map(|s| &s.cases).flat_map(|c| &c.contestants) {
        if !names.contains(&contestant.name.as_str()) && contestant.skipped.is_none() {
            names.push(&contestant.name);
        }
    }
    names.iter().position(|n| *n == name).unwrap_or(0) % COLOURS
}

fn figure(out: &mut String, class: &str, title: &str, about: &str, plot: &str) {
    let (title, about) = (escape(title), escape(about));
    let _ =
        write!(out, "<figure class=\"{class}\"><figcaption>{title} <small>{about}</small></figcaption>{plot}</figure>");
}

fn show_case(out: &mut String, results: &Results, scenario: &Scenario, case: &Case) {
    let title = if case.parameters.is_empty() { scenario.name.clone() } else { case.title() };
    let _ = write!(
        out,
        "<h3>{}</h3><p class=\"soft\">{} round(s) of {} s; median, 95 % bootstrap interval, one dot per round.</p>",
        escape(&title),
        case.rounds,
        case.seconds
    );
    let there: Vec<&Contestant> = case.contestants.iter().filter(|c| c.skipped.is_none()).collect();
    *out += "<ul class=\"legend\">";
    for c in &there {
        let (name, of) = (escape(&c.name), colour(results, &c.name));
        let settings =
            if c.settings.is_empty() { String::new() } else { format!(" <code>{}</code>", escape(&c.settings)) };
        let _ = write!(
            out,
            "<li><svg aria-hidden=\"true\" viewBox=\"0 0 14 14\"><rect class=\"f{of}\" width=\"14\" height=\"14\" \
             rx=\"2\"/></svg>{name}{settings}</li>"
        );
    }
    *out += "</ul>";
    table(out, scenario, case);
    for line in failures(case) {
        let _ = write!(out, "<p class=\"note warn\">{}</p>", escape(&line));
    }
    let colours = |c: &Contestant| colour(results, &c.name);
    let name = format!("{} {}", scenario.name, case.title());
    *out += "<div class=\"figures\">";
    if let Some(metric) = scenario.metrics.first() {
        metric_bars(out, &name, metric, &there, &colours);
    }
    loss_over_load(out, &name, &there, &colours);
    latencies(out, &name, &there, &colours);
    cpu(out, &name, &there);
    for c in &there {
        if let Some(profile) = c.rounds.iter().find_map(|r| r.profile.as_ref()) {
            show_profile(out, &c.name, profile);
        }
    }
    *out += "</div>\n";
}

fn table(out: &mut String, scenario: &Scenario, case: &Case) {
    *out += "<div class=\"scroll\"><table><thead><tr><th scope=\"col\">contestant</th>";
    for metric in &scenario.metrics {
        let _ = write!(out, "<th scope=\"col\">{} {}</th>", escape(&metric.name), escape(&metric.unit));
    }
    *out += "<th scope=\"col\">lost / sent</th></tr></thead><tbody>";
    for c in &case.contestants {
        let _ = write!(out, "<tr><td>{}</td>", escape(&c.name));
        if let Some(why) = &c.skipped {
            let columns = scenario.metrics.len() + 1;
            let install = why.install.as_ref().map_or(String::new(), |how| format!(": <code>{}</code>", escape(how)));
            let _ = write!(
                out,
                "<td colspan=\"{columns}\"><span class=\"mark\">skipped</span> {}{install}</td></tr>",
                escape(&why.reason)
            );
            continue;
        }
        for metric in &scenario.metrics {
            let values = plain(&c.values(&metric.name));
            if values.is_empty() {
                *out += "<td><small>not measured</small></td>";
                continue;
            }
            let (low, high) = interval(&values);
            let show = |value| number(value, metric.digits);
            let _ = write!(out, "<td>{} <small>[{}, {}]</small>", show(median(&values)), show(low), show(high));
            for mark in marks(c, &metric.name) {
                let _ = write!(out, " <span class=\"mark\">{}</span>", mark.words());
            }
            *out += "</td>";
        }
        let frames: Vec<_> = c.rounds.iter().filter_map(|r| r.frames).collect();
        let (lost, sent) = frames.iter().fold((0, 0), |(l, s), f| (l + f.lost, s + f.sent));
        let wrong: u64 = frames.iter().map(|f| f.reordered + f.duplicates + f.corrupt).sum();
        let wrong = if wrong > 0 {
            format!(" <span class=\"mark\">{wrong} out of order, double or damaged</span>")
        } else {
            String::new()
        };
        match sent {
            0 => *out += "<td><small>not counted</small></td></tr>",
            _ => drop(write!(out, "<td>{} / {}{wrong}</td></tr>", number(lost as f64, 0), number(sent as f64, 0))),
        }
    }
    *out += "</tbody></table></div>";
    let all: BTreeSet<(MarkKind, String)> = case
        .contestants
        .iter()
        .flat_map(|c| c.rounds.iter().flat_map(|r| &r.marks).map(move |m| (m, &c.name)))
        .map(|(m, name)| {
            let ceiling = m.ceiling.map_or(String::new(), |most| format!("; ceiling {}", short(most)));
            (m.kind, format!("{name}: {}{ceiling}", m.text))
        })
        .collect();
    for (kind, text) in all {
        let _ = write!(out, "<p class=\"note warn\"><strong>{}</strong> {}</p>", kind.words(), escape(&text));
    }
}

type Colours<'a> = &'a dyn Fn(&Contestant) -> usize;

fn metric_bars(out: &mut String, name: &str, metric: &Metric, there: &[&Contestant], colours: Colours<'_>) {
    let bar = |c: &&Contestant| {
        let values = plain(&c.values(&metric.name));
        let bound: Vec<&str> = marks(c, &metric.name).into_iter().map(MarkKind::words).collect();
        let least = if bound.contains(&"generator-bound") || bound.contains(&"sink-bound") { "≥ " } else { "" };
        (!values.is_empty()).then(|| Bar {
            label: c.name.clone(),
            colour: colours(c),
            median: median(&values),
            interval: interval(&values),
            text: format!("{least}{} {}", short(median(&values)), bound.join(" ")),
            values,
        })
    };
    let all: Vec<Bar> = there.iter().filter_map(bar).collect();
    if !all.is_empty() {
        let plot = bars(&format!("{}, {name}", metric.name), &all);
        figure(out, "", &metric.name, &metric.unit, &plot);
    }
}

fn loss_over_load(out: &mut String, name: &str, there: &[&Contestant], colours: Colours<'_>) {
    let floor = LEAST_LOSS.log10();
    let up = |loss: f64| if loss < LEAST_LOSS { floor } else { loss.log10() };
    let mut most = 0.0_f64;
    let mut all = Vec::new();
    for c in there {
        let mut trials: Vec<_> = c.rounds.iter().flat_map(|r| &r.trials).collect();
        trials.sort_by(|a, b| a.load_fps.total_cmp(&b.load_fps));
        most = trials.last().map_or(most, |t| most.max(t.load_fps));
        // Loads within 3 % are one point of the line, with their median loss; each trial is a dot.
        let points = trials.chunk_by(|a, b| b.load_fps < a.load_fps * 1.03).map(|near| {
            let losses: Vec<f64> = near.iter().map(|t| t.loss_ratio()).collect();
            let loads: Vec<f64> = near.iter().map(|t| t.load_fps).collect();
            (median(&loads), up(median(&losses)))
        });
        let loose = trials.iter().map(|t| (t.load_fps, up(t.loss_ratio()))).collect();
        all.push(Line { colour: colours(c), points: points.collect(), loose });
    }
    if most == 0.0 {
        return;
    }
    let mut axis = Axis::decades("loss ratio", LEAST_LOSS, 1.0, |v| format!("{} %", v * 100.0));
    axis.ticks[0].1 = "none".to_owned();
    let plot = lines(&format!("loss over load, {name}"), &Axis::linear("offered load, frames/s", most), &axis, &all);
    figure(out, "", "Loss over load", "each dot a trial; the line joins medians", &plot);
}

fn latencies(out: &mut String, name: &str, there: &[&Contestant], colours: Colours<'_>) {
    let kinds: BTreeSet<(String, Option<u64>)> = there
        .iter()
        .flat_map(|c| &c.rounds)
        .flat_map(|r| &r.latency)
        .map(|l| (l.what.clone(), l.load_percent.map(f64::to_bits)))
        .collect();
    for (what, load) in kinds {
        let same = |l: &&Latency| l.what == what && l.load_percent.map(f64::to_bits) == load;
        let mut all = Vec::new();
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for c in there {
            let Some(merged) = Latency::merged(c.rounds.iter().flat_map(|r| r.latency.iter().filter(same))) else {
                continue;
            };
            let mut below = 0;
            let mut points = Vec::new();
            for (ns, count) in &merged.buckets {
                // A bucket's value at the quantile in its middle; with the last one as far as there are samples.
                let quantile = (below as f64 + *count as f64 / 2.0) / merged.count as f64;
                below += count;
                let us = (*ns as f64 / 1000.0).max(1e-3);
                points.push(((-(1.0 - quantile).log10()).clamp(0.0, 5.0), us.log10()));
                (least, most) = (least.min(us), most.max(us));
            }
            all.push(Line { colour: colours(c), points, loose: Vec::new() });
        }
        if all.is_empty() || most == 0.0 {
            continue;
        }
        let ticks = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"];
        let ticks = ticks.iter().enumerate().map(|(i, t)| (i as f64, (*t).to_owned())).collect();
        let across = Axis { name: "percentile".to_owned(), from: 0.0, to: 5.0, ticks };
        let load = load.map_or(String::new(), |bits| format!("at {} % of its throughput", f64::from_bits(bits)));
        let plot = lines(
            &format!("latency, {what}, {load}, {name}"),
            &across,
            &Axis::decades("latency, µs", least, most, short),
            &all,
        );
        figure(out, "", &format!("Latency, {what}"), &load, &plot);
    }
}

fn cpu(out: &mut String, name: &str, there: &[&Contestant]) {
    let of = |c: &&Contestant| {
        let rounds: Vec<_> = c.rounds.iter().map(Round::cpu_ns_per_frame).filter(|r| !r.is_empty()).collect();
        let part = |party| median(&rounds.iter().map(|r| r.get(&party).copied().unwrap_or(0.0)).collect::<Vec<_>>());
        (!rounds.is_empty()).then(|| (c.name.clone(), PARTIES.map(|(party, _)| part(party)).to_vec()))
    };
    let rows: Vec<_> = there.iter().filter_map(of).collect();
    if !rows.is_empty() {
        let plot = stacked(&format!("CPU time per frame, {name}"), &PARTIES.map(|(_, word)| word), &rows);
        figure(out, "", "CPU time per frame", "ns, median of the rounds, by who is charged", &plot);
    }
}

fn show_profile(out: &mut String, who: &str, profile: &Profile) {
    let about =
        format!("{}, {} samples; wider is more, callers below", profile.event, number(profile.samples as f64, 0));
    if let Some(plot) = flame::graph(&format!("flame graph of {who}"), &profile.folded) {
        figure(out, "wide", &format!("Where {who} spends its time"), &about, &plot);
    }
    let list = |head: [&str; 2], rows: &[(String, f64, &str)]| {
        let mut table = format!("<table><thead><tr><th>{}</th><th>{}</th></tr></thead><tbody>", head[0], head[1]);
        for (name, value, unit) in rows {
            let _ = write!(table, "<tr><td>{}</td><td>{}{unit}</td></tr>", escape(name), number(*value, 1));
        }
        table + "</tbody></table>"
    };
    if !profile.top.is_empty() {
        let name = |s: &crate::results::Symbol| {
            if s.object.is_empty() { format!("{} [kernel]", s.name) } else { format!("{} ({})", s.name, s.object) }
        };
        let rows: Vec<_> = profile.top.iter().map(|s| (name(s), s.percent, " %")).collect();
        figure(out, "", &format!("Top symbols of {who}"), &profile.event, &list(["symbol", "samples"], &rows));
    }
    if !profile.stages.is_empty() {
        let rows: Vec<_> = profile.stages.iter().map(|s| (s.name.clone(), s.cycles_per_frame, "")).collect();
        figure(out, "", &format!("Stages of {who}"), "", &list(["stage", "cycles/frame"], &rows));
    }
}
