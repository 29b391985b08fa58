//! An `ovs-vsctl` command line, read: options, then commands with options of their own, parted by `--`.

use std::time::Duration;

use super::{Failure, fail};

/// Options that hold for the whole command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Globals {
    /// How long all of it may take.
    pub timeout: Option<Duration>,
    /// `--help`.
    pub help: bool,
    /// `--version`.
    pub version: bool,
}

/// One command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// `--may-exist`.
    pub may_exist: bool,
    /// `--if-exists`.
    pub if_exists: bool,
    /// `--id=@name`: only rows that cannot be made here have one.
    pub id: bool,
    /// How rows are printed.
    pub table: TableStyle,
    /// The command and its arguments.
    pub words: Vec<String>,
}

/// How `list` and `find` print.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableStyle {
    /// `--columns=`, all unless given.
    pub columns: Option<Vec<String>>,
    /// `--no-headings`.
    pub no_headings: bool,
    /// `--data=`.
    pub data: Data,
}

/// How a value is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Data {
    /// As it is written on the command line.
    #[default]
    Text,
    /// Without quotes and brackets.
    Bare,
    /// As in the database's protocol (RFC 7047).
    Json,
}

/// Reads a command line.
///
/// # Errors
/// An option that is not known.
pub fn parse(arguments: &[String]) -> Result<(Globals, Vec<Command>), Failure> {
    let mut globals = Globals::default();
    let mut shared = TableStyle::default();
    let mut commands = Vec::new();
    for (index, group) in arguments.split(|word| word == "--").enumerate() {
        let mut command = Command { table: shared.clone(), ..Command::default() };
        let mut words = group.iter();
        while let Some(word) = words.next() {
            // Arguments of a command may begin with a dash; what comes before the command's name is an option.
            if !command.words.is_empty() || !word.starts_with('-') {
                command.words.push(word.clone());
                continue;
            }
            let (option, value) = word.split_once('=').map_or((word.as_str(), None), |(o, v)| (o, Some(v)));
            let style = &mut command.table;
            match (option, value) {
                ("--may-exist", None) => command.may_exist = true,
                ("--if-exists", None) => command.if_exists = true,
                ("--id", Some(_)) => command.id = true,
                ("--columns", Some(list)) => style.columns = Some(list.split(',').map(str::to_owned).collect()),
                ("--no-headings" | "--no-heading", None) => style.no_headings = true,
                ("--bare", None) => (style.no_headings, style.data) = (true, Data::Bare),
                ("-f" | "--format", Some("list")) => {}
                ("-d" | "--data", Some("string")) => style.data = Data::Text,
                ("-d" | "--data", Some("bare")) => style.data = Data::Bare,
                ("-d" | "--data", Some("json")) => style.data = Data::Json,
                ("--timeout", Some(seconds)) => globals.timeout = Some(duration(seconds)?),
                ("-t", None) => globals.timeout = Some(duration(words.next().map_or("", String::as_str))?),
                ("--help" | "-h", None) => globals.help = true,
                ("--version" | "-V", None) => globals.version = true,
                // The switch has no configuration that is not in use, and no log that they would change.
                ("--no-wait" | "--no-syslog", None) => {}
                _ if option.starts_with("-v") || option.starts_with("--verbose") => {}
                _ => {
                    return fail(format!(
                        "option '{word}' is not known here; known: --timeout=S --if-exists --may-exist --columns=… --no-headings --bare --format=list --data=string|bare|json --no-wait --no-syslog --verbose"
                    ));
                }
            }
        }
        if index == 0 && command.words.is_empty() {
            // Options before the first `--` hold for all that follows.
            shared = command.table.clone();
        }
        if !command.words.is_empty() {
            commands.push(command);
        } else if command.may_exist || command.if_exists {
            return fail("missing command name (use --help for help)");
        }
    }
    Ok((globals, commands))
}

fn duration(text: &str) -> Result<Duration, Failure> {
    match text.parse() {
        Ok(0) => Ok(Duration::from_secs(u64::from(u32::MAX))),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => fail(format!("timeout value {text} is not a number of seconds")),
    }
}

