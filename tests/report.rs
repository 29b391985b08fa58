//! The laboratory's HTML report in a real browser: it shows, complains about nothing and asks for nothing.

use std::process::Command;

use vswitch_benches::{contestants::Directory, output::html, results::sample::sample};
use vswitch_tests::skip;

fn chromium() -> Option<&'static str> {
    let there = |name: &&str| {
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|d| d.join(name).exists())
    };
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(there)
}

/// Values of attributes and functions that could make a browser fetch something.
fn references(page: &str) -> Vec<&str> {
    let end = |rest: &str| rest.find(['"', '\'', ')', '>', ' ', ';']).unwrap_or(rest.len());
    let starts = ["src=\"", "href=\"", "url(", "@import ", "srcset=\"", "action=\"", "data=\"", "poster=\""];
    let found = starts.iter().flat_map(|start| page.match_indices(start).map(|(at, s)| &page[at + s.len()..]));
    found.map(|rest| &rest[..end(rest)]).collect()
}

#[test]
fn the_report_refers_to_nothing_outside() {
    let page = html(&sample(1));
    // The embedded JSON is data; what is before it is the page.
    let (page, _) = page.split_once("<script type=\"application/json\"").expect("the results are embedded");
    assert_eq!(references(page), ["data:,"], "only the empty icon, which keeps a browser from asking for one");
    assert!(!page.contains("http://") && !page.contains("https://"));
    for plot in page.split("<svg role=\"img\"").skip(1) {
        let start = plot.split_once('>').expect("an svg element").1;
        assert!(start.starts_with("<title>") && !start.starts_with("<title></title>"), "a plot without a title");
    }
}

#[test]
fn a_browser_shows_the_report_without_complaint() {
    let Some(browser) = chromium() else { return skip("install a browser: apt-get install chromium") };
    let directory = Directory::new("report").expect("room for temporary files");
    let (page, picture) = (directory.path().join("report.html"), directory.path().join("report.png"));
    std::fs::write(&page, html(&sample(1))).expect("the page is written");
    let run = |arguments: &[String]| {
        let output = Command::new(browser)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,6000"])
            // Console messages, errors of the page among them, go to standard error as ":CONSOLE(".
            .args(["--enable-logging=stderr", "--disable-background-networking", "--no-first-run", "--disable-sync"])
            .arg(format!("--user-data-dir={}", directory.path().join("profile").display()))
            .args(arguments)
            .arg(format!("file://{}", page.display()))
            .output()
            .expect("the browser runs");
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !complaints.contains("CONSOLE("), "{complaints}");
        output.stdout
    };
    let dom = String::from_utf8(run(&["--dump-dom".to_owned()])).expect("a page is text");
    for part in [
        "vswitch laboratory</h1>",
        "Took no part",
        "generator-bound",
        "Loss over load",
        "flame graph of vswitch",
        "</html>",
    ] {
        assert!(dom.contains(part), "{part} is not in what the browser made of the page");
    }
    assert!(dom.matches("<polyline").count() > 20 && dom.matches("<rect").count() > 100);
    run(&[format!("--screenshot={}", picture.display())]);
    let picture = std::fs::read(&picture).expect("there is a picture");
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 50_000, "{} bytes", picture.len());
}
