//! The line to a guest's agent: the guest's virtio console, which is QEMU's standard input and output, or a socket of it.

use std::{
    io::{Read, Write},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// What the agent says when it begins to listen.
const READY: &str = "guest ready";

pub(super) struct Console {
    input: Box<dyn Write + Send>,
    output: Receiver<Vec<u8>>,
    buffer: Vec<u8>,
    /// The number of the last command.
    number: u64,
}

impl Console {
    pub(super) fn new(input: impl Write + Send + 'static, mut output: impl Read + Send + 'static) -> Console {
        let (sender, receiver) = channel();
        // Ends with QEMU, whose end of the pipe or socket it reads.
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                match output.read(&mut chunk) {
                    Ok(n @ 1..) if sender.send(chunk[..n].to_vec()).is_ok() => {}
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    _ => break,
                }
            }
        });
        Console { input: Box::new(input), output: receiver, buffer: Vec::new(), number: 0 }
    }

    fn more(&mut self, deadline: Instant) -> anyhow::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.buffer.extend(self.output.recv_timeout(left).context("the guest says nothing more")?);
        Ok(())
    }

    fn line(&mut self, deadline: Instant) -> anyhow::Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim().to_owned());
            }
            self.more(deadline)?;
        }
    }

    /// Waits until the agent listens, as it does once after every boot.
    pub(super) fn ready(&mut self, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        while self.line(deadline).context("it boots")? != READY {}
        Ok(())
    }

    /// Has a command run that nobody waits for: the guest may not live to answer.
    pub(super) fn send(&mut self, command: &str) -> anyhow::Result<()> {
        if command.contains('\n') {
            bail!("a command is one line: {command}");
        }
        self.number += 1;
        writeln!(self.input, "{} {command}", self.number)?;
        Ok(self.input.flush()?)
    }

    /// Runs a command of the guest's shell; its status and what it printed.
    pub(super) fn run(&mut self, command: &str, patience: Duration) -> anyhow::Result<(i32, String)> {
        self.send(command)?;
        let deadline = Instant::now() + patience;
        let wanted = format!("done {} ", self.number);
        loop {
            let line = self.line(deadline)?;
            let Some((status, length)) = line.strip_prefix(&wanted).and_then(|rest| rest.split_once(' ')) else {
                continue;
            };
            let (status, length) = (status.parse()?, length.trim().parse()?);
            while self.buffer.len() < length {
                self.more(deadline)?;
            }
            let output: Vec<u8> = self.buffer.drain(..length).collect();
            return Ok((status, String::from_utf8_lossy(&output).into_owned()));
        }
    }

    /// The other side of a migration: this line goes on where that one was.
    pub(super) fn adopt(&mut self, source: &Console) {
        self.number = source.number;
    }
}
