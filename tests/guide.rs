//! The guide's pages, done as they say: the commands of every `console` block of docs/guide/NN-*.md, in order, in a namespace of the page's own,
//! must print what the page shows.
//!
//! A line with a prompt (`# `, `$ `, and `> ` where a command goes on) is a command, the others are its output. `<!-- run … -->` has commands that
//! the reader does not see (devices that stand for his NICs) and that print nothing. `…` stands for anything within a line, and alone for any
//! number of lines. MAC addresses (but those with 52:54:00), times and counters are not compared.
//! `GUIDE_WRITE=1` puts what was printed into the page where it is something else.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::Command,
};

use vswitch_benches::{netns::unique, tools::installed};
use vswitch_tests::{binary, skip};

/// A machine of its own: namespaces of network, mounts and processes, so that nothing is left of it. /run and /var/lib are empty, and with them
/// what `ip netns` makes and the switch remembers.
const BEGIN: &str = r#"
mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && mkdir /run/netns /run/bin /run/lock && cd /run || exit 1
ln -s "$VSWITCH" /run/bin/vswitch && PATH=/run/bin:$PATH
ip link set lo up
vswitch run >/run/log 2>&1 &
for i in $(seq 200); do vswitch status >/dev/null 2>&1 && break; sleep 0.1; done
"#;
/// Before the output of a command, with its number.
const MARK: &str = "@@ command ";
/// Seconds for a page.
const LIMIT_S: &str = "180";

/// A command, and the lines of its page that are its output; none: it is hidden, and prints nothing.
struct Step {
    command: String,
    output: Option<std::ops::Range<usize>>,
}

fn steps(page: &[&str]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut shown, mut hidden) = (false, false);
    for (at, line) in page.iter().enumerate() {
        match *line {
            "```console" => shown = true,
            "```" => shown = false,
            "<!-- run" => {
                hidden = true;
                steps.push(Step { command: String::new(), output: None });
            }
            "-->" => hidden = false,
            _ if hidden => {
                let step = steps.last_mut().expect("begun above");
                let _ = writeln!(step.command, "{line}");
            }
            _ if shown => {
                match (line.strip_prefix("# ").or_else(|| line.strip_prefix("$ ")), line.strip_prefix("> ")) {
                    (Some(command), _) => {
                        steps.push(Step { command: command.to_owned(), output: Some(at + 1..at + 1) })
                    }
                    (_, Some(more)) => {
                        let step = steps.last_mut().expect("a block begins with a command");
                        let _ = write!(step.command, "\n{more}");
                        step.output = Some(at + 1..at + 1);
                    }
                    _ => {
                        let output = steps.last_mut().and_then(|step| step.output.as_mut());
                        output.expect("a block begins with a command").end = at + 1;
                    }
                }
            }
            _ => {}
        }
    }
    steps
}

/// What each command prints.
fn carry_out(steps: &[Step]) -> anyhow::Result<Vec<String>> {
    let mut script = BEGIN.to_owned();
    for (number, Step { command, .. }) in steps.iter().enumerate() {
        let _ = write!(script, "echo '{MARK}{number}'\n{{\n{command}\n}} </dev/null\n");
    }
    let path = std::env::temp_dir().join(unique("vswitch-guide-"));
    std::fs::write(&path, script)?;
    let output = Command::new("timeout")
        .args([LIMIT_S, "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"])
        .arg(format!("exec bash {} 2>&1", path.display()))
        .env("VSWITCH", binary()?)
        .env_remove("VSWITCH_API")
        .output();
    std::fs::remove_file(&path)?;
    let text = String::from_utf8_lossy(&output?.stdout).into_owned();
    let (begin, rest) = text.split_once(MARK).unwrap_or((&text, ""));
    anyhow::ensure!(begin.is_empty(), "it did not begin: {begin}");
    let printed: Vec<String> =
        rest.split(MARK).map(|part| part.split_once('\n').map_or("", |(_, output)| output).to_owned()).collect();
    anyhow::ensure!(printed.len() == steps.len(), "it broke off after {} commands:\n{text}", printed.len());
    Ok(printed)
}

/// A word as it is compared.
fn plain(word: &str, counters: bool) -> String {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let hex = |text: &str, n: usize| text.len() == n && text.bytes().all(|b| b.is_ascii_hexdigit());
    if word.split(':').count() == 6 && word.split(':').all(|part| hex(part, 2)) && !word.starts_with("52:54:00") {
        return "MAC".to_owned();
    }
    if word.strip_prefix("8000.").is_some_and(|id| hex(id, 12)) {
        return "BRIDGE".to_owned();
    }
    let number = word.strip_prefix("time=").unwrap_or(word);
    // `0.3`, or a span as iperf3 has it: `0.00-3.01`.
    let fraction = number.split('-').all(|part| part.split_once('.').is_some_and(|(a, b)| digits(a) && digits(b)));
    let duration = number.strip_suffix("ms").is_some_and(digits);
    if word.starts_with("time=") || duration || fraction || counters && digits(word) {
        "N".to_owned()
    } else {
        word.to_owned()
    }
}

