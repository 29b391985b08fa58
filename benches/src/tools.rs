//! Debian's measuring programs: iperf3 and ping.

use std::time::Duration;

use anyhow::{Context, bail};

use crate::netns::{Namespace, exec, wait_for};

/// Whether a program is on the path.
#[must_use]
pub fn installed(program: &str) -> bool {
    exec(&["sh", "-c", &format!("command -v {program}")]).is_ok()
}

/// What an iperf3 run found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tcp {
    /// Bits per second at the receiver.
    pub bits_per_second: f64,
    /// Segments sent again.
    pub retransmits: u64,
}

/// Runs one TCP stream from `client` to `server` (at `address`).
///
/// # Errors
/// iperf3 is missing or fails.
pub fn tcp(client: &Namespace, server: &Namespace, address: &str, time: Duration) -> anyhow::Result<Tcp> {
    iperf3(client, server, address, time, &[])
}

/// Runs so many TCP streams from `client` to `server` (at `address`) at once, for a second at least.
///
/// # Errors
/// iperf3 is missing or fails.
pub fn tcp_streams(
    client: &Namespace,
    server: &Namespace,
    address: &str,
    time: Duration,
    streams: u64,
) -> anyhow::Result<Tcp> {
    iperf3(client, server, address, time, &["-P", &streams.to_string()])
}

/// The same with the data from `server` to `client`, which connects all the same.
///
/// # Errors
/// iperf3 is missing or fails.
pub fn tcp_back(client: &Namespace, server: &Namespace, address: &str, time: Duration) -> anyhow::Result<Tcp> {
    iperf3(client, server, address, time, &["--reverse"])
}

fn iperf3(
    client: &Namespace,
    server: &Namespace,
    address: &str,
    time: Duration,
    options: &[&str],
) -> anyhow::Result<Tcp> {
    let _server = server.spawn(&["iperf3", "-s", "-1"])?;
    wait_for("iperf3 server", Duration::from_secs(30), || {
        server.exec(&["ss", "-Hltn", "sport = :5201"]).is_ok_and(|out| !out.is_empty())
    })?;
    let seconds = format!("{:.0}", time.as_secs_f64().max(1.0));
    // iperf3 waits for ever for a peer that does not answer.
    let limit = format!("{:.0}", time.as_secs_f64() + 20.0);
    let words = ["timeout", &limit, "iperf3", "-J", "-c", address, "-t", &seconds];
    let out = client.exec(&[&words[..], options].concat())?;
    let json: serde_json::Value = serde_json::from_str(&out).context("iperf3 printed no JSON")?;
    Ok(Tcp {
        bits_per_second: json["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .context("no rate in iperf3's answer")?,
        retransmits: json["end"]["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
    })
}

/// A flood ends after so many seconds at the latest: where replies are late, it sends only a hundred per second.
const FLOOD_LIMIT_S: &str = "5";

/// What `ping` found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ping {
    /// Echo requests sent.
    pub sent: u32,
    /// Replies.
    pub received: u32,
    /// Mean round trip.
    pub mean_us: f64,
}

/// Sends echo requests; `flood`: each as soon as the last one is answered.
///
/// # Errors
/// ping is missing. No answers are a result, not an error.
pub fn ping(from: &Namespace, address: &str, count: u32, flood: bool) -> anyhow::Result<Ping> {
    let count = count.to_string();
    let mut words = vec!["ping", "-n", "-q", "-W", "1", "-c", &count];
    words.extend(if flood { &["-f", "-w", FLOOD_LIMIT_S][..] } else { &["-i", "0.05"][..] });
    words.push(address);
    let output = from.output(&words)?;
    parse_ping(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("ping printed: {}", String::from_utf8_lossy(&output.stderr)))
}

fn parse_ping(text: &str) -> anyhow::Result<Ping> {
    let Some(line) = text.lines().find(|l| l.contains("packets transmitted")) else { bail!("no summary") };
    let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter(|s| !s.is_empty());
    let sent = numbers.next().context("sent")?.parse()?;
    let received = numbers.next().context("received")?.parse()?;
    let mean_us = text
        .lines()
        .find_map(|l| l.split_once("= ").filter(|_| l.contains("min/avg")))
        .and_then(|(_, values)| values.split('/').nth(1)?.parse::<f64>().ok())
        .map_or(0.0, |ms| ms * 1000.0);
    Ok(Ping { sent, received, mean_us })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_summary_is_read() {
        let text = "--- 10.0.0.1 ping statistics ---\n3 packets transmitted, 2 received, 33% packet loss, time 2ms\nrtt min/avg/max/mdev = 0.010/0.025/0.041/0.012 ms, ipg/ewma 0.1/0.0 ms\n";
        assert_eq!(parse_ping(text).expect("summary"), Ping { sent: 3, received: 2, mean_us: 25.0 });
        let lost = "3 packets transmitted, 0 received, 100% packet loss, time 2ms\n";
        assert_eq!(parse_ping(lost).expect("summary"), Ping { sent: 3, received: 0, mean_us: 0.0 });
    }
}