/// One value, or a list of them, as it is written on the command line: `10`, `"a b"`, `[1, 2]`, `{a=b, "c d"=e}`.
/// Pairs are keys with values; everything else has no value.
///
/// # Errors
/// A quote or a bracket that does not end.
pub fn items(text: &str) -> Result<Vec<(String, Option<String>)>, Failure> {
    let trimmed = text.trim();
    let inner = [('[', ']'), ('{', '}')]
        .into_iter()
        .find_map(|(open, close)| trimmed.strip_prefix(open).map(|rest| rest.strip_suffix(close)));
    let Some(inner) = inner.unwrap_or(Some(trimmed)) else { return fail(format!("{text}: a bracket is missing")) };
    let mut all = Vec::new();
    let mut rest = inner.trim_start();
    while !rest.is_empty() {
        let (key, after) = atom(rest)?;
        let (value, after) = match after.trim_start().strip_prefix('=') {
            Some(after) => atom(after.trim_start()).map(|(value, after)| (Some(value), after))?,
            None => (None, after),
        };
        all.push((key, value));
        rest = after.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    Ok(all)
}

/// A single value: what is not quoted goes to the end, whatever it holds.
///
/// # Errors
/// A quote that does not end.
pub fn single(text: &str) -> Result<String, Failure> {
    if !text.starts_with('"') {
        return Ok(text.to_owned());
    }
    match atom(text)? {
        (value, "") => Ok(value),
        (_, rest) => fail(format!("{text}: trailing garbage \"{rest}\"")),
    }
}

fn atom(text: &str) -> Result<(String, &str), Failure> {
    if text.starts_with('"') {
        let mut parsed = serde_json::Deserializer::from_str(text).into_iter::<String>();
        return match parsed.next() {
            Some(Ok(value)) => Ok((value, &text[parsed.byte_offset()..])),
            _ => fail(format!("{text}: missing end of quoted string")),
        };
    }
    let end = text.find([',', '=', ' ', '}', ']']).unwrap_or(text.len());
    if end == 0 {
        return fail(format!("{text}: a value is missing"));
    }
    Ok((text[..end].to_owned(), &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_belong_to_the_line_or_to_a_command() {
        let line = words("--timeout=5 -- --if-exists del-port p -- add-port br p tag=3 -- set Interface p a:b=--x");
        let (globals, commands) = parse(&line).expect("known");
        assert_eq!(globals.timeout, Some(Duration::from_secs(5)));
        assert_eq!(
            commands.iter().map(|c| c.words.join(" ")).collect::<Vec<_>>(),
            ["del-port p", "add-port br p tag=3", "set Interface p a:b=--x"]
        );
        assert_eq!(commands.iter().map(|c| c.if_exists).collect::<Vec<_>>(), [true, false, false]);
        let (_, commands) =
            parse(&words("--if-exists --format=list --data=json --no-headings --columns=statistics list Interface p"))
                .expect("known");
        assert!(commands[0].if_exists && commands[0].table.no_headings && commands[0].table.data == Data::Json);
        for wrong in ["--db=unix:/x show", "--timeout=x show", "--may-exist"] {
            parse(&words(wrong)).expect_err(wrong);
        }
    }

    #[test]
    fn values_are_read_as_they_are_printed() {
        let pair = |k: &str, v: &str| (k.to_owned(), Some(v.to_owned()));
        assert_eq!(items("{x=y, \"z z\"=\"a,b\"}").expect("a map"), [pair("x", "y"), pair("z z", "a,b")]);
        let alone: Vec<_> = items("[1,2, 3]").expect("a set").into_iter().map(|(key, _)| key).collect();
        assert_eq!(alone, ["1", "2", "3"]);
        assert_eq!(items("[]").expect("empty"), []);
        assert_eq!(single("\"52:54:00:00:00:01\"").expect("quoted"), "52:54:00:00:00:01");
        assert_eq!(single("a=b,c").expect("plain"), "a=b,c");
        for wrong in ["{a=b", "\"a", "[,]", "a="] {
            items(wrong).expect_err(wrong);
        }
        single("\"a\"b").expect_err("garbage");
    }
}
