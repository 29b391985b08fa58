//! A flame graph of folded stacks: as wide as the samples, callers below.

use std::{collections::BTreeMap, fmt::Write};

use super::html::escape;

#[derive(Default)]
struct Node {
    samples: u64,
    callees: BTreeMap<String, Node>,
}

const WIDTH: f64 = 1240.0;
const ROW: f64 = 20.0;
/// Deeper frames are not drawn, nor narrower ones than this many pixels.
const DEEPEST: usize = 60;
const NARROWEST: f64 = 0.5;

impl Node {
    fn depth(&self, so_far: usize) -> usize {
        if so_far >= DEEPEST {
            return so_far;
        }
        self.callees.values().map(|c| c.depth(so_far + 1)).max().unwrap_or(so_far)
    }

    fn draw(&self, out: &mut String, (left, level): (f64, usize), scale: f64, bottom: f64, all: u64) {
        let mut at = left;
        for (name, callee) in &self.callees {
            let width = callee.samples as f64 * scale;
            if width >= NARROWEST && level < DEEPEST {
                let (top, percent) = (bottom - (level + 1) as f64 * ROW, callee.samples as f64 * 100.0 / all as f64);
                // The same function has the same shade everywhere.
                let shade = name.bytes().fold(0u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b))) % 5;
                let fits = (width / 6.8) as usize;
                let text: String = match name.chars().count() {
                    n if n <= fits => name.clone(),
                    _ if fits >= 4 => name.chars().take(fits - 1).chain(['…']).collect(),
                    _ => String::new(),
                };
                let _ = write!(
                    out,
                    "<g><title>{} {percent:.1} % ({} samples)</title><rect class=\"h{shade}\" x=\"{at:.1}\" y=\"{top:.1}\" \
                     width=\"{:.1}\" height=\"{:.1}\" rx=\"1.5\"/><text class=\"flame\" x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
                    escape(name),
                    callee.samples,
                    (width - 0.8).max(0.2),
                    ROW - 1.0,
                    at + 4.0,
                    top + 14.0,
                    escape(&text)
                );
                callee.draw(out, (at, level + 1), scale, bottom, all);
            }
            at += width;
        }
    }
}

/// The graph; `None` where no line is a folded stack.
pub(super) fn graph(title: &str, folded: &[String]) -> Option<String> {
    let mut root = Node::default();
    for line in folded {
        let Some((stack, Ok(samples))) = line.rsplit_once(' ').map(|(s, n)| (s, n.parse::<u64>())) else { continue };
        root.samples += samples;
        let mut node = &mut root;
        for frame in stack.split(';') {
            node = node.callees.entry(frame.to_owned()).or_default();
            node.samples += samples;
        }
    }
    if root.samples == 0 {
        return None;
    }
    let height = root.depth(0) as f64 * ROW + 2.0;
    let title = escape(title);
    let mut out = format!(
        "<svg role=\"img\" aria-label=\"{title}\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\"><title>{title}</title>"
    );
    root.draw(&mut out, (0.0, 0), WIDTH / root.samples as f64, height, root.samples);
    Some(out + "</svg>")
}