/// Lines as they are compared. Numbers are counters in tables that have such a column, and after the word `pid`.
fn plainly<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut counters = false;
    let line = |line: &str| {
        let has_counters = [" RX ", " AGE", " ENDS IN", " pid "].iter().any(|column| line.contains(column));
        counters = (counters || has_counters) && !line.is_empty();
        line.split_whitespace().map(|word| plain(word, counters)).collect::<Vec<_>>().join(" ")
    };
    let mut lines: Vec<String> = lines.map(str::trim_end).map(line).collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

fn line_matches(pattern: &str, line: &str) -> bool {
    match pattern.split_once('…') {
        None => pattern == line,
        Some((head, tail)) => line.strip_prefix(head).is_some_and(|rest| {
            rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| line_matches(tail, &rest[at..]))
        }),
    }
}

fn matches(pattern: &[String], lines: &[String]) -> bool {
    match (pattern.split_first(), lines.split_first()) {
        (None, None) => true,
        (Some((any, rest)), _) if any == "…" => (0..=lines.len()).any(|at| matches(rest, &lines[at..])),
        (Some((first, rest)), Some((line, lines))) => line_matches(first, line) && matches(rest, lines),
        _ => false,
    }
}

fn guide() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guide")
}

fn check(name: &str) {
    for program in ["brctl", "nft", "dnsmasq", "busybox", "iperf3", "tcpdump"] {
        if !installed(program) {
            return skip(&format!("{program} is not installed"));
        }
    }
    let path = guide().join(name);
    let text = std::fs::read_to_string(&path).expect("the page is there");
    let page: Vec<&str> = text.lines().collect();
    let steps = steps(&page);
    let printed = carry_out(&steps).expect("the page is carried out");
    let (mut written, mut kept, mut wrong) = (String::new(), 0, String::new());
    for (step, printed) in steps.iter().zip(&printed) {
        let range = step.output.clone().unwrap_or(kept..kept);
        let expected = &page[range.clone()];
        let is_right = matches(&plainly(expected.iter().copied()), &plainly(printed.lines()));
        if !is_right {
            let _ = writeln!(
                wrong,
                "\n# {}\nthe page says:\n{}\nit printed:\n{printed}",
                step.command,
                expected.join("\n")
            );
        }
        for line in &page[kept..range.start] {
            let _ = writeln!(written, "{line}");
        }
        let now: Vec<&str> = if is_right { expected.to_vec() } else { printed.trim_end().lines().collect() };
        for line in now {
            let _ = writeln!(written, "{}", line.trim_end());
        }
        kept = range.end;
    }
    for line in &page[kept..] {
        let _ = writeln!(written, "{line}");
    }
    if std::env::var_os("GUIDE_WRITE").is_some() {
        std::fs::write(&path, written).expect("written");
    }
    assert!(wrong.is_empty(), "{name}:{wrong}");
}

macro_rules! pages {
    ($($test:ident $page:literal)*) => {
        const PAGES: &[&str] = &[$($page),*];
        $(#[test] fn $test() { check($page); })*
    };
}

pages! {
    bridges "01-bridges.md"
    isolated "02-isolated.md"
    routed "03-routed.md"
    nat "04-nat.md"
    bridged "05-bridged.md"
    macvtap "06-macvtap.md"
    passthrough "07-passthrough.md"
    open_vswitch "08-open-vswitch.md"
    libvirt "09-libvirt.md"
    clean_and_rates "10-clean-and-rates.md"
    namespaces "11-namespaces.md"
    tun "12-tun.md"
}

#[test]
fn every_numbered_page_is_carried_out() {
    let entries = std::fs::read_dir(guide()).expect("there is a guide");
    let mut names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.starts_with(|c: char| c.is_ascii_digit()));
    names.sort();
    assert_eq!(names, PAGES);
}

#[test]
fn a_page_is_compared_with_care() {
    let same = |page: &str, printed: &str| matches(&plainly(page.lines()), &plainly(printed.lines()));
    assert!(same("64 bytes from 10.0.0.2: ttl=64 time=0.1 ms", "64 bytes from 10.0.0.2: ttl=64 time=12 ms"));
    assert!(!same("64 bytes from 10.0.0.2: ttl=64 time=0.1 ms", "64 bytes from 10.0.0.3: ttl=64 time=0.1 ms"));
    assert!(same("a 02:00:00:00:00:01 b", "a  7e:00:00:00:00:01 b"));
    assert!(!same("a 52:54:00:00:00:01", "a 52:54:00:00:00:02"));
    assert!(same("PORT  RX  TX\nvm1  5  6", "PORT  RX  TX\nvm1  7  8"));
    assert!(!same("vm1  5", "vm1  6"));
    assert!(same("one\n…\nfour", "one\ntwo\nthree\nfour") && same("o…e", "one") && !same("o…e", "two"));
    assert!(!same("one", "one\ntwo") && !same("one\ntwo", "one"));
}
