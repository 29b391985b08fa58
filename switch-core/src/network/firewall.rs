//! Chains of others that may drop what a network forwards.
//!
//! nftables asks every base chain of a hook, and one drop is enough: an accept in our own table cannot overrule Docker's
//! `FORWARD` policy or firewalld's last rule. So they are looked for and named; an exception is put in only on request,
//! is known by its comment, and is taken out when the network stops.

use std::io;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{exec, nft};

/// A base chain of the forward hook that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// `ip`, `ip6` or `inet`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "table {} {}, chain {}", self.family, self.table, self.chain)
    }
}

/// A chain that may drop what is forwarded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// The chain.
    #[serde(flatten)]
    pub chain: Chain,
    /// Why: `policy drop`, or its last rule.
    pub why: String,
    /// Whether an exception for this network is in it.
    pub fixed: bool,
}

fn list(words: &[&str]) -> io::Result<Vec<Value>> {
    let text = exec::run("nft", "nftables", &[&["-j"], words].concat(), "")?;
    let mut all: Value =
        serde_json::from_str(&text).map_err(|e| io::Error::other(format!("cannot read nft's JSON: {e}")))?;
    Ok(all["nftables"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn rules(chain: &Chain) -> io::Result<Vec<Value>> {
    let listed = list(&["list", "chain", &chain.family, &chain.table, &chain.chain])?;
    Ok(listed.into_iter().filter_map(|mut item| item.get_mut("rule").map(Value::take)).collect())
}

/// Whether a rule drops or rejects whatever comes to it.
fn drops_everything(rule: &Value) -> Option<&'static str> {
    let expressions = rule["expr"].as_array()?;
    let ends =
        expressions.iter().find_map(|e| ["drop", "reject"].into_iter().find(|verdict| e.get(*verdict).is_some()))?;
    let plain = |e: &Value| ["drop", "reject", "counter", "log"].iter().any(|word| e.get(*word).is_some());
    expressions.iter().all(plain).then_some(ends)
}

/// The chains that may drop what a network's table lets through. `families`: which of IPv4 and IPv6 it forwards.
///
/// # Errors
/// nft is missing or refuses.
pub fn blockers(table: &str, ipv4: bool, ipv6: bool) -> io::Result<Vec<Blocker>> {
    let mut found = Vec::new();
    for item in list(&["list", "chains"])? {
        let chain = &item["chain"];
        if chain["hook"] != "forward" || chain["type"] != "filter" {
            continue;
        }
        let this = Chain { family: text(&chain["family"]), table: text(&chain["table"]), chain: text(&chain["name"]) };
        let concerned = match this.family.as_str() {
            "ip" => ipv4,
            "ip6" => ipv6,
            "inet" => true,
            _ => false,
        };
        if !concerned || nft::is_ours(&this.table) {
            continue;
        }
        let rules = rules(&this)?;
        let why = if chain["policy"] == "drop" {
            "policy drop".to_owned()
        } else if let Some(verdict) = rules.last().and_then(drops_everything) {
            format!("its last rule: {verdict}")
        } else {
            continue;
        };
        let fixed = rules.iter().any(|rule| rule["comment"] == *table);
        found.push(Blocker { chain: this, why, fixed });
    }
    Ok(found)
}

/// Puts an exception for a device in front of a chain's rules, in one transaction.
///
/// # Errors
/// nft is missing or refuses.
pub fn except(chain: &Chain, table: &str, device: &str) -> io::Result<()> {
    let Chain { family, table: theirs, chain } = chain;
    let rule = |side: &str| {
        format!("insert rule {family} {theirs} {chain} {side}name \"{device}\" accept comment \"{table}\"\n")
    };
    nft::script(&format!("{}{}", rule("iif"), rule("oif")))
}

/// Takes the exceptions out again; a chain that is gone has none.
///
/// # Errors
/// nft is missing or refuses.
pub fn undo(chain: &Chain, table: &str) -> io::Result<()> {
    let rules = match rules(chain) {
        Ok(rules) => rules,
        Err(e) if e.to_string().contains("No such file") => return Ok(()),
        Err(e) => return Err(e),
    };
    let handles: Vec<String> = rules
        .iter()
        .filter(|rule| rule["comment"] == *table)
        .filter_map(|rule| Some(rule["handle"].as_u64()?.to_string()))
        .collect();
    let Chain { family, table: theirs, chain } = chain;
    let text: String =
        handles.iter().map(|handle| format!("delete rule {family} {theirs} {chain} handle {handle}\n")).collect();
    if text.is_empty() { Ok(()) } else { nft::script(&text) }
}
