//! The outside contract: refusals change nothing, messages name the mend, the API withstands abuse.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::Command,
};

use vswitch_benches::netns::unique;
use vswitch_tests::{Daemon, PATIENCE, binary};

#[test]
fn refusals_name_the_mend_and_change_nothing() {
    let daemon =
        Daemon::start(&["--domain", "blue", "--port", &format!("a=tap,device={}", unique("vc"))]).expect("starts");
    let before = (
        daemon.json(&["port", "show"]).expect("shown")[0]["spec"].clone(),
        daemon.cli(&["domain", "show"]).expect("shown"),
    );
    for (words, part) in [
        (&["port", "add", "a=tap"][..], "already"),
        (&["port", "add", "b=tap,domain=green"], "vswitch domain add green"),
        (&["port", "add", "b=warp"], "known kinds"),
        (&["port", "add", "name-that-is-too-long=tap"], "device="),
        (&["port", "del", "nobody"], "vswitch port show"),
        (&["port", "set", "a", "colour=red"], "unknown key"),
        (&["port", "set", "a", "mtu=9", "link=down"], "mtu=9"),
        (&["port", "detach", "a", "blue"], "not attached"),
        (&["port", "attach", "a", "blue"], "same frames"),
        (&["domain", "add", "blue"], "already"),
        (&["domain", "del", "red"], "no domain"),
        (&["domain", "set", "blue", "ageing=99999"], "60000"),
        (&["fdb", "add", "ff:ff:ff:ff:ff:ff", "a"], "unicast"),
        (&["fdb", "add", "02:00:00:00:00:01", "nobody"], "no port"),
        (&["fdb", "del", "02:00:00:00:00:01"], "not in the table"),
        (&["fdb", "show", "--colour"], "unexpected argument"),
    ] {
        let error = daemon.cli(words).expect_err("refused").to_string();
        assert!(error.contains(part), "{words:?}: {error}");
    }
    let after = (
        daemon.json(&["port", "show"]).expect("shown")[0]["spec"].clone(),
        daemon.cli(&["domain", "show"]).expect("shown"),
    );
    assert_eq!(before, after);
}

#[test]
fn exit_codes_are_those_of_the_contract() {
    let run = |words: &[&str]| Command::new(binary().expect("built")).args(words).output().expect("runs").status.code();
    assert_eq!(run(&["--api", "/nonexistent/api.sock", "status"]), Some(1));
    assert_eq!(run(&["status", "--colour"]), Some(2));
    assert_eq!(run(&["--help"]), Some(0));
    for command in ["run", "apply", "status", "port", "domain", "fdb", "monitor", "brctl", "demo", "bench"] {
        assert_eq!(run(&[command, "--help"]), Some(0), "{command}");
    }
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let (theirs, ours) = std::io::pipe().expect("made");
    drop(theirs);
    let output = Command::new(binary().expect("built"))
        .args(["bench", "list"])
        .stdout(ours)
        .stderr(std::process::Stdio::piped())
        .output()
        .expect("runs");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(141), ""));
}

#[test]
fn apply_owns_its_objects_and_can_be_tried_first() {
    let daemon = Daemon::start(&[]).expect("starts");
    let (one, two) = (unique("vc"), unique("vc"));
    daemon.cli(&["port", "add", &format!("mine=tap,device={one}")]).expect("added");
    let config = daemon.file("c.toml");
    let path = config.to_str().expect("text").to_owned();
    std::fs::write(&config, format!("[[domain]]\nname = \"web\"\n[[port]]\nname = \"f\"\nkind = \"tap\"\ndevice = \"{two}\"\ndomains = [\"web\"]\n"))
        .expect("written");
    let dry = daemon.cli(&["apply", &path, "--dry-run"]).expect("planned");
    assert_eq!(dry, "would add domain web\nwould add port f\n");
    assert_eq!(daemon.json(&["status"]).expect("shown")["ports_up"], 1);
    assert_eq!(daemon.cli(&["apply", &path]).expect("applied"), "add domain web\nadd port f\n");
    assert_eq!(daemon.cli(&["apply", &path]).expect("applied"), "nothing to do\n");
    std::fs::write(&config, "[[port]]\nname = \"f\"\nkind = \"tap\"\nspeed = 10\n").expect("written");
    let error = daemon.cli(&["apply", &path]).expect_err("unknown key").to_string();
    assert!(error.contains("line 4") && error.contains("speed"), "{error}");
    std::fs::write(&config, "").expect("written");
    assert_eq!(daemon.cli(&["apply", &path]).expect("applied"), "remove port f\nremove domain web\n");
    assert_eq!(daemon.cli(&["apply", &path, "--prune"]).expect("applied"), "remove port mine\n");
}

#[test]
fn the_api_withstands_abuse() {
    let daemon = Daemon::start(&[]).expect("starts");
    let talk = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(daemon.socket()).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        // The server may close while we still write: that is an answer too.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    // Half requests stay open while others are served.
    let half: Vec<UnixStream> = (0..50)
        .map(|_| {
            let mut stream = UnixStream::connect(daemon.socket()).expect("connects");
            stream
                .write_all(b"POST /v1/ports HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n{\"spec\"")
                .expect("sent");
            stream
        })
        .collect();
    assert!(daemon.cli(&["status"]).is_ok());
    assert!(talk(b"\0\xff\x01garbage\r\n\r\n").contains("400"));
    assert!(talk(b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").contains("404"));
    let body = vec![b' '; 5 << 20];
    let head = format!(
        "POST /v1/apply HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let answer = talk(&[head.as_bytes(), &body].concat());
    assert!(answer.is_empty() || answer.contains("413"), "{answer}");
    let deep = "[".repeat(100_000);
    let head = format!(
        "POST /v1/ports HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        deep.len()
    );
    assert!(talk(format!("{head}{deep}").as_bytes()).contains(" 4"));
    let openapi = talk(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(openapi.contains("\"openapi\": \"3.1.0\""), "{openapi}");
    drop(half);
    assert_eq!(daemon.json(&["status"]).expect("alive")["ports_up"], 0);
}

#[test]
fn other_users_are_turned_away() {
    let daemon = Daemon::start(&[]).expect("starts");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(daemon.socket()).expect("there").permissions());
    assert_eq!(mode & 0o777, 0o660);
    // Even with the mode opened up, the peer's credentials are checked.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(daemon.socket(), open).expect("set");
    let socket = daemon.socket();
    let script = "import socket,sys,os\nos.setgroups([]);os.setgid(65534);os.setuid(65534)\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ns.send(b'GET /v1/status HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n')\nprint(s.recv(4096).decode())";
    let output = Command::new("python3").args(["-c", script]).arg(&socket).output().expect("python3 runs");
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        answer.contains("403") && answer.contains("permission denied"),
        "{answer}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn two_switches_do_not_share_a_socket_or_a_state() {
    let daemon = Daemon::start(&[]).expect("starts");
    let second = |api: &std::path::Path, state: &std::path::Path| {
        let output = Command::new(binary().expect("built"))
            .arg("--api")
            .arg(api)
            .arg("run")
            .arg("--state")
            .arg(state)
            .output()
            .expect("runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, error) = second(&daemon.file("other.sock"), &daemon.file("state"));
    assert!(code == Some(1) && error.contains("--state"), "{error}");
    let (code, error) = second(&daemon.socket(), &daemon.file("other-state"));
    assert!(code == Some(1) && error.contains("--api"), "{error}");
    assert!(daemon.cli(&["status"]).is_ok(), "the first one is unharmed");
}
