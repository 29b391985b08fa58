//! `vswitch brctl` beside bridge-utils' own brctl: the same session, on a kernel bridge in a namespace and on the switch,
//! must print the same (addresses aside) and end with the same status.

use std::process::{Command, Output};

use vswitch_benches::netns::{Namespace, unique, wait_for};
use vswitch_tests::{Daemon, PATIENCE, binary};

/// Addresses and ages differ between any two bridges; everything else must not.
fn comparable(output: &Output) -> (Option<i32>, String) {
    if !output.status.success() {
        // It prints some errors on its standard output; ours go where errors belong.
        return (output.status.code(), String::new());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let is_address = |word: &str| {
        word.len() == 17 && word.split(':').count() == 6 || word.strip_prefix("8000.").is_some_and(|id| id.len() == 12)
    };
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split('\t').collect();
            words.iter().map(|w| if is_address(w) { "ADDRESS" } else { w }).collect::<Vec<_>>().join("\t")
        })
        .collect();
    (output.status.code(), lines.join("\n"))
}

struct Two {
    kernel: Namespace,
    daemon: Daemon,
    link: std::path::PathBuf,
}

impl Two {
    fn kernel(&self, words: &[&str]) -> Output {
        self.kernel.output(&[&["brctl"], words].concat()).expect("bridge-utils")
    }

    fn ours(&self, words: &[&str]) -> Output {
        Command::new(&self.link).env("VSWITCH_API", self.daemon.socket()).args(words).output().expect("runs")
    }

    fn same(&self, words: &[&str]) {
        let (kernel, ours) = (self.kernel(words), self.ours(words));
        assert_eq!(comparable(&ours), comparable(&kernel), "brctl {}: {ours:?}", words.join(" "));
    }
}

#[test]
fn a_session_prints_what_bridge_utils_prints() {
    let daemon = Daemon::start(&[]).expect("starts");
    let link = daemon.file("brctl");
    std::os::unix::fs::symlink(binary().expect("built"), &link).expect("linked");
    let kernel = Namespace::new("vbk").expect("root");
    let far = Namespace::new("vbf").expect("root");
    let (bridge, other, one, two) = (unique("vb"), unique("vb"), unique("vb"), unique("vb"));
    // The same names in the kernel bridge's namespace and here; all far ends go with their namespace.
    for (i, name) in [&one, &two].into_iter().enumerate() {
        for (place, prefix) in [(Some(kernel.name()), "k"), (None, "s")] {
            let peer = format!("{prefix}{i}");
            let mut words = vec!["ip", "link", "add", name, "type", "veth", "peer", "name", &peer, "netns", far.name()];
            if let Some(place) = place {
                words.splice(1..1, ["-n", place]);
            }
            vswitch_benches::netns::exec(&words).expect("made");
            far.exec(&["ip", "link", "set", &peer, "up"]).expect("up");
            words = vec!["ip", "link", "set", name, "up"];
            if let Some(place) = place {
                words.splice(1..1, ["-n", place]);
            }
            vswitch_benches::netns::exec(&words).expect("up");
        }
    }
    let both = Two { kernel, daemon, link };
    let (b, o) = (bridge.as_str(), other.as_str());
    both.same(&["show"]);
    both.same(&["addbr", b]);
    both.same(&["addbr", b]);
    both.same(&["addbr", o]);
    both.same(&["show"]);
    both.same(&["addif", b, &one]);
    both.same(&["addif", b, &two]);
    both.same(&["addif", o, &two]);
    both.same(&["addif", "nosuch", &one]);
    both.same(&["addif", b, "nosuch"]);
    both.same(&["show"]);
    both.same(&["show", b]);
    both.same(&["show", "nosuch"]);
    both.same(&["setageing", b, "30"]);
    both.same(&["setageing", b, "soon"]);
    both.same(&["setageing", b]);
    both.same(&["stp", b, "off"]);
    both.same(&["setfd", b, "2"]);
    both.same(&["frobnicate"]);
    both.same(&["delif", o, &two]);
    both.same(&["showmacs", "nosuch"]);
    assert_eq!(both.daemon.json(&["domain", "show", b]).expect("shown")[0]["spec"]["ageing"], 30);
    assert_eq!(both.ours(&["stp", b, "on"]).status.code(), Some(1), "there is no spanning tree to turn on");

    // A host behind the second interface is in the table, under that interface's number, and the bridge's own address is local.
    far.exec(&["ip", "address", "add", "10.66.0.1/24", "dev", "s1"]).expect("address");
    far.exec(&["ip", "neigh", "add", "10.66.0.2", "lladdr", "02:00:00:00:66:02", "dev", "s1"]).expect("neighbour");
    wait_for("the host is learned", PATIENCE, || {
        far.output(&["ping", "-c", "1", "-W", "1", "10.66.0.2"]).is_ok()
            && String::from_utf8_lossy(&both.ours(&["showmacs", b]).stdout)
                .lines()
                .any(|line| line.starts_with("  2\t") && line.contains("\tno\t\t   "))
    })
    .expect("learned");
    let macs = String::from_utf8_lossy(&both.ours(&["showmacs", b]).stdout).into_owned();
    let header = String::from_utf8_lossy(&both.kernel(&["showmacs", b]).stdout).into_owned();
    assert_eq!(macs.lines().next(), header.lines().next());
    assert_eq!(macs.lines().filter(|l| l.contains("\tyes\t\t   0.00")).count(), 3, "{macs}");

    both.same(&["delif", b, &one]);
    both.same(&["delif", b, &one]);
    both.same(&["show"]);
    both.same(&["delbr", b]);
    both.same(&["delbr", b]);
    both.same(&["delbr", o]);
    both.same(&["show"]);
    assert_eq!(
        both.daemon.json(&["port", "show"]).expect("shown"),
        serde_json::json!([]),
        "members go with the bridge"
    );
    for name in [&one, &two] {
        // The device is the user's: it stays. Its far end's namespace would take it too, but later.
        vswitch_benches::netns::exec(&["ip", "link", "del", name]).expect("still there");
    }
}
