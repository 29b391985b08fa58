//! Plots as inline SVG. Colours come from the page's style sheet, by class, so that they follow light and dark.

use std::fmt::Write;

use super::html::escape;

/// One bar with the values of its rounds.
pub(super) struct Bar {
    pub label: String,
    /// Number of its colour.
    pub colour: usize,
    pub median: f64,
    pub interval: (f64, f64),
    pub values: Vec<f64>,
    /// Said behind the bar.
    pub text: String,
}

const LABEL: f64 = 120.0;
const WIDTH: f64 = 620.0;

fn open(out: &mut String, title: &str, width: f64, height: f64) {
    let title = escape(title);
    let _ = write!(
        out,
        "<svg role=\"img\" aria-label=\"{title}\" viewBox=\"0 0 {width:.0} {height:.0}\"><title>{title}</title>"
    );
}

/// A number for an axis: `1.2 M`.
pub(super) fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, " G"),
        v if v >= 1e6 => (value / 1e6, " M"),
        v if v >= 1e3 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let text = if scaled.abs() >= 100.0 { format!("{scaled:.0}") } else { format!("{scaled:.2}") };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    text + unit
}

/// Round values from 0 to about `max`, four to eight of them.
fn steps(max: f64) -> Vec<f64> {
    let rough = max / 5.0;
    if !(rough > 0.0 && rough.is_finite()) {
        return vec![0.0];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(power);
    (0..=(max / step + 1e-9) as usize).map(|i| i as f64 * step).collect()
}

/// Horizontal bars from 0, with the interval as a whisker and each round as a dot.
pub(super) fn bars(title: &str, bars: &[Bar]) -> String {
    let most = bars.iter().flat_map(|b| b.values.iter().copied().chain([b.interval.1])).fold(0.0, f64::max);
    let (row, height) = (30.0, 30.0 * bars.len() as f64 + 26.0);
    let x = |value: f64| LABEL + value / most.max(f64::MIN_POSITIVE) * (WIDTH - LABEL - 185.0);
    let mut out = String::new();
    open(&mut out, title, WIDTH, height);
    for step in steps(most) {
        let (at, y) = (x(step), height - 24.0);
        let _ = write!(out, "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"{y:.1}\"/>");
        let _ = write!(out, "<text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>", y + 15.0, short(step));
    }
    for (i, bar) in bars.iter().enumerate() {
        let (top, middle) = (i as f64 * row + 5.0, i as f64 * row + 15.0);
        let _ = write!(
            out,
            "<text class=\"label\" x=\"{:.0}\" y=\"{:.1}\">{}</text><rect class=\"f{}\" x=\"{LABEL}\" y=\"{top:.1}\" \
             width=\"{:.1}\" height=\"20\" rx=\"2\"/>",
            LABEL - 8.0,
            middle + 4.0,
            escape(&bar.label),
            bar.colour,
            (x(bar.median) - LABEL).max(0.0)
        );
        for value in &bar.values {
            let _ = write!(out, "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"2\"/>", x(*value));
        }
        let (low, high) = (x(bar.interval.0), x(bar.interval.1));
        let _ = write!(
            out,
            "<path class=\"whisker\" d=\"M{low:.1} {0:.1}v8m0 -4H{high:.1}m0 -4v8\"/>\
             <text class=\"value\" x=\"{1:.1}\" y=\"{2:.1}\">{3}</text>",
            middle - 4.0,
            bar.values.iter().map(|v| x(*v)).fold(high, f64::max) + 8.0,
            middle + 4.0,
            escape(&bar.text)
        );
    }
    out + "</svg>"
}

/// Horizontal bars of stacked parts: per bar its label and a value for each part.
pub(super) fn stacked(title: &str, parts: &[&str], rows: &[(String, Vec<f64>)]) -> String {
    let total = |values: &[f64]| values.iter().sum::<f64>();
    let most = rows.iter().map(|(_, values)| total(values)).fold(0.0, f64::max);
    let height = 30.0 * rows.len() as f64 + 50.0;
    let x = |value: f64| LABEL + value / most.max(f64::MIN_POSITIVE) * (WIDTH - LABEL - 70.0);
    let mut out = String::new();
    open(&mut out, title, WIDTH, height);
    for (i, part) in parts.iter().enumerate() {
        let at = LABEL + i as f64 * 120.0;
        let _ = write!(out, "<rect class=\"p{i}\" x=\"{at}\" y=\"2\" width=\"11\" height=\"11\"/>");
        let _ = write!(out, "<text class=\"value\" x=\"{}\" y=\"12\">{}</text>", at + 16.0, escape(part));
    }
    for step in steps(most) {
        let (at, y) = (x(step), height - 24.0);
        let _ = write!(out, "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"22\" y2=\"{y:.1}\"/>");
        let _ = write!(out, "<text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>", y + 15.0, short(step));
    }
    for (i, (label, values)) in rows.iter().enumerate() {
        let top = i as f64 * 30.0 + 28.0;
        let _ =
            write!(out, "<text class=\"label\" x=\"{}\" y=\"{:.1}\">{}</text>", LABEL - 8.0, top + 14.0, escape(label));
        let mut sum = 0.0;
        for (part, value) in values.iter().enumerate() {
            let (from, to) = (x(sum), x(sum + value));
            let _ = write!(
                out,
                "<rect class=\"p{part}\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"20\">\
                 <title>{}: {value:.0}</title></rect>",
                to - from,
                escape(parts[part])
            );
            sum += value;
        }
        let _ = write!(out, "<text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{sum:.0}</text>", x(sum) + 6.0, top + 14.0);
    }
    out + "</svg>"
}

/// An axis: where it begins and ends, and what stands where on it, all in plot units.
pub(super) struct Axis {
    pub name: String,
    pub from: f64,
    pub to: f64,
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From 0 to the largest value.
    pub(super) fn linear(name: &str, most: f64) -> Axis {
        let ticks = steps(most).into_iter().map(|step| (step, short(step))).collect();
        Axis { name: name.to_owned(), from: 0.0, to: most.max(f64::MIN_POSITIVE), ticks }
    }

    /// The decades around some positive values; plot units are decimal logarithms.
    pub(super) fn decades(name: &str, least: f64, most: f64, show: impl Fn(f64) -> String) -> Axis {
        let (from, to) = (least.log10().floor(), most.log10().ceil().max(least.log10().floor() + 1.0));
        let ticks = (from as i32..=to as i32).map(|d| (f64::from(d), show(10f64.powi(d)))).collect();
        Axis { name: name.to_owned(), from, to, ticks }
    }
}

/// A line of a plot, in plot units, with loose points beside it.
pub(super) struct Line {
    pub colour: usize,
    pub points: Vec<(f64, f64)>,
    pub loose: Vec<(f64, f64)>,
}

/// Lines in one frame.
pub(super) fn lines(title: &str, across: &Axis, up: &Axis, lines: &[Line]) -> String {
    let (left, right, top, bottom, width, height) = (70.0, 28.0, 10.0, 44.0, WIDTH, 320.0);
    let x = |v: f64| left + (v - across.from) / (across.to - across.from) * (width - left - right);
    let y = |v: f64| height - bottom - (v - up.from) / (up.to - up.from) * (height - top - bottom);
    let mut out = String::new();
    open(&mut out, title, width, height);
    for (at, text) in &across.ticks {
        let (at, end) = (x(*at), height - bottom);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{end}\"/>\
             <text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
            end + 16.0,
            escape(text)
        );
    }
    for (at, text) in &up.ticks {
        let at = y(*at);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            width - right,
            left - 6.0,
            at + 4.0,
            escape(text)
        );
    }
    let middle = (height - bottom + top) / 2.0;
    let _ = write!(
        out,
        "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\
         <text class=\"tick\" transform=\"translate(14 {middle:.1}) rotate(-90)\">{}</text>",
        (left + width - right) / 2.0,
        height - 6.0,
        escape(&across.name),
        escape(&up.name)
    );
    for line in lines {
        for (a, b) in &line.loose {
            let _ = write!(
                out,
                "<circle class=\"loose f{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2\"/>",
                line.colour,
                x(*a),
                y(*b)
            );
        }
        let points: Vec<String> = line.points.iter().map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b))).collect();
        let _ = write!(out, "<polyline class=\"s{}\" points=\"{}\"/>", line.colour, points.join(" "));
    }
    out + "</svg>"
}
