use std::path::Path;

use serde_json::{Value, json};

use super::{sample::sample, *};

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmarking/results.schema.json");

/// The part of JSON Schema that the generator uses; whatever else it meets is a failure, not a pass.
fn violations(value: &Value, schema: &Value, root: &Value, at: &str, found: &mut Vec<String>) {
    for (keyword, rule) in schema.as_object().unwrap() {
        let ok = match keyword.as_str() {
            "$schema" | "title" | "description" | "$defs" | "format" | "default" => true,
            "$ref" => {
                let target = root.pointer(rule.as_str().unwrap().trim_start_matches('#')).expect("a definition");
                violations(value, target, root, at, found);
                true
            }
            "type" => {
                let is = |name: &Value| match name.as_str().unwrap() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "number" => value.is_number(),
                    "integer" => value.is_u64() || value.is_i64(),
                    "null" => value.is_null(),
                    other => panic!("type {other}"),
                };
                rule.as_array().map_or_else(|| is(rule), |names| names.iter().any(is))
            }
            "minimum" => value.as_f64().is_none_or(|v| v >= rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|v| v <= rule.as_f64().unwrap()),
            "const" => value == rule,
            "enum" => rule.as_array().unwrap().contains(value),
            "required" => rule.as_array().unwrap().iter().all(|name| value.get(name.as_str().unwrap()).is_some()),
            "properties" => {
                for (name, inner) in rule.as_object().unwrap() {
                    if let Some(inner_value) = value.get(name) {
                        violations(inner_value, inner, root, &format!("{at}/{name}"), found);
                    }
                }
                // A property that the schema does not know is a field without documentation.
                let unknown = |name: &String| rule.get(name).is_none();
                value.as_object().is_none_or(|o| !o.keys().any(unknown))
            }
            "additionalProperties" => {
                let known = schema.get("properties");
                for (name, inner) in value.as_object().unwrap() {
                    if known.is_none_or(|k| k.get(name).is_none()) && rule.is_object() {
                        violations(inner, rule, root, &format!("{at}/{name}"), found);
                    }
                }
                true
            }
            "items" => {
                for (i, inner) in value.as_array().into_iter().flatten().enumerate() {
                    violations(inner, rule, root, &format!("{at}/{i}"), found);
                }
                true
            }
            "prefixItems" => {
                for (inner, rule) in value.as_array().unwrap().iter().zip(rule.as_array().unwrap()) {
                    violations(inner, rule, root, at, found);
                }
                true
            }
            "minItems" => value.as_array().is_none_or(|a| a.len() as u64 >= rule.as_u64().unwrap()),
            "maxItems" => value.as_array().is_none_or(|a| a.len() as u64 <= rule.as_u64().unwrap()),
            "anyOf" | "oneOf" => rule.as_array().unwrap().iter().any(|alternative| {
                let mut inner = Vec::new();
                violations(value, alternative, root, at, &mut inner);
                inner.is_empty()
            }),
            other => panic!("the test does not know the keyword {other}"),
        };
        if !ok {
            found.push(format!("{at}: {keyword}: {value} against {rule}"));
        }
    }
}

fn check(value: &Value) -> Vec<String> {
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(SCHEMA).unwrap()).unwrap();
    let mut found = Vec::new();
    violations(value, &schema, &schema, "", &mut found);
    found
}

#[test]
fn the_schema_file_is_that_of_the_types() {
    let made = serde_json::to_string_pretty(&json_schema()).unwrap() + "\n";
    if std::env::var_os("VSWITCH_UPDATE").is_some() {
        std::fs::write(SCHEMA, &made).unwrap();
    }
    let kept = std::fs::read_to_string(SCHEMA).unwrap_or_default();
    assert!(made == kept, "docs/benchmarking/results.schema.json is old; run this test with VSWITCH_UPDATE=1");
}

#[test]
fn every_field_is_described() {
    fn walk(value: &Value, at: &str) {
        for (name, inner) in value.as_object().into_iter().flatten() {
            if name == "properties" {
                for (field, schema) in inner.as_object().unwrap() {
                    assert!(schema.get("description").is_some(), "{at}: {field} has no description");
                }
            }
            walk(inner, &format!("{at}/{name}"));
        }
    }
    walk(&json_schema(), "");
}

#[test]
fn a_real_file_matches_the_schema_and_a_wrong_one_does_not() {
    let value = serde_json::to_value(sample(1)).unwrap();
    assert_eq!(check(&value), Vec::<String>::new());
    let mut wrong = value.clone();
    wrong["run"]["effort"] = json!("lazy");
    assert_eq!(check(&wrong).len(), 1, "{:?}", check(&wrong));
    let mut wrong = value.clone();
    wrong["scenarios"][0]["cases"][0]["contestants"][1]["rounds"][0]["latency"][0]["p50_ns"] = json!("many");
    assert!(!check(&wrong).is_empty());
    let mut wrong = value;
    wrong["machine"].as_object_mut().unwrap().remove("kernel");
    assert!(!check(&wrong).is_empty());
}

