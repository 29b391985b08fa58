//! Writes the HTML report of invented results, to look at the page without measuring: `sample-report FILE`.

use vswitch_benches::{output::html, results::sample::sample};

fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "report.html".to_owned());
    std::fs::write(path, html(&sample(1)))
}