#[test]
fn a_file_is_read_as_it_was_written() {
    let directory = crate::contestants::Directory::new("results").unwrap();
    let path = directory.path().join("results.json");
    let results = sample(3);
    results.save(&path).unwrap();
    results.save(&path).unwrap();
    assert!(Results::load(&path).unwrap() == results, "read is not what was written");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left");

    let fails = |text: &str, part: &str| {
        std::fs::write(&path, text).unwrap();
        let error = Results::load(&path).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    fails("{\"version\": 2}", "has version 2 of the format");
    fails("{\"version\": 1}", "is not a results file");
    fails("no", "is not a results file");
    let mut twice = serde_json::to_value(&results).unwrap();
    twice["scenarios"][1] = twice["scenarios"][0].clone();
    fails(&twice.to_string(), "scenario tap is there twice");
    assert!(Results::load(Path::new("/nowhere/results.json")).unwrap_err().to_string().contains("cannot read"));
}

#[test]
fn a_value_that_is_not_finite_is_not_written() {
    let mut results = sample(1);
    let round = &mut results.scenarios[0].cases[0].contestants[0].rounds[0];
    assert_eq!(Round::new(0).value("throughput", f64::NAN).values.len(), 0);
    round.values.insert("throughput".to_owned(), f64::NAN);
    assert!(results.save(Path::new("/nowhere/results.json")).unwrap_err().to_string().contains("not finite"));
}

/// Two contestants and a skipped one, two rounds.
fn plan() -> Scenario {
    let contestant = |name: &str| Contestant { name: name.to_owned(), ..Contestant::default() };
    let skipped = Some(Skipped { reason: "not installed".to_owned(), install: None });
    Scenario {
        name: "tap".to_owned(),
        about: String::new(),
        metrics: vec![Metric::new("throughput", "frames/s", Direction::HigherIsBetter, 0)],
        cases: vec![Case {
            parameters: Parameters::from([("size".to_owned(), 64.into())]),
            rounds: 2,
            seconds: 1.0,
            contestants: vec![contestant("loop"), contestant("vswitch"), Contestant { skipped, ..contestant("ovs") }],
        }],
    }
}

fn turns(results: &Results) -> Vec<String> {
    results.remaining().iter().map(|t| format!("{} {}", t.round, t.contestant)).collect()
}

#[test]
fn a_run_can_be_resumed_after_any_turn() {
    let mut results = Results::new(Run::default(), Machine::default());
    results.declare(plan());
    let parameters = plan().cases[0].parameters.clone();
    assert_eq!(turns(&results), ["0 loop", "0 vswitch", "1 loop", "1 vswitch"], "interleaved");
    results.record("tap", &parameters, "loop", Round::new(0).value("throughput", 5.0)).unwrap();
    let failed = Round { error: Some("no echo".to_owned()), ..Round::new(0) };
    results.record("tap", &parameters, "vswitch", failed).unwrap();

    // As by a second process: what is there stays, what is new comes to it.
    let text = serde_json::to_string(&results).unwrap();
    let mut results: Results = serde_json::from_str(&text).unwrap();
    let mut wanted = plan();
    wanted.cases[0].contestants[2].skipped = None;
    results.declare(wanted);
    assert_eq!(turns(&results), ["0 vswitch", "0 ovs", "1 loop", "1 vswitch", "1 ovs"]);
    results.record("tap", &parameters, "vswitch", Round::new(0).value("throughput", 4.0)).unwrap();
    assert_eq!(turns(&results).len(), 4);
    let again = results.record("tap", &parameters, "vswitch", Round::new(0)).unwrap_err().to_string();
    assert!(again.contains("is done already"), "{again}");
    assert!(results.record("tap", &parameters, "nobody", Round::new(0)).is_err());
    results.skip("tap", &parameters, "ovs", Skipped { reason: "crashed".to_owned(), install: None }).unwrap();
    assert_eq!(turns(&results), ["1 loop", "1 vswitch"]);
    let case = &results.scenarios[0].cases[0];
    assert_eq!(case.title(), "size=64");
    assert_eq!(case.contestant("vswitch").unwrap().values("throughput"), [(0, 4.0)]);
}

#[test]
fn rounds_go_through_all_cases() {
    let mut results = Results::new(Run::default(), Machine::default());
    let mut wanted = plan();
    let other = Parameters::from([("size".to_owned(), 1518.into())]);
    wanted.cases.push(Case { parameters: other, rounds: 1, ..wanted.cases[0].clone() });
    results.declare(wanted);
    let order: Vec<String> =
        results.remaining().iter().map(|t| format!("{} {} {}", t.round, t.parameters["size"], t.contestant)).collect();
    assert_eq!(order, ["0 64 loop", "0 64 vswitch", "0 1518 loop", "0 1518 vswitch", "1 64 loop", "1 64 vswitch"]);
}

#[test]
fn noise_has_a_verdict() {
    assert_eq!(Noise::of("ns", &[], 0.03), None);
    let quiet = Noise::of("ns", &[100.0, 101.0, 99.0, 100.0], 0.03).unwrap();
    assert_eq!((quiet.median, quiet.min, quiet.max, quiet.verdict), (100.0, 99.0, 101.0, Verdict::Quiet));
    let noisy = Noise::of("ns", &[100.0, 130.0, 99.0, 100.0, 131.0], 0.03).unwrap();
    assert_eq!(noisy.verdict, Verdict::Noisy);
}
